"""From demand to whole units: the min-cost twin of B1 with integers, for one goal at a time.

The program takes requests to be divisible and waits to be nothing, so its fleets are the smallest that could
ever do. `utilisation` below 1 leaves room for queues; how much is needed is found by simulation (verify.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from router.errors import ConfigError
from router.model import ModelBinding
from router.plan.fluid import Plan, Wish, capacity, cheapest
from router.plan.playback import Asked
from router.plan.program import InfeasibleError
from router.plan.supply import NO_LIMITS, Demand, Effort, Efforts, Limits, Supply
from router.plan.tasks import representatives
from router.plan.tco import Prices, nameplate_w
from router.plan.work import Task, floors_of, least_efforts

KINDS: Final = 36
"""Different tasks in a sizing program: means err far less than ignorance of the queues does."""
CONTENDERS: Final = 6
"""Types that a program with whole units chooses among; the others are worth less for their price."""
LITTLE: Final = 1e-3
"""Weight of dollars where another goal comes first, so that ties go to the cheaper fleet."""


class Goal(StrEnum):
    """What is to be least, or most."""

    CHEAPEST = "cheapest"
    LEAST_ENERGY = "least energy"
    MOST_FLEXIBLE = "most flexible"


Fleet = Mapping[str, int]
"""Units by supply; none is 0."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """A demand, what is on offer for it, and the limits."""

    named: Sequence[tuple[Demand, Task]]
    supplies: Sequence[Supply]
    efforts: Efforts
    prices: Prices
    limits: Limits
    min_flexible: float = 0.0

    @property
    def demands(self) -> list[Demand]:
        """Without their tasks."""
        return [demand for demand, _ in self.named]

    def only(self, names: Sequence[str]) -> Sizing:
        """With these supplies alone."""
        return replace(self, supplies=[s for s in self.supplies if s.name in names])

    def scaled(self, load: float) -> Sizing:
        """With so many times the load."""
        named = [(replace(demand, rate=demand.rate * load), task) for demand, task in self.named]
        return replace(self, named=named)


def sizing_of(
    asked: Asked,
    supplies: Sequence[Supply],
    prices: Prices,
    limits: Limits = NO_LIMITS,
    min_flexible: float = 0.0,
    slo_scale: float = 1.0,
) -> Sizing:
    """Work out the demand's kinds and their efforts; `slo_scale` stretches the TTFT and TPOT objectives."""
    means = representatives([_stretched(one.task, slo_scale) for one in asked.tasks], KINDS)
    counts: Counter[str] = Counter()
    for task, count in means:
        counts[task.workload_class] += count
    floors, specs = floors_of([task for task, _ in means]), [supply.spec for supply in supplies]
    named: list[tuple[Demand, Task]] = []
    efforts: dict[tuple[str, str], Effort] = {}
    for number, (task, count) in enumerate(means):
        rate = asked.rates[task.workload_class] * count / counts[task.workload_class]
        demand = Demand(f"{task.workload_class}-{number}", rate, task.model)
        named.append((demand, task))
        found = least_efforts(task, specs, floors)
        efforts |= {(demand.name, s.name): effort for s, effort in zip(supplies, found, strict=True)}
    return Sizing(named, supplies, efforts, prices, limits, min_flexible)


def _stretched(task: Task, scale: float) -> Task:
    return replace(task, ttft_s=task.ttft_s * scale, tpot_s=task.tpot_s * scale)


def size(sizing: Sizing, goal: Goal, utilisation: float = 1.0, *, whole: bool = True) -> Plan:
    """Units for a goal. Raises InfeasibleError when no number of them will do."""
    if goal is not Goal.MOST_FLEXIBLE:
        return _solve(sizing, goal, utilisation, sizing.min_flexible, whole)
    for share in (1.0, 0.75, 0.5, 0.25):
        if share > sizing.min_flexible:
            try:
                return _solve(sizing, goal, utilisation, share, whole)
            except InfeasibleError:
                continue
    return _solve(sizing, goal, utilisation, sizing.min_flexible, whole)


def _solve(sizing: Sizing, goal: Goal, utilisation: float, flexible: float, whole: bool) -> Plan:
    names = loadable(sizing.supplies)
    if flexible >= 1.0:
        sizing, flexible = sizing.only(sorted(names)), 0.0  # what cannot be kept adds nothing
    wish = Wish(unit_prices(sizing, goal), _price_per_w(sizing, goal), False, utilisation, names, flexible)
    plan = cheapest(sizing.demands, sizing.supplies, sizing.efforts, wish, sizing.limits)
    if not whole:
        return plan
    few = sizing.only(_contenders(sizing, wish, plan))
    return cheapest(few.demands, few.supplies, few.efforts, replace(wish, whole=True), few.limits)


def _worth(sizing: Sizing, plan: Plan, prices: Mapping[str, float]) -> dict[str, float]:
    """By type: what a unit is worth to a divisible plan, over its price. At 1 the plan buys it; a type at
    0.8 would be bought from 0.8 times its price on."""
    found = {s.name: 0.0 for s in sizing.supplies}
    for row, dual in plan.duals.items():
        kind, _, name = row.removeprefix("fallback ").partition(":")
        if kind in {"device", "prompts", "kv", "link", "ingress"}:
            found[name] += -dual / max(prices[name], 1e-12)
    return found


def _contenders(sizing: Sizing, wish: Wish, plan: Plan) -> list[str]:
    """The types that a whole-unit program should look at; under limits, all of them."""
    if sizing.limits != NO_LIMITS or len(sizing.supplies) <= CONTENDERS:
        return [s.name for s in sizing.supplies]
    ranked = sorted(_worth(sizing, plan, wish.prices).items(), key=lambda item: -item[1])
    used = {name for name, units in plan.units.items() if units > 1e-9}
    return list(dict.fromkeys([*used, *(name for name, _ in ranked[:CONTENDERS])]))


def fleet_of(plan: Plan) -> dict[str, int]:
    """Whole units of a plan."""
    return {name: round(units) for name, units in plan.units.items() if round(units) > 0}


def loadable(supplies: Sequence[Supply]) -> frozenset[str]:
    """Types that can load any model."""
    return frozenset(s.name for s in supplies if s.spec.binding is ModelBinding.LOADABLE)


def kept_when_the_model_changes(sizing: Sizing, fleet: Fleet) -> float:
    """Share of the demand that the loadable part of a fleet could still serve, in [0, 1]."""
    rest = [replace(s, units=fleet[s.name]) for s in sizing.supplies if fleet.get(s.name)]
    rest = [s for s in rest if s.name in loadable(rest)]
    return min(1.0, capacity(sizing.demands, rest, sizing.efforts).objective) if rest else 0.0


def capacity_of_fleet(sizing: Sizing, fleet: Fleet) -> Plan:
    """B1 of a fleet, relative to the demand."""
    owned = [replace(s, units=fleet[s.name]) for s in sizing.supplies if fleet.get(s.name)]
    return capacity(sizing.demands, owned, sizing.efforts)


def why_infeasible(sizing: Sizing) -> ConfigError:
    """What stands in the way: a class nobody serves in time, or a limit, with what it would have to be."""
    for demand, task in sizing.named:
        efforts = {s.name: sizing.efforts[demand.name, s.name] for s in sizing.supplies}
        stages = {
            "prefill": {name: e.no_prefill for name, e in efforts.items()},
            "decode": {name: e.no_decode for name, e in efforts.items()},
        }
        for phase, reasons in stages.items():
            if all(reasons.values()):
                listed = "; ".join(f"{name}: {why}" for name, why in reasons.items())
                return ConfigError(
                    f"class {task.workload_class!r} cannot be served: no device on offer can {phase} "
                    f"a prompt of {task.prompt_tokens} tokens with an answer of {task.output_tokens} in time "
                    f"({listed}). Relax its objectives, or add devices."
                )
    return _which_limit(sizing)


def _which_limit(sizing: Sizing) -> ConfigError:
    """Each limit against the least that any fleet of whole units takes of it."""
    limits, lacks = sizing.limits, [*_lacks(sizing)]
    if not lacks and sizing.min_flexible > 0.0:
        lacks.append(f"devices that can load any model cannot serve {sizing.min_flexible:.0%} of it")
    reason = "; ".join(lacks) or (
        f"each limit can be met alone, but not {limits.usd_per_hour:g} USD/h, "
        f"{limits.provisioned_w / 1000:.3g} kW and a flexible share of {sizing.min_flexible:.0%} together"
    )
    return ConfigError(f"no fleet meets all limits: {reason}. Relax a limit, the objectives or the load.")


def _lacks(sizing: Sizing) -> Iterator[str]:
    limits = sizing.limits
    try:
        usd = _least(sizing, {s.name: s.spec.usd_per_hour for s in sizing.supplies})
        watts = _least(sizing, {s.name: nameplate_w(s.spec) for s in sizing.supplies})
    except InfeasibleError:
        yield f"more than {max(s.units for s in sizing.supplies):g} units of a type would be needed"
        return
    if usd > limits.usd_per_hour:
        yield f"the rent is at least {usd:.2f} USD/h and the budget is {limits.usd_per_hour:.2f}"
    if watts > limits.provisioned_w:
        least, most = watts * sizing.prices.pue / 1000, limits.provisioned_w * sizing.prices.pue / 1000
        yield f"at least {least:.3g} kW have to be provisioned at the site and the limit is {most:.3g} kW"


def _least(sizing: Sizing, prices: Mapping[str, float]) -> float:
    """The least that whole units cost in any prices, without limits."""
    return cheapest(sizing.demands, sizing.supplies, sizing.efforts, Wish(prices, whole=True)).objective


def unit_prices(sizing: Sizing, goal: Goal) -> dict[str, float]:
    """What one idle unit of each type costs by a goal: USD an hour, or watts."""
    prices = sizing.prices
    found: dict[str, float] = {}
    for supply in sizing.supplies:
        idle_w = supply.spec.power.idle_w
        usd = prices.unit_usd_per_hour(supply.name, supply.spec) + prices.power_usd_per_hour(idle_w)
        found[supply.name] = usd if goal is not Goal.LEAST_ENERGY else idle_w + LITTLE * usd
    return found


def _price_per_w(sizing: Sizing, goal: Goal) -> float:
    return 1.0 if goal is Goal.LEAST_ENERGY else sizing.prices.usd_per_w
