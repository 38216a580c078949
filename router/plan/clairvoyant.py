"""B4: what our policies reach when they know how long every answer will be. In simulations only.

The lower side of the sandwich online <= clairvoyant <= OPT <= B2 <= B1. Any schedule is a lower bound on the
optimum, so the best of three is taken: one with the true lengths alone; one that also serves in order of due
time and gives requests up that would miss their objectives anyway; and one that serves the least work first,
which keeps the objectives of most when not all can be kept. The last two keep queues at the backends short.
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
WEIGHT: Final = 2.0
"""Work of an output token, a prompt token being 1: as the core shares tokens out."""
LIMITS: Final = Limits(queue_capacity=QUEUE, max_queue_s=86_400.0, scan=32)
"""Of the core under a clairvoyant policy: many are offered, so that the order is the policy's."""


@dataclass(frozen=True, slots=True)
class Foresight:
    """One way to use what is known."""

    label: str
    first: str
    """Who goes first of those that wait: "due" for the earliest due, "short" for the least work, and
    "offered" for the order of the core."""
    gives_up: bool
    """Drop requests that are predicted to miss an objective."""
    params: Mapping[str, object]
    policy: str = "predicted"


WAYS: Final[Sequence[Foresight]] = (
    Foresight("lengths", "offered", False, {"lengths": "cap"}),
    Foresight("due first, gives up", "due", True, {"lengths": "cap", "max_prefill_queue": 2}),
    Foresight("due first", "due", False, {"lengths": "cap"}),
    Foresight("short first", "short", False, {"lengths": "cap", "max_prefill_queue": 2, "least_gain": 0.6}),
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
        self._order: list[tuple[float, str]] = []
        """A heap of them; entries that wait no more are dropped when they come up."""

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Place both phases, knowing the length."""
        arrived = self._arrived.setdefault(request.id, now)
        due = min(request.deadline, arrived + _ttft_s(request))
        rank = due if self._way.first == "due" else request.prompt_tokens + WEIGHT * self._oracle(request)
        if self._way.first != "offered" and rank > self._lowest(now):
            return self._wait(request, rank, due, Wait("others_first"))
        answer = self._inner.plan(self._told(request), fleet, now)
        if isinstance(answer, Wait):
            return self._wait(request, rank, due, answer)
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

    def _wait(self, request: Request, rank: float, due: Seconds, answer: Wait) -> Wait:
        if request.id not in self._waiting:
            self._waiting[request.id] = due
            heapq.heappush(self._order, (rank, request.id))
        return answer

    def _lowest(self, now: Seconds) -> float:
        """The first rank of those that wait. One that is late, or was shed, must not hold up the rest."""
        while self._order:
            rank, name = self._order[0]
            if self._waiting.get(name, -math.inf) >= now:
                return rank
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
