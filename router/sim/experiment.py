"""Several simulations that belong together: policies, loads and seeds on one fleet and one workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from backends.catalogue import Fleet
from router.core.admission import Limits
from router.model import Seconds
from router.sim.classes import Workload
from router.sim.compare import Comparison, compare_all
from router.sim.network import Network
from router.sim.pricing import Solve
from router.sim.result import SimResult
from router.sim.run import Contestant, Failure, Progress, simulate

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be simulated."""

    fleet: Fleet
    workload: Workload
    policies: tuple[Contestant, ...]
    seeds: tuple[int, ...] = (1,)
    rate_scales: tuple[float, ...] = (1.0,)
    requests: int | None = None
    duration_s: Seconds | None = None
    limits: Limits | None = None
    network: Network | None = None
    stop_when_unstable: bool = True
    failures: tuple[Failure, ...] = ()
    solve: Solve | None = None
    """Works out prices for policies that take them."""

    @property
    def runs(self) -> int:
        """Simulations."""
        return len(self.policies) * len(self.seeds) * len(self.rate_scales)


@dataclass(frozen=True, slots=True)
class Bound:
    """An upper bound on goodput that no policy crosses, at one load."""

    name: str
    rate_scale: float
    goodput_per_s: float


@dataclass(frozen=True, slots=True)
class Experiment:
    """What was found."""

    plan: Plan
    results: tuple[SimResult, ...]
    comparisons: tuple[Comparison, ...]
    bounds: tuple[Bound, ...] = field(default=())

    def of(self, policy: str, rate_scale: float) -> list[SimResult]:
        """The runs of one policy at one load, seed by seed."""
        return [r for r in self.results if r.policy == policy and r.rate_scale == rate_scale]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the same plan gives the same bytes."""
        plan = self.plan
        return {
            "simulation": FORMAT,
            "fleet": plan.fleet.name,
            "workload": plan.workload.name,
            "policies": [one.label for one in plan.policies],
            "seeds": list(plan.seeds),
            "rate_scales": list(plan.rate_scales),
            "bounds": [
                {"name": b.name, "rate_scale": b.rate_scale, "goodput_per_s": b.goodput_per_s}
                for b in self.bounds
            ],
            "comparisons": [one.as_dict() for one in self.comparisons],
            "runs": [one.as_dict() for one in self.results],
        }


def carry_out(
    plan: Plan,
    progress: Callable[[int, Contestant, Progress], None] | None = None,
    bounds: Sequence[Bound] = (),
) -> Experiment:
    """Run everything, one after the other. `progress` gets the run's number, from 0. Raises ConfigError."""
    results: list[SimResult] = []
    for scale in plan.rate_scales:
        for policy in plan.policies:
            for seed in plan.seeds:
                results.append(_one(plan, policy, seed, scale, len(results), progress))
    return Experiment(plan, tuple(results), compare_all(results), tuple(bounds))


def _one(
    plan: Plan,
    policy: Contestant,
    seed: int,
    scale: float,
    number: int,
    progress: Callable[[int, Contestant, Progress], None] | None,
) -> SimResult:
    return simulate(
        plan.fleet,
        plan.workload,
        policy,
        seed,
        rate_scale=scale,
        requests=plan.requests,
        duration_s=plan.duration_s,
        limits=plan.limits,
        network=plan.network,
        stop_when_unstable=plan.stop_when_unstable,
        failures=plan.failures,
        solve=plan.solve,
        progress=None if progress is None else lambda p: progress(number, policy, p),
    )
