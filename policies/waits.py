"""Since when requests have been here, and what a repeated wait says.

The objective for the first token counts from arrival, and a policy is asked again and again. To explain every
refusal anew would be a third of a saturated router's time: the first one is explained, and the others repeat
its reason.
"""

from __future__ import annotations

from typing import Any, Final

from router.core.messages import DecodeDone, PhaseFailed, RequestArrived, RequestCancelled
from router.model import Request, Seconds, Wait

RECHECK_S: Final = 0.01
"""One that waits for the objectives of others is not weighed anew within this time: a saturated router is
told of something that ended a thousand times a second, and each time would ask for all that wait."""
MAX_WAITING: Final = 1 << 16
"""More are not remembered: requests whose end is never told must not fill the memory."""


class Waits:
    """Arrivals of the requests without a place, and the answer each was given first."""

    def __init__(self) -> None:
        self._arrived: dict[str, Seconds] = {}
        self._told: dict[str, tuple[int, Wait]] = {}
        self._deferred: dict[str, tuple[Seconds, Wait]] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Waits:
        other = Waits()
        other._arrived = dict(self._arrived)  # what was told before is explained in a dry run
        return other

    def since(self, request: Request, now: Seconds) -> Seconds:
        """When a request came. The policy is asked before it hears of the arrival."""
        at = self._arrived.get(request.id)
        if at is None:
            if len(self._arrived) >= MAX_WAITING:
                self.over(next(iter(self._arrived)))
            at = self._arrived[request.id] = now
        return at

    def told(self, request: Request, backends: int) -> Wait | None:
        """What it was told before of as many backends, if it waits."""
        known = self._told.get(request.id)
        return known[1] if known is not None and known[0] == backends else None

    def tell(self, request: Request, wait: Wait, backends: int) -> Wait:
        """There is no room for it. Remember that without its explanation."""
        self._told[request.id] = (backends, Wait(wait.reason, None, wait.no_room, wait.until))
        return wait

    def deferred(self, request: Request, now: Seconds) -> Wait | None:
        """The answer to one who asks again right after it was deferred."""
        known = self._deferred.get(request.id)
        if known is None or now >= (again := known[0] + RECHECK_S):
            return None
        return Wait(known[1].reason, None, known[1].no_room, min(known[1].until, again))

    def was_deferred(self, request: Request) -> bool:
        """Whether it was told so before."""
        return request.id in self._deferred

    def defer(self, request: Request, wait: Wait, now: Seconds) -> Wait:
        """It waits though there is room."""
        self._deferred[request.id] = (now, wait)
        return wait

    def over(self, request_id: str) -> None:
        """A request is placed, refused, or gone."""
        self._arrived.pop(request_id, None)
        self._told.pop(request_id, None)
        self._deferred.pop(request_id, None)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Follow arrivals and ends."""
        match fact:
            case RequestArrived():
                self.since(fact.request, now)
            case DecodeDone() | RequestCancelled():
                self.over(fact.request_id)
            case PhaseFailed():
                self._told.pop(fact.request_id, None)
                self._deferred.pop(fact.request_id, None)
            case _:
                pass
