"""One simulation as all of the comparison make it: to its end, however high the load, and with prices for
policies that take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from backends.catalogue import Fleet
from router.model import BackendSpec, Seconds
from router.plan.prices import prices_of
from router.prices import PriceProblem, Prices
from router.sim.classes import Workload
from router.sim.result import SimResult
from router.sim.run import Contestant, simulate

SOLVE_S: Final = 120.0


def play(
    fleet: Fleet | Sequence[BackendSpec],
    workload: Workload,
    who: Contestant,
    seed: int = 1,
    *,
    rate_scale: float = 1.0,
    requests: int | None = None,
    duration_s: Seconds | None = None,
) -> SimResult:
    """Run it. Raises ConfigError for a fleet that cannot serve the workload."""
    return simulate(
        fleet,
        workload,
        who,
        seed,
        rate_scale=rate_scale,
        requests=requests,
        duration_s=duration_s,
        stop_when_unstable=False,
        solve=_patiently,
    )


def _patiently(problem: PriceProblem) -> Prices:
    """A solver that is short of time gives no answer, and the same run another result on a busy machine."""
    return prices_of(problem, SOLVE_S)
