"""Keeps what arrived in a simulation, with true lengths, so that bounds speak of the same requests.

In a closed loop the next request depends on the answer before it, so a bound over recorded arrivals bounds
what can be made of these arrivals, not what other answers would have brought.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from router.core.messages import RequestArrived
from router.core.ports import FleetView, Policy, PriceTaker
from router.model import Placement, Reject, Request, RoutePlan, Seconds, Wait
from router.plan.tasks import Timed, timed
from router.prices import PriceProblem, Unpriced
from router.sim.run import Contestant, Outlook


class Recording:
    """What came in one run."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[Seconds, Request]] = []
        self._lengths: dict[str, int] = {}

    def arrived(self, request: Request, now: Seconds, output_tokens: int) -> None:
        """One request came."""
        self.arrivals.append((now, request))
        self._lengths[request.id] = output_tokens

    def tasks(self) -> list[Timed]:
        """All of them, with their true lengths."""
        return timed(self.arrivals, lambda request: self._lengths[request.id])


class Recorded:
    """A policy that is listened to. Satisfies core.ports.Policy."""

    def __init__(self, inner: Policy, oracle: Callable[[Request], int], into: Recording) -> None:
        self.name = inner.name
        self._inner = inner
        self._oracle = oracle
        self._into = into

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """As the inner policy."""
        return self._inner.plan(request, fleet, now)

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """As the inner policy."""
        return self._inner.bind_decode(request, prefill, fleet, now)

    def price_problem(self, fleet: FleetView, now: Seconds) -> PriceProblem | Unpriced | None:
        """As the inner policy, if it takes prices."""
        return self._inner.price_problem(fleet, now) if isinstance(self._inner, PriceTaker) else None

    def observe(self, fact: Any, now: Seconds) -> None:
        """Note what arrives; a request that is refused on arrival counts too."""
        if isinstance(fact, RequestArrived):
            self._into.arrived(fact.request, now, self._oracle(fact.request))
        self._inner.observe(fact, now)


def recorded(contestant: Contestant) -> tuple[Contestant, Recording]:
    """The same contestant, and what will come while it runs."""
    recording = Recording()

    def make(outlook: Outlook) -> Policy:
        return Recorded(contestant.make(outlook), outlook.oracle, recording)

    return Contestant(contestant.label, make), recording
