"""B4: what our policies reach when they know how long every answer will be. In simulations only.

The lower side of the sandwich online <= clairvoyant <= OPT <= B2 <= B1. Any schedule is a lower bound on the
optimum, so the better of two is taken: one with the true lengths alone; one that also serves in order of due
time, keeps the queues at the backends short, and gives requests up that would miss their objectives anyway.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from policies.registry import build
from router.core.admission import Limits
from router.core.messages import DecodeDone, RequestArrived, RequestCancelled
from router.core.ports import FleetView, Policy
from router.model import Placement, Reject, Request, RoutePlan, Seconds, Wait
from router.sim.run import Contestant, Outlook

QUEUE: Final = 1 << 16
LIMITS: Final = Limits(queue_capacity=QUEUE, max_queue_s=86_400.0, scan=32)
"""Of the core under a clairvoyant policy: many are offered, so that the order is the policy's."""


@dataclass(frozen=True, slots=True)
class Foresight:
    """One way to use what is known."""

    label: str
    in_order: bool
    """Earliest due first; otherwise as the core offers them."""
    gives_up: bool
    """Drop requests that are predicted to miss an objective."""
    params: Mapping[str, object]
    policy: str = "predicted"


WAYS: Final[Sequence[Foresight]] = (
    Foresight("lengths", False, False, {}),
    Foresight("due first, gives up", True, True, {"max_prefill_queue": 2}),
)


class Clairvoyant:
    """A policy that is told true lengths. Satisfies core.ports.Policy."""

    name = "clairvoyant"

    def __init__(self, inner: Policy, oracle: Callable[[Request], int], way: Foresight) -> None:
        self._inner = inner
        self._oracle = oracle
        self._way = way
        self._arrived: dict[str, Seconds] = {}
        self._waiting: dict[str, Seconds] = {}
        """Due times of requests that were told to wait."""
        self._order: list[tuple[Seconds, str]] = []
        """A heap of them; entries that wait no more are dropped when they come up."""

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Place both phases, knowing the length."""
        arrived = self._arrived.setdefault(request.id, now)
        due = min(request.deadline, arrived + _ttft_s(request))
        if self._way.in_order and due > self._earliest(now):
            return self._wait(request, due, Wait("earlier_due"))
        answer = self._inner.plan(self._told(request), fleet, now)
        if isinstance(answer, Wait):
            return self._wait(request, due, answer)
        self._waiting.pop(request.id, None)
        if isinstance(answer, RoutePlan) and self._way.gives_up and _misses(request, answer, now - arrived):
            return Reject("an objective would be missed", infeasible_deadline=True)
        return answer

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """Place decode, knowing the length."""
        return self._inner.bind_decode(self._told(request), prefill, fleet, now)

    def observe(self, fact: Any, now: Seconds) -> None:
        """See a fact, as the inner policy does."""
        if isinstance(fact, RequestArrived):
            self._arrived.setdefault(fact.request.id, now)
        elif isinstance(fact, RequestCancelled | DecodeDone):
            self._waiting.pop(fact.request_id, None)
            self._arrived.pop(fact.request_id, None)
        self._inner.observe(fact, now)

    def _wait(self, request: Request, due: Seconds, answer: Wait) -> Wait:
        if request.id not in self._waiting:
            self._waiting[request.id] = due
            heapq.heappush(self._order, (due, request.id))
        return answer

    def _earliest(self, now: Seconds) -> Seconds:
        """The first due time of those that wait. One that is late, or was shed, must not hold up the rest."""
        while self._order:
            due, name = self._order[0]
            if due >= now and name in self._waiting:
                return due
            heapq.heappop(self._order)
            self._waiting.pop(name, None)
        return math.inf

    def _told(self, request: Request) -> Request:
        """The request with its true length as its cap, and as its class, from which lengths are learnt."""
        length = self._oracle(request)
        return replace(request, max_new_tokens=length, workload_class=f"{length} tokens")


def clairvoyants() -> list[Contestant]:
    """The contestants whose best is B4."""
    return [Contestant(f"clairvoyant ({way.label})", _maker(way)) for way in WAYS]


def _maker(way: Foresight) -> Callable[[Outlook], Policy]:
    def make(outlook: Outlook) -> Policy:
        inner = build(way.policy, way.params, outlook.models, outlook.rng)
        return Clairvoyant(inner, outlook.oracle, way)

    return make


def _ttft_s(request: Request) -> Seconds:
    return math.inf if request.slo.ttft_s is None else request.slo.ttft_s


def _misses(request: Request, plan: RoutePlan, waited_s: Seconds) -> bool:
    prediction = plan.decision.prediction
    if prediction is None:
        return False
    tpot_s = math.inf if request.slo.tpot_s is None else request.slo.tpot_s
    late = waited_s + prediction.ttft_s > _ttft_s(request)
    return late or (prediction.tpot_s is not None and prediction.tpot_s > tpot_s)
