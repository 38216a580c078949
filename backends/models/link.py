"""KV transfers: how long one takes alone, and how several share a link. Pure.

Alone: latency + bytes / bandwidth (0.40 ms + bytes / 145.8 GB/s fits Mooncake's published transfers over
8 x RoCE within 3.6 %). Several at once share the bandwidth equally, each after its own latency: the fluid
limit of fair queueing, known as processor sharing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from router.errors import ConfigError
from router.model import LinkParameters, Seconds


def check_link(parameters: LinkParameters) -> None:
    """Raise ConfigError for a negative latency or a bandwidth that is not above 0."""
    if not 0.0 <= parameters.latency_s < math.inf:
        raise ConfigError(f"link.latency_s = {parameters.latency_s!r} must be finite and at least 0.")
    if not parameters.bandwidth_bytes_per_s > 0.0:
        raise ConfigError(
            f"link.bandwidth_bytes_per_s = {parameters.bandwidth_bytes_per_s!r} must be above 0: "
            "a transfer over it would never end."
        )
    if not parameters.ingress_bytes_per_s > 0.0:
        raise ConfigError(
            f"link.ingress_bytes_per_s = {parameters.ingress_bytes_per_s!r} must be above 0: "
            "no KV would ever come in."
        )
    if parameters.overlap_layers < 0:
        raise ConfigError(
            f"link.overlap_layers = {parameters.overlap_layers} must be at least 0; 0 is no overlap."
        )


def exposed_bytes(moved_bytes: int, prefill_s: Seconds, link: LinkParameters) -> int:
    """Bytes that are still to be sent when the prefill is done.

    Without overlap all of them. With it, layer by layer, the exposed time is
    latency + max(bytes / bandwidth - prefill (L - 1) / L, bytes / (L bandwidth)): the last layer at least
    comes after the prefill. Assumes that the consumer is known when the prefill begins.
    """
    layers = link.overlap_layers
    if layers < 1:
        return moved_bytes
    ahead = min(link.bandwidth_bytes_per_s * prefill_s * (layers - 1) / layers, float(moved_bytes))
    return round(max(moved_bytes - ahead, moved_bytes / layers))


def transfer_s(moved_bytes: float, link: LinkParameters) -> Seconds:
    """A transfer that has the link to itself."""
    return link.latency_s + moved_bytes / link.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True)
class StartTransfer:
    """Begin to send. The id is not in use."""

    transfer: int
    moved_bytes: int


@dataclass(frozen=True, slots=True)
class CancelTransfer:
    """Stop sending; an id that is not under way is ignored."""

    transfer: int


LinkCommand = StartTransfer | CancelTransfer


@dataclass(frozen=True, slots=True)
class TransferDone:
    """The last byte left at `at`, `took_s` after the start."""

    transfer: int
    moved_bytes: int
    at: Seconds
    took_s: Seconds


@dataclass(slots=True)
class _Transfer:
    command: StartTransfer
    began: Seconds
    ends_at_share: float = math.inf
    """Value of the per-transfer byte counter at which it is done; infinite during its latency."""


class KVLink:
    """A machine of concurrent transfers.

    One counter grows by the bytes that every transfer under way has been given so far; a transfer is done
    when the counter has grown by its size. So a change in their number costs O(log n), not O(n). The
    counter moves only when that number changes: how often a driver calls does not change the result.
    """

    def __init__(self, parameters: LinkParameters) -> None:
        """Raise ConfigError for parameters out of range."""
        check_link(parameters)
        self._p = parameters
        self._transfers: dict[int, _Transfer] = {}
        self._latent: list[tuple[Seconds, int]] = []
        self._flowing: list[tuple[float, int]] = []
        self._flows = 0
        self._share = 0.0
        self._clock: Seconds = 0.0

    def __len__(self) -> int:
        """Transfers that have begun and not ended."""
        return len(self._transfers)

    def handle(self, message: LinkCommand, now: Seconds) -> Sequence[TransferDone]:
        """Start or cancel; also returns what was done by `now`."""
        done = self.advance(now)
        match message:
            case StartTransfer():
                self._start(message, now)
                done = [*done, *self.advance(now)]
            case CancelTransfer(transfer=transfer):
                self._drop(transfer, now)
            case _:
                assert_never(message)
        return done

    def advance(self, now: Seconds) -> Sequence[TransferDone]:
        """Transfers that ended by `now`, in the order and at the times of the model."""
        done: list[TransferDone] = []
        while (due := self.deadline()) is not None and due <= now:
            self._flow_until(due)
            self._begin_flows(due)
            done.extend(self._end_flows(due))
        return done

    def deadline(self) -> Seconds | None:
        """When the next transfer leaves its latency or ends."""
        if not self._transfers:
            return None
        self._forget_cancelled()
        times: list[Seconds] = []
        if self._latent:
            times.append(self._latent[0][0])
        if self._flowing:
            left = max(0.0, self._flowing[0][0] - self._share)
            times.append(self._clock + left * self._flows / self._p.bandwidth_bytes_per_s)
        return min(times, default=None)

    def _start(self, command: StartTransfer, now: Seconds) -> None:
        if command.transfer in self._transfers:
            raise ValueError(f"transfer {command.transfer} is under way; ids may not be used twice")
        self._transfers[command.transfer] = _Transfer(command, now)
        heapq.heappush(self._latent, (now + self._p.latency_s, command.transfer))

    def _drop(self, transfer: int, now: Seconds) -> None:
        gone = self._transfers.pop(transfer, None)
        if gone is not None and gone.ends_at_share < math.inf:
            self._flow_until(now)
            self._flows -= 1

    def _flow_until(self, until: Seconds) -> None:
        if self._flows and not math.isinf(self._p.bandwidth_bytes_per_s):
            self._share += (until - self._clock) * self._p.bandwidth_bytes_per_s / self._flows
        elif not self._flows:
            self._share = 0.0  # the counter starts anew, or it would lose precision over days
            self._flowing.clear()
        self._clock = until

    def _begin_flows(self, due: Seconds) -> None:
        while self._latent and self._latent[0][0] <= due:
            _, number = heapq.heappop(self._latent)
            if (transfer := self._transfers.get(number)) is not None:
                transfer.ends_at_share = self._share + transfer.command.moved_bytes
                heapq.heappush(self._flowing, (transfer.ends_at_share, number))
                self._flows += 1

    def _end_flows(self, due: Seconds) -> Sequence[TransferDone]:
        done: list[TransferDone] = []
        while self._flowing and self._is_out(self._flowing[0][0], due):
            _, number = heapq.heappop(self._flowing)
            if (transfer := self._transfers.pop(number, None)) is not None:
                self._flows -= 1
                command = transfer.command
                done.append(TransferDone(number, command.moved_bytes, due, due - transfer.began))
        return done

    def _is_out(self, ends_at_share: float, due: Seconds) -> bool:
        """Whether what is left takes no time that a float at `due` can tell; or the loop would not end."""
        left_s = max(0.0, ends_at_share - self._share) * self._flows / self._p.bandwidth_bytes_per_s
        return due + left_s <= due

    def _forget_cancelled(self) -> None:
        """Cancelled transfers leave the heaps, so that they never wake the driver."""
        while self._latent and self._latent[0][1] not in self._transfers:
            heapq.heappop(self._latent)
        while self._flowing and self._flowing[0][1] not in self._transfers:
            heapq.heappop(self._flowing)
