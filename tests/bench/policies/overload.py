"""More than the fleet can do: a tenant who floods, and bulk beside a queue that never empties.

Flood: tenants who together ask for little, alone and then beside one who sends several times the capacity.
Bulk: interactive requests above capacity, and a few of bulk. How long does bulk wait, and is there a time in
which bulk waits and none of it is started, longer than the core's starvation bound? (The series of loads
up to three times the capacity is in the grid.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from backends.catalogue import load_fleet
from router.core.admission import Limits
from router.core.messages import RequestArrived, RequestCancelled
from router.core.ports import FleetView, Policy, PriceTaker
from router.model import Placement, Priority, Reject, Request, RoutePlan, Seconds, Wait
from router.prices import PriceProblem, Unpriced
from router.sim.classes import NO_OBJECTIVES, Renewal, Workload, WorkloadClass
from router.sim.histogram import Histogram
from router.sim.result import SimResult
from router.sim.run import Contestant, Outlook
from router.sim.workload_file import load_workload
from tests.bench.policies.field import CHAMPION, contestants
from tests.bench.policies.play import play
from tests.bench.policies.scale import Scale, scale_of, served

FLEET: Final = "homogeneous"
WORKLOAD: Final = "chat"
TENANTS: Final = ("acme", "globex", "initech")
QUIET_LOAD: Final = 0.45
"""Of all quiet tenants together."""
FLOOD_LOAD: Final = 3.0
WITHIN: Final = 1.10
BULK_LOAD: Final = 0.2
CROWD_LOAD: Final = 2.0
"""Of interactive requests, beside bulk."""
DURATION_S: Final = 30.0
FLOODER: Final = "flooder"
BULK: Final = "bulk"


@dataclass(frozen=True, slots=True)
class Flood:
    """The quiet tenants, beside a flood and without it."""

    policy: str
    ttft_p99_alone_s: float
    ttft_p99_s: float
    e2e_p99_alone_s: float
    e2e_p99_s: float
    met_alone: float
    met: float
    """Share of the quiet tenants' requests that met all objectives."""

    @property
    def ratio(self) -> float:
        """The worse of both p99, beside the flood over alone."""
        alone = (self.ttft_p99_alone_s, self.e2e_p99_alone_s)
        beside = (self.ttft_p99_s, self.e2e_p99_s)
        return max(b / a if a else float("inf") for a, b in zip(alone, beside, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True, slots=True)
class Starved:
    """Bulk beside a crowd."""

    policy: str
    arrived: int
    served: int
    longest_drought_s: float
    """In which bulk waited and none was started."""
    longest_wait_s: float
    """Of a bulk request that was started."""
    bound_s: float
    crowd_met: float

    @property
    def within(self) -> bool:
        """Whether bulk was served, and never starved for longer than the bound."""
        return self.served > 0 and self.longest_drought_s <= self.bound_s

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "within": self.within}


# --- flood -----------------------------------------------------------------------------------------


def flood(policy: str = CHAMPION, fleet: str = FLEET, duration_s: float = DURATION_S) -> Flood:
    """One policy, twice on the same arrivals of the quiet tenants."""
    scale = scale_of(fleet, WORKLOAD)
    quiet = [_class(name, scale, QUIET_LOAD / len(TENANTS), tenant=name) for name in TENANTS]
    noisy = _class(FLOODER, scale, FLOOD_LOAD, tenant=FLOODER)
    alone = _run(fleet, contestants([policy])[0], quiet, duration_s)
    beside = _run(fleet, contestants([policy])[0], [*quiet, noisy], duration_s)
    before, after = _quiet(alone), _quiet(beside)
    return Flood(policy, before[0], after[0], before[1], after[1], before[2], after[2])


def _quiet(result: SimResult) -> tuple[float, float, float]:
    """p99 of TTFT and of the whole time of the quiet tenants, and the share that met all."""
    ones = [one for one in result.classes if one.name in TENANTS]
    p99 = []
    for name in ("ttft", "e2e"):
        whole = Histogram()
        for one in ones:
            whole.merge(one.times[name])
        p99.append(whole.quantile(0.99))
    return p99[0], p99[1], sum(one.met for one in ones) / max(1, sum(one.arrived for one in ones))


# --- bulk ------------------------------------------------------------------------------------------


class Watched:
    """A policy that is watched for when bulk comes and when it is placed. Satisfies core.ports.Policy."""

    def __init__(self, inner: Policy, into: BulkLog) -> None:
        self.name = inner.name
        self._inner = inner
        self._into = into

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """As the inner policy."""
        answer = self._inner.plan(request, fleet, now)
        if isinstance(answer, RoutePlan):
            self._into.started(request.id, now)
        return answer

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """As the inner policy."""
        return self._inner.bind_decode(request, prefill, fleet, now)

    def price_problem(self, fleet: FleetView, now: Seconds) -> PriceProblem | Unpriced | None:
        """As the inner policy, if it takes prices."""
        return self._inner.price_problem(fleet, now) if isinstance(self._inner, PriceTaker) else None

    def observe(self, fact: Any, now: Seconds) -> None:
        """Note arrivals of bulk."""
        if isinstance(fact, RequestArrived) and fact.request.priority is Priority.BULK:
            self._into.came(fact.request.id, now)
        elif isinstance(fact, RequestCancelled):
            self._into.gone(fact.request_id)
        self._inner.observe(fact, now)


class BulkLog:
    """When bulk came and was started."""

    def __init__(self) -> None:
        self._waiting: dict[str, Seconds] = {}
        self._placed: set[str] = set()
        self._since: Seconds = 0.0
        self.longest_drought_s = self.longest_wait_s = 0.0
        self.count = 0

    def came(self, request_id: str, now: Seconds) -> None:
        """The core tells of an arrival after it has handled it: a request may be placed by then."""
        if request_id in self._placed:
            return
        if not self._waiting:
            self._since = now
        self._waiting[request_id] = now

    def started(self, request_id: str, now: Seconds) -> None:
        """A request is placed; again after a failed attempt does not count."""
        if request_id in self._placed:
            return
        self._placed.add(request_id)
        came = self._waiting.pop(request_id, None)
        if came is None:
            return
        self.count += 1
        self.longest_wait_s = max(self.longest_wait_s, now - came)
        self.longest_drought_s = max(self.longest_drought_s, now - self._since)
        self._since = now

    def gone(self, request_id: str) -> None:
        """A request waits no more."""
        self._waiting.pop(request_id, None)


def starved(policy: str = CHAMPION, fleet: str = FLEET, duration_s: float = 2 * DURATION_S) -> Starved:
    """One policy."""
    scale, log = scale_of(fleet, WORKLOAD), BulkLog()
    crowd = _class("crowd", scale, CROWD_LOAD, priority=Priority.INTERACTIVE)
    bulk = _class(BULK, scale, BULK_LOAD, priority=Priority.BULK)
    inner = contestants([policy])[0]

    def make(outlook: Outlook) -> Policy:
        return Watched(inner.make(outlook), log)

    result = _run(fleet, Contestant(policy, make), [crowd, bulk], duration_s)
    by_name = {one.name: one for one in result.classes}
    return Starved(
        policy,
        by_name[BULK].arrived,
        by_name[BULK].ok,
        log.longest_drought_s,
        log.longest_wait_s,
        bound_s(),
        by_name["crowd"].attainment,
    )


def bound_s() -> Seconds:
    """The core's starvation bound; the longest wait of all in a version that has none."""
    limits = Limits()
    return float(getattr(limits, "starvation_s", limits.max_queue_s))


# --- both ------------------------------------------------------------------------------------------


def _class(
    name: str, scale: Scale, load: float, tenant: str = "", priority: Priority = Priority.NORMAL
) -> WorkloadClass:
    """A part of the chat workload, in Poisson arrivals. The name seeds its stream."""
    chat = load_workload(WORKLOAD).classes[0]
    bulk = priority is Priority.BULK
    return WorkloadClass(
        name,
        Renewal(scale.rate_per_s * load),
        chat.lengths,
        chat.model,
        chat.max_new_tokens,
        NO_OBJECTIVES if bulk else chat.slo,
        600.0 if bulk else chat.deadline_s,
        priority,
        ((tenant, 1.0),),
    )


def _run(fleet: str, who: Contestant, classes: Sequence[WorkloadClass], duration_s: Seconds) -> SimResult:
    load = served(Workload("overload", tuple(classes)), load_fleet(fleet))
    return play(load_fleet(fleet), load, who, 1, duration_s=duration_s)
