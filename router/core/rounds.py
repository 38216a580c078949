"""One pass over those who wait for a model, made when something changed that could help one of them.

Each request is offered at most once, and one that has to wait holds nobody else up: a policy may have a place
for the next one. What a round looks at is bounded.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from router.core.fairness import Line, Tenant
from router.core.queue import ModelQueue
from router.model import Priority, Request, Seconds


class Round:
    """One pass over the lines of a model. What is open to one of a tenant and class is open to all."""

    def __init__(self, queue: ModelQueue, scan: int, is_open: Callable[[Request], bool]) -> None:
        self._queue = queue
        self._is_open = is_open
        self._limit = scan
        self._scans: dict[Priority, _Scan] = {}
        self._last: _Scan | None = None

    def next(self, now: Seconds) -> Request | None:
        """The next request to offer. Then say `placed` or `refused`; None ends the round."""
        for priority, owed in self._queue.order(now):
            scan = self._scans.get(priority)
            if scan is None:
                scan = self._scans[priority] = _Scan(self._queue.lines[priority], self._limit)
            request = scan.next(self._queue.needless, _anything if owed else self._is_open)
            if request is not None:
                self._last = scan
                return request
        self._queue.unasked = any(scan.cut for scan in self._scans.values())
        self._queue.held_back = any(scan.held_back for scan in self._scans.values())
        return None

    def placed(self) -> None:
        """The request left the queue."""
        assert self._last is not None
        self._last.go_on()
        for scan in self._scans.values():
            scan.let_in()

    def refused(self) -> None:
        """The request has to wait."""
        assert self._last is not None
        self._last.pass_over()


@dataclass(slots=True)
class _Turn:
    """A tenant in a round."""

    passed: int
    """Requests at the front of its line that were offered, or need no offer."""
    served: float
    order: int
    tenant: Tenant

    def __lt__(self, other: _Turn) -> bool:
        """Those of whom less was passed over go first: a tenant's large requests hold no other tenant up."""
        return (self.passed, self.served, self.order) < (other.passed, other.served, other.order)


class _Scan:
    """One line in a round."""

    def __init__(self, line: Line, looks: int) -> None:
        self.cut = False
        """Somebody was left out."""
        self.held_back: list[_Turn] = []
        """Tenants that have to leave room for others."""
        self._looks = looks
        self._turns = [_Turn(0, t.served, i, t) for i, t in enumerate(line.tenants.values())]
        heapq.heapify(self._turns)

    def next(self, needless: Callable[[Request], bool], is_open: Callable[[Request], bool]) -> Request | None:
        while self._turns and self._looks:
            turn = self._turns[0]
            request = next(islice(turn.tenant.waiting.values(), turn.passed, None), None)
            if request is None:
                heapq.heappop(self._turns)
            elif not is_open(request):
                self.held_back.append(heapq.heappop(self._turns))
            elif needless(request):
                self.pass_over()
            else:
                return request
        self.cut = bool(self._turns)
        return None

    def go_on(self) -> None:
        """The first in turn was served."""
        turn = self._turns[0]
        turn.served = turn.tenant.served
        heapq.heapreplace(self._turns, turn)

    def let_in(self) -> None:
        """Look again at those who were held back: who holds how much has changed."""
        while self.held_back:
            heapq.heappush(self._turns, self.held_back.pop())

    def pass_over(self) -> None:
        """The first in turn waits."""
        self._looks -= 1
        turn = self._turns[0]
        turn.passed += 1
        heapq.heapreplace(self._turns, turn)


def _anything(request: Request) -> bool:
    """What a class is owed is not held back for higher ones: they would keep it out for ever."""
    return True
