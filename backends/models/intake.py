"""KV on its way in: the ingress link that pulls share, and the conversion of foreign layouts. Pure.

A pull takes its bytes through two links, the producer's egress (link.py, at the producer) and the consumer's
ingress (here), at the same time: it is over when both have let it through. So a transfer holds its share of
both ends even while the other one is its bottleneck: contention is overstated a little, never understated.
KV of another layout then takes (kv_conversion - 1) times the transfer longer: tensor parallelism or precision
that does not match costs 1.2 to 2 times the transfer (an assumption; nobody publishes it).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from backends.models.link import CancelTransfer, KVLink, StartTransfer, TransferDone
from backends.models.messages import KVArrived
from router.model import BackendSpec, KVHandle, LinkParameters, Seconds


@dataclass(slots=True)
class _Pull:
    factor: float
    """How many times the transfer it takes until the KV can be used."""
    passed: Seconds | None = None
    """When the ingress had let it through."""
    arrived: KVArrived | None = None
    at: Seconds = 0.0
    """When it arrived."""


class Intake:
    """What one worker is pulling. A pull is named by its key."""

    def __init__(self, spec: BackendSpec) -> None:
        self._spec = spec
        self._link = KVLink(LinkParameters(0.0, spec.link.ingress_bytes_per_s))
        self._pulls: dict[int, _Pull] = {}
        self._usable: list[tuple[Seconds, int, KVArrived]] = []
        """KV that is here, and from when on it can be used."""

    def expect(self, key: int, kv: KVHandle, now: Seconds) -> None:
        """A pull begins; it takes its share of the ingress from now on."""
        foreign = kv.layout != self._spec.kv_layout
        self._pulls[key] = _Pull(self._spec.kv_conversion if foreign else 1.0)
        size = round(kv.tokens * self._spec.kv_bytes_per_token)
        self._let_through(self._link.handle(StartTransfer(key, size), now))

    def arrive(self, message: KVArrived, now: Seconds) -> None:
        """The producer is done; `advance` gives the message back when the KV can be used."""
        if (pull := self._pulls.get(message.key)) is not None:
            pull.arrived, pull.at = message, now
            self._settle(message.key, pull)

    def drop(self, key: int, now: Seconds) -> None:
        """Nobody waits for it any more."""
        if self._pulls.pop(key, None) is not None:
            self._let_through(self._link.handle(CancelTransfer(key), now))

    def advance(self, now: Seconds) -> Sequence[KVArrived]:
        """KV that can be used by `now`; its transfer time includes all that happened here."""
        self._let_through(self._link.advance(now))
        usable: list[KVArrived] = []
        while self._usable and self._usable[0][0] <= now:
            _, key, message = heapq.heappop(self._usable)
            if self._pulls.pop(key, None) is not None:
                usable.append(message)
        return usable

    def deadline(self) -> Seconds | None:
        """When the next pull can be used, or leaves the ingress."""
        while self._usable and self._usable[0][1] not in self._pulls:
            heapq.heappop(self._usable)
        due = self._link.deadline()
        if self._usable and (due is None or self._usable[0][0] < due):
            return self._usable[0][0]
        return due

    def _let_through(self, done: Sequence[TransferDone]) -> None:
        for one in done:
            if (pull := self._pulls.get(one.transfer)) is not None:
                pull.passed = one.at
                self._settle(one.transfer, pull)

    def _settle(self, key: int, pull: _Pull) -> None:
        """Once both links let it through, work out when the KV can be used."""
        if pull.arrived is None or pull.passed is None:
            return
        here = max(pull.at, pull.passed)
        transfer_s = pull.arrived.transfer_s + (here - pull.at)
        usable = here + (pull.factor - 1.0) * transfer_s
        message = replace(pull.arrived, transfer_s=pull.factor * transfer_s)
        heapq.heappush(self._usable, (usable, key, message))
