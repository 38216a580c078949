"""Deadlines of live requests, on a heap keyed (time, seq).

Timers are not removed when their cause is gone: they are dead from then on, and `due` and `next_at` pass over
them, so that a dead timer never advances virtual time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from enum import StrEnum

from router.model import Seconds


class Timer(StrEnum):
    """What a timer watches."""

    DEADLINE = "deadline"
    QUEUE = "queue"
    PREFILL = "prefill"
    LEASE = "lease"
    HANDOFF = "handoff"
    OFFER = "offer"


Alive = Callable[[Timer, str, int], bool]
"""Whether a timer's cause still stands: (timer, request id, epoch)."""


class Timers:
    """The heap."""

    def __init__(self, alive: Alive) -> None:
        self._alive = alive
        self._heap: list[tuple[Seconds, int, Timer, str, int]] = []
        self._seq = 0

    def set(self, at: Seconds, timer: Timer, request_id: str, epoch: int) -> None:
        """Watch something until `at`; infinity is never."""
        if at < float("inf"):
            self._seq += 1
            heapq.heappush(self._heap, (at, self._seq, timer, request_id, epoch))

    def next_at(self) -> Seconds | None:
        """When the next living timer is due."""
        while self._heap:
            at, _, timer, request_id, epoch = self._heap[0]
            if self._alive(timer, request_id, epoch):
                return at
            heapq.heappop(self._heap)
        return None

    def due(self, now: Seconds) -> tuple[Timer, str] | None:
        """Take the next living timer that is due."""
        at = self.next_at()
        if at is None or at > now:
            return None
        _, _, timer, request_id, _ = heapq.heappop(self._heap)
        return timer, request_id
