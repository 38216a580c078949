"""The ladder of bounds for one fleet and one list of requests.

    online <= clairvoyant (B4) <= OPT <= B3 <= B2 <= B1

Counted are requests that end within all their objectives. Jitter is left out, which leaves the bounds valid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from router.model import Seconds
from router.plan.fluid import Plan, capacity, most
from router.plan.supply import NO_LIMITS, Demand, Efforts, Limits, Supply
from router.plan.tasks import Timed, coarsen, kinds
from router.plan.windows import most_in_windows
from router.plan.work import Task, floors_of, least_efforts

KINDS: Final = 400
"""Different tasks in one program; more are rounded down to a coarser grid."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Upper bounds, in requests."""

    requests: int
    span_s: Seconds
    """From the first arrival until nothing more can end in time."""
    whole_span: float
    """B1."""
    windows: float
    """B2."""
    window_s: Seconds
    """Of B2; longer than asked for where the program would have been too large."""
    unservable: int
    """Requests that no backend can serve in time even when idle (B0)."""


@dataclass(frozen=True, slots=True)
class Case:
    """Tasks, supplies and what the one costs the other."""

    tasks: Sequence[Timed]
    """On the grid, the first at 0."""
    named: Sequence[tuple[Demand, Task]]
    supplies: Sequence[Supply]
    efforts: Efforts
    span_s: Seconds


def case_of(tasks: Sequence[Timed], supplies: Sequence[Supply], most_kinds: int = KINDS) -> Case:
    """Round the tasks, and work out their least efforts."""
    start = min((one.at_s for one in tasks), default=0.0)
    moved = [Timed(one.at_s - start, one.task) for one in tasks]
    rounded = coarsen(moved, most_kinds)
    floors = floors_of([one.task for one in rounded])
    named = [
        (Demand(f"kind-{number}", count, task.model), task)
        for number, (task, count) in enumerate(kinds(rounded).items())
    ]
    specs = [supply.spec for supply in supplies]
    efforts = {
        (demand.name, supply.name): effort
        for demand, task in named
        for supply, effort in zip(supplies, least_efforts(task, specs, floors), strict=True)
    }
    return Case(rounded, named, supplies, efforts, span_of(moved))


def span_of(tasks: Sequence[Timed]) -> Seconds:
    """Until the last of them can end in time; infinite when one may take for ever."""
    return max((one.latest_end_s for one in tasks), default=0.0)


def bounds_of(case: Case, window_s: Seconds, limits: Limits = NO_LIMITS) -> Bounds:
    """B0, B1 and B2 of a case. Raises ConfigError when a program is too large."""
    lost = sum(round(d.rate) for d, _ in case.named if not _servable(case, d.name))
    count = len(case.tasks)
    if math.isinf(case.span_s) or not count:
        reachable = float(count - lost)  # without a due time everything ends in time, some day
        return Bounds(count, case.span_s, reachable, reachable, window_s, lost)
    demands = [demand for demand, _ in case.named]
    whole = most(demands, case.supplies, case.efforts, case.span_s, limits).objective
    parts, window_s = most_in_windows(
        case.tasks, case.named, case.supplies, case.efforts, window_s, case.span_s, limits
    )
    return Bounds(count, case.span_s, whole, min(whole, parts), window_s, lost)


def capacity_of(case: Case, arrivals_s: Seconds, limits: Limits = NO_LIMITS) -> Plan:
    """B1 in rates: how much of this mix, relative to what came in `arrivals_s` seconds, the fleet sustains.

    Kinds that nobody can serve are left out; otherwise one of them would make it 0.
    """
    demands = [
        Demand(demand.name, demand.rate / arrivals_s, demand.model)
        for demand, _ in case.named
        if _servable(case, demand.name)
    ]
    return capacity(demands, case.supplies, case.efforts, limits)


def _servable(case: Case, name: str) -> bool:
    efforts = [case.efforts[name, supply.name] for supply in case.supplies]
    return any(not e.no_prefill for e in efforts) and any(not e.no_decode for e in efforts)


def reasons(case: Case) -> Mapping[str, Mapping[str, str]]:
    """By workload class that has unservable requests: by supply, why the first of them cannot run there."""
    found: dict[str, dict[str, str]] = {}
    for demand, task in case.named:
        if not _servable(case, demand.name):
            why = {s.name: _why(case, demand.name, s) for s in case.supplies}
            found.setdefault(task.workload_class, why)
    return found


def _why(case: Case, name: str, supply: Supply) -> str:
    effort = case.efforts[name, supply.name]
    both = "; ".join(filter(None, (effort.no_prefill, effort.no_decode)))
    return both or "it can, but not both phases together"
