"""Bounds for the reports of simulations: lines that no policy's goodput can cross."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from router.errors import ConfigError
from router.plan.bounds import bounds_of, case_of
from router.plan.playback import play
from router.plan.supply import supplies_of
from router.sim.experiment import Bound, Plan

WINDOW_S: Final = 5.0
MOST_REQUESTS: Final = 20_000
"""Beyond it a bound takes longer than the simulation."""
MOST_KINDS: Final = 200


def report_bounds(plan: Plan) -> tuple[Bound, ...]:
    """B1 and B2 at each load of an experiment, in requests per second of arrivals.

    A result's goodput is per second of its whole duration, which is no shorter. Arrivals of closed loops are
    those of a fleet that just holds the objectives. Loads whose programs would be too large are left out.
    Raises ConfigError without SciPy.
    """
    return tuple(bound for scale in plan.rate_scales for bound in _at(plan, scale))


def _at(plan: Plan, scale: float) -> list[Bound]:
    workload = plan.workload
    if plan.requests is not None or plan.duration_s is not None:
        duration_s = float("inf") if plan.duration_s is None else plan.duration_s
        workload = replace(workload, requests=plan.requests, duration_s=duration_s)
    asked = play(workload, plan.seeds[0], scale, sample=MOST_REQUESTS + 1)
    if len(asked.tasks) > MOST_REQUESTS or asked.arrivals_s <= 0.0:
        return []
    case = case_of(asked.tasks, supplies_of(plan.fleet.backends), MOST_KINDS)
    try:
        found = bounds_of(case, WINDOW_S)
    except ConfigError as error:
        if "SciPy" in error.message:
            raise
        return []
    named = (("B1", found.whole_span), (f"B2, {WINDOW_S:g} s", found.windows))
    return [Bound(name, scale, requests / asked.arrivals_s) for name, requests in named]
