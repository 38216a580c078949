"""What advice is asked for and what it says. Values only; the search is in advise.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from router.plan.candidates import Market
from router.plan.playback import Asked
from router.plan.sensitivity import Flip
from router.plan.sizing import Fleet, Goal
from router.plan.supply import NO_LIMITS, Limits
from router.plan.tco import DEFAULT_PRICES, Prices
from router.plan.verify import Trial
from router.sim.classes import Workload
from router.sim.run import Contestant


@dataclass(frozen=True, slots=True)
class Brief:
    """What advice is asked for."""

    workload: Workload
    policy: Contestant
    devices: Sequence[str] = ()
    assumed: bool = False
    limits: Limits = NO_LIMITS
    min_flexible: float = 0.0
    prices: Prices = DEFAULT_PRICES
    target: float = 0.95
    rate_scale: float = 1.0
    seed: int = 1
    sensitivity: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """One fleet, verified or not."""

    goals: tuple[str, ...]
    """What it is best at; empty for a comparison."""
    fleet: Fleet
    trial: Trial
    rent_usd_per_hour: float
    """Chip-hours or capital, and racks."""
    power_usd_per_hour: float
    """At the mean power of the simulation."""
    provisioned_kw: float
    """At the site."""
    rigidity: float
    """Share of the demand that is lost when the model changes: what is left can load any model."""
    headroom: float
    """B1 of the fleet over the demand."""
    pooling: float
    """B1 of the fleet over the sum of what its types could do as silos; 1 for one type."""

    @property
    def usd_per_hour(self) -> float:
        """Total cost of ownership."""
        return self.rent_usd_per_hour + self.power_usd_per_hour

    @property
    def is_mixed(self) -> bool:
        """Whether it has more than one type."""
        return len(self.fleet) > 1


@dataclass(frozen=True, slots=True)
class Advice:
    """The ranked answers."""

    brief: Brief
    asked: Asked
    market: Market
    answers: tuple[Answer, ...]
    """All hold the objectives in simulation; cheapest first."""
    unmet: Mapping[str, str]
    """Goals without an answer, and why."""
    flips: tuple[Flip, ...]
    trials: int

    @property
    def best(self) -> Answer | None:
        """The cheapest."""
        return self.answers[0] if self.answers else None


MERITS: Final[Mapping[Goal, Callable[[Answer], float]]] = {
    Goal.CHEAPEST: lambda one: one.usd_per_hour,
    Goal.LEAST_ENERGY: lambda one: one.trial.watts,
    Goal.MOST_FLEXIBLE: lambda one: one.usd_per_hour,
}
"""By goal: what is least in its answer, among the fleets that are allowed for it."""


def as_dict(advice: Advice) -> dict[str, Any]:
    """For JSON."""
    return {
        "workload": advice.brief.workload.name,
        "policy": advice.brief.policy.label,
        "target": advice.brief.target,
        "rates": dict(advice.asked.rates),
        "jobs": dict(advice.asked.jobs),
        "answers": [_answer_dict(one) for one in advice.answers],
        "unmet": dict(advice.unmet),
        "flips": [{"what": f.what, "at": f.at, "then": f.then} for f in advice.flips],
        "assumed_prices": sorted(c.supply.name for c in advice.market.candidates if c.price_is_assumed),
        "refused": dict(advice.market.refused),
        "simulations": advice.trials,
    }


def _answer_dict(one: Answer) -> dict[str, Any]:
    return {
        "goals": list(one.goals),
        "fleet": dict(one.fleet),
        "holds": one.trial.holds,
        "why_not": one.trial.why_not,
        "attainment": dict(one.trial.attainment),
        "requests_simulated": one.trial.requests,
        "usd_per_hour": one.usd_per_hour,
        "rent_usd_per_hour": one.rent_usd_per_hour,
        "power_usd_per_hour": one.power_usd_per_hour,
        "mean_w": one.trial.watts,
        "peak_w": one.trial.peak_w,
        "provisioned_kw": one.provisioned_kw,
        "rigidity": one.rigidity,
        "headroom": one.headroom,
        "pooling": one.pooling,
        "routes": [
            {"class": r.workload_class, "prefill": r.prefill, "decode": r.decode, "share": r.share}
            for r in one.trial.flows
        ],
    }
