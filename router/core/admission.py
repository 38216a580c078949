"""Who may wait, who may come in, and who may try again. Everything here is bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from router.model import Priority, Request, Seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the core. Durations in seconds."""

    queue_capacity: int = 1024
    """Requests that may wait for a place."""
    max_queue_s: Seconds = 60.0
    """Longest wait for a place; after it the request is shed."""
    scan: int = 8
    """Requests of one line that are offered to the policy without success before the line has to wait."""
    max_attempts: int = 3
    retry_ratio: float = 0.2
    """Retries per admitted request, over retry_window_s (Finagle's default)."""
    retry_per_s: float = 3.0
    """Retries per second on top (Envoy and Finagle keep a floor, so that a quiet service can retry)."""
    retry_window_s: Seconds = 10.0
    stall_s: Seconds = 10.0
    """A phase silent for longer than this, and than stall_factor times its predicted time, has stalled."""
    stall_factor: float = 5.0
    lease_margin_s: Seconds = 1.0
    """A lease must outlast the predicted transfer by twice its time and this margin."""
    policy_faults: int = 3
    """Faults in a row after which the policy is bypassed."""
    policy_bypass_s: Seconds = 30.0


class AdmissionQueue:
    """Requests without a place: lines by priority and model, each in order of arrival."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._size = 0
        self._again: set[str] = set()
        """Admitted before, and therefore at the front of their lines."""
        self._lines: dict[Priority, dict[str, dict[str, Request]]] = {
            priority: {} for priority in sorted(Priority, reverse=True)
        }

    def __len__(self) -> int:
        return self._size

    def lines(self) -> Iterator[tuple[str, tuple[Request, ...]]]:
        """Model and requests of every line, highest priority first. Copies: removal is safe meanwhile."""
        for lines in self._lines.values():
            for model, line in tuple(lines.items()):
                yield model, tuple(line.values())

    def depth(self, priority: Priority) -> int:
        """Requests waiting in one class."""
        return sum(map(len, self._lines[priority].values()))

    def has_before(self, request: Request) -> bool:
        """Whether somebody waits for the same model whose turn is earlier than a newcomer's.

        Those who were admitted before do not count: they may avoid a place that a newcomer can take.
        """
        return any(
            next(reversed(line)) not in self._again
            for priority, lines in self._lines.items()
            if priority >= request.priority and (line := lines.get(request.model))
        )

    def push(self, request: Request) -> Request | None:
        """Let a request wait. Returns the one that must go when the queue is full: the youngest of the
        longest line in the lowest class, which may be the request itself."""
        self._line(request)[request.id] = request
        self._size += 1
        if self._size <= self._capacity:
            return None
        lowest = next(lines for lines in reversed(self._lines.values()) if lines)
        youngest = next(reversed(max(lowest.values(), key=len).values()))
        self.remove(youngest)
        return youngest

    def push_front(self, request: Request) -> None:
        """Let a request wait that has been admitted before: it keeps its turn, and is never shed for it."""
        line = self._line(request)
        self._lines[request.priority][request.model] = {request.id: request, **line}
        self._again.add(request.id)
        self._size += 1

    def remove(self, request: Request) -> None:
        """Take a request out."""
        line = self._line(request)
        self._again.discard(request.id)
        if line.pop(request.id, None) is not None:
            self._size -= 1
        if not line:
            del self._lines[request.priority][request.model]

    def _line(self, request: Request) -> dict[str, Request]:
        return self._lines[request.priority].setdefault(request.model, {})


class RetryBudget:
    """One budget for all retries: a share of the admitted requests plus a floor per second.

    Deposits fade with the window as time constant, so an unused budget tends to
    (retry_per_s + retry_ratio x requests/s) x window, and a storm of failures cannot multiply the load by
    more than 1 + retry_ratio for long.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._balance = limits.retry_per_s * limits.retry_window_s
        self._at: Seconds | None = None

    def deposit(self, now: Seconds) -> None:
        """A request was admitted."""
        self._fade(now)
        self._balance += self._limits.retry_ratio

    def withdraw(self, now: Seconds) -> bool:
        """Ask for a retry."""
        self._fade(now)
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True

    def _fade(self, now: Seconds) -> None:
        elapsed = 0.0 if self._at is None else now - self._at
        self._at = now
        kept = math.exp(-elapsed / self._limits.retry_window_s)
        floor = self._limits.retry_per_s * self._limits.retry_window_s
        self._balance = self._balance * kept + floor * (1.0 - kept)
