"""Three times more than the fleet can do: the core's shares, in simulation, under a policy that has none.

Requests of one kind, lengths of a trace, Poisson arrivals, one seed: the numbers are the same in every run.
"""

from __future__ import annotations

from backends.catalogue import load_fleet
from router.core.admission import Limits
from router.model import Priority, Seconds
from router.sim.classes import Renewal, TraceLengths, Workload, WorkloadClass
from router.sim.contest import contestant
from router.sim.result import ClassResult
from router.sim.run import simulate
from router.sim.workload import load_trace
from router.sim.workload_file import DEFAULT_MODEL

CAPACITY = 23.0
"""Requests per second that one H100 with the 8B model sustains of this trace, about."""
DURATION_S = 40.0


def traffic(name: str, rate: float, tenants: int, priority: Priority = Priority.NORMAL) -> WorkloadClass:
    """Requests of so many equal tenants."""
    rows = TraceLengths(load_trace("azure"), in_order=False)
    who = tuple((f"{name}-{i}", 1.0) for i in range(tenants))
    return WorkloadClass(name, Renewal(rate), rows, DEFAULT_MODEL, tenants=who, priority=priority)


def outcome(limits: Limits, gpus: int, *classes: WorkloadClass) -> dict[str, ClassResult]:
    """What becomes of them on equal GPUs."""
    fleet = load_fleet("homogeneous").backends[:gpus]
    workload = Workload("overload", classes)
    result = simulate(
        fleet,
        workload,
        contestant("least_loaded"),
        duration_s=DURATION_S,
        limits=limits,
        stop_when_unstable=False,
    )
    return {one.name: one for one in result.classes}


def p99(of: ClassResult, latency: str) -> Seconds:
    """A latency of those that ended well."""
    return of.times[latency].quantile(0.99)


def test_a_flood_hardly_moves_the_others() -> None:
    """A tenant that has as much of a busy fleet as it may makes its load sixfold, 3 x capacity in all. With
    half of the fleet reserved, the p99 of the others' first tokens and whole answers moves by less than a
    tenth, and all of them are answered."""
    limits = Limits(tenant_reserve=0.5)
    others = traffic("others", 0.45 * 4 * CAPACITY, 4)
    busy = outcome(limits, 4, others, traffic("one", 0.45 * 4 * CAPACITY, 1))["others"]
    flood = outcome(limits, 4, others, traffic("one", 2.55 * 4 * CAPACITY, 1))["others"]
    assert flood.ok == flood.arrived == busy.ok
    assert p99(flood, "ttft") <= 1.1 * p99(busy, "ttft")
    assert p99(flood, "e2e") <= 1.1 * p99(busy, "e2e")


def test_bulk_is_served_within_the_starvation_bound() -> None:
    """Beside 2.9 x capacity of a higher class, with next to no share of its own and nothing reserved: bulk
    goes first after the bound, and waits for no more than the next room that is large enough (2 s here)."""
    limits = Limits(
        bulk_share=0.01, starvation_s=5.0, starvation_share=0.3, tenant_reserve=0.0, class_reserve=0.0
    )
    bulk = traffic("bulk", 0.04 * CAPACITY, 2, Priority.BULK)
    found = outcome(limits, 1, bulk, traffic("higher", 2.9 * CAPACITY, 1, Priority.INTERACTIVE))["bulk"]
    assert found.ok >= 0.9 * found.arrived
    assert p99(found, "queue") <= 5.0 + 2.0
