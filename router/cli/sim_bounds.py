"""Bounds beside simulations: what no policy could exceed on the arrivals of each load."""

from __future__ import annotations

from collections.abc import Callable

from router.plan.ladder import bound_only
from router.plan.recording import recorded
from router.plan.supply import Limits
from router.sim.experiment import Bound, Plan
from router.sim.run import simulate

WINDOW_S = 5.0


def bounds_for(plan: Plan, tell: Callable[[str], None]) -> list[Bound]:
    """The fluid bounds of each load, on the arrivals of the first seed. Raises ConfigError without SciPy.

    In a closed loop they bound what can be made of the arrivals that the first policy brought about.
    """
    found: list[Bound] = []
    for scale in plan.rate_scales:
        tell(f"bounds at x{scale:g}")
        contestant, recording = recorded(plan.policies[0])
        result = simulate(
            plan.fleet,
            plan.workload,
            contestant,
            plan.seeds[0],
            rate_scale=scale,
            requests=plan.requests,
            duration_s=plan.duration_s,
            limits=plan.limits,
            network=plan.network,
            solve=plan.solve,
            stop_when_unstable=False,
        )
        ladder = bound_only(recording.tasks(), plan.fleet.backends, WINDOW_S, Limits())
        found += [Bound(rung.name, scale, rung.requests / result.offered_s) for rung in ladder.rungs]
    return found
