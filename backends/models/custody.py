"""KV that a prefill worker keeps for a peer: minted once, pulled once, never past its lease. Pure.

Every handle that comes back is compared with what was minted, field by field: another boot, another
request, a consumed or expired handle is refused as stale. It is never answered with whatever KV happens to
be there.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from router.model import KVHandle, Seconds

FINGERPRINT_MASK = (1 << 64) - 1


@dataclass(slots=True)
class Held:
    """One request's KV at its producer."""

    key: int
    handle: KVHandle
    fingerprint: int
    prefill_s: Seconds = 0.0
    """Device time that computed it; layers that were done first may have left meanwhile."""
    pull: int | None = None
    """The pull that claimed it; from then on the lease does not matter."""


class Custody:
    """The held KV of one boot of one worker."""

    def __init__(self, producer: str, incarnation: str) -> None:
        self._producer = producer
        self._incarnation = incarnation
        self.held: dict[int, Held] = {}
        """By the key of its prefill; for reading."""
        self._pulls: dict[int, Held] = {}
        self._leases: list[tuple[Seconds, int]] = []

    def hold(self, held: Held) -> None:
        """Keep KV until it is claimed, dropped, or its lease ends."""
        self.held[held.key] = held
        heapq.heappush(self._leases, (held.handle.expires_at, held.key))

    def find(self, handle: KVHandle) -> Held | str:
        """The KV that a handle names, or why there is none."""
        if handle.producer != self._producer:
            return f"this is {self._producer}; the handle names {handle.producer}"
        if handle.incarnation != self._incarnation:
            return f"{self._producer} restarted since the handle was minted; its KV is gone, prefill again"
        held = self.held.get(_key_of(handle))
        if held is None or not _same(held.handle, handle):
            return (
                f"{self._producer} holds no KV of request {handle.request_id} epoch {handle.epoch}: "
                "it was moved, released, or its lease ended; prefill again"
            )
        return held

    def claim(self, handle: KVHandle, pull: int) -> Held | str:
        """Give the KV to one pull: compare and set, so that of two pulls one is refused."""
        held = self.find(handle)
        if isinstance(held, Held):
            if held.pull is not None:
                return f"the KV of request {handle.request_id} is being pulled already; a handle is used once"
            held.pull = pull
            self._pulls[pull] = held
        return held

    def of_key(self, key: int) -> Held | None:
        """The KV that a prefill left."""
        return self.held.get(key)

    def of_pull(self, pull: int) -> Held | None:
        """The KV that a pull claimed."""
        return self._pulls.get(pull)

    def drop(self, held: Held) -> None:
        """Keep it no longer."""
        self.held.pop(held.key, None)
        if held.pull is not None:
            self._pulls.pop(held.pull, None)

    def expired(self, now: Seconds) -> Sequence[Held]:
        """Take out the KV whose lease ended unclaimed."""
        gone: list[Held] = []
        while (due := self.next_expiry()) is not None and due <= now:
            _, key = heapq.heappop(self._leases)
            gone.append(self.held.pop(key))
        return gone

    def next_expiry(self) -> Seconds | None:
        """When the next unclaimed lease ends; leases of KV that is gone or claimed never wake anybody."""
        while self._leases:
            due, key = self._leases[0]
            held = self.held.get(key)
            if held is not None and held.pull is None:
                return due
            heapq.heappop(self._leases)
        return None


def connector_of(key: int) -> bytes:
    """What the handle carries so that its producer finds the KV again; opaque to everybody else."""
    return str(key).encode("ascii")


def _key_of(handle: KVHandle) -> int:
    text = handle.connector
    return int(text) if 0 < len(text) <= 20 and text.isdigit() else -1


def _same(minted: KVHandle, shown: KVHandle) -> bool:
    """Whether a handle that came back is the one that was minted; the lease is not part of its identity."""
    return (
        minted.request_id == shown.request_id
        and minted.epoch == shown.epoch
        and minted.layout == shown.layout
        and minted.tokens == shown.tokens
        and minted.prefix_hash == shown.prefix_hash
    )
