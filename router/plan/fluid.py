"""B1: the fluid linear program. Requests are divisible, time is an average, and nothing ever waits.

Three questions on one network of phases (network.py):

    capacity   the largest theta such that every class is served at theta times its rate
    most       the most requests of a span of time, in any mix, that end within their objectives
    cheapest   the units to buy so that theta = 1, whole or divisible (the min-cost twin)

under device time, KV room (Little's law), KV links, power and dollars. Duals say what one more of each is
worth. The answer bounds every policy if the efforts are lower bounds; work.py says when they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from router.plan.network import Network
from router.plan.program import Program, Solution
from router.plan.supply import NO_LIMITS, Demand, Efforts, Limits, Supply


@dataclass(frozen=True, slots=True)
class Share:
    """Requests per second (or requests of the span) of one class that one type prefills and decodes."""

    demand: str
    supply: str
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The optimum, and what it rests on."""

    objective: float
    """theta, the number of requests, or the cost, as asked."""
    served: float
    """Requests per second, or requests of the span."""
    units: Mapping[str, float]
    """By supply: units bought, or switched on."""
    shares: tuple[Share, ...]
    duals: Mapping[str, float]
    """Gain of the objective per unit more of a limit: device:<type>, kv:<type> and link:<type> for what one
    backend of the type has of device time, KV room and egress; unit:<type> for one more backend; power for
    a watt; usd for a dollar an hour."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What `cheapest` is to buy."""

    prices: Mapping[str, float]
    """Of one unit, by supply; any unit of money or merit."""
    price_per_w: float = 0.0
    """Of a watt drawn above idle, in the same unit."""
    whole: bool = False
    utilisation: float = 1.0
    """Share of each unit's time that may be planned for."""
    fallback: frozenset[str] = frozenset()
    """Types that alone must be able to serve `fallback_share` of every class."""
    fallback_share: float = 0.0


def capacity(
    demands: Sequence[Demand], supplies: Sequence[Supply], efforts: Efforts, limits: Limits = NO_LIMITS
) -> Plan:
    """The largest theta; 0 when some class can be served by nobody."""
    program = Program()
    network = standing(program, demands, supplies, efforts, 1.0, limits)
    theta = program.variable(1.0)
    for k, demand in enumerate(demands):
        network.serve(k, [(theta, demand.rate)])
    total = sum(demand.rate for demand in demands)
    return _plan(
        program.maximise(), network, demands, supplies, lambda solution: max(0.0, solution[theta]) * total
    )


def most(
    demands: Sequence[Demand],
    supplies: Sequence[Supply],
    efforts: Efforts,
    span_s: float,
    limits: Limits = NO_LIMITS,
) -> Plan:
    """The most requests; a demand's rate is its number of requests in the span of `span_s` seconds."""
    program = Program()
    network = standing(program, demands, supplies, efforts, span_s, limits)
    for k, demand in enumerate(demands):
        network.serve(k, [(program.variable(1.0, upper=demand.rate), 1.0)])
    return _plan(program.maximise(), network, demands, supplies, lambda solution: solution.objective)


def cheapest(
    demands: Sequence[Demand],
    supplies: Sequence[Supply],
    efforts: Efforts,
    wish: Wish,
    limits: Limits = NO_LIMITS,
) -> Plan:
    """Units at least cost that serve all demand; a supply's units are the most that can be bought.

    Raises InfeasibleError when no number of units within the limits does.
    """
    program = Program()
    units = [program.variable(wish.prices[s.name], upper=s.units, integer=wish.whole) for s in supplies]
    network = Network(program, demands, supplies, efforts, units, 1.0, wish.price_per_w)
    network.limit(wish.utilisation)
    network.cap(limits)
    for k, demand in enumerate(demands):
        network.serve(k, [], demand.rate)
    if wish.fallback_share > 0.0:
        _keep(program, demands, supplies, efforts, units, wish)
    total = sum(demand.rate for demand in demands)
    return _plan(program.minimise(), network, demands, supplies, lambda solution: total)


def _keep(
    program: Program,
    demands: Sequence[Demand],
    supplies: Sequence[Supply],
    efforts: Efforts,
    units: Sequence[int],
    wish: Wish,
) -> None:
    """A second network on the same units, of the fallback types alone."""
    kept = [d for d, supply in enumerate(supplies) if supply.name in wish.fallback]
    rest = [supplies[d] for d in kept]
    network = Network(program, demands, rest, efforts, [units[d] for d in kept], 1.0)
    network.limit(wish.utilisation, "fallback ")
    for k, demand in enumerate(demands):
        network.serve(k, [], demand.rate * wish.fallback_share)


def standing(
    program: Program,
    demands: Sequence[Demand],
    supplies: Sequence[Supply],
    efforts: Efforts,
    span_s: float,
    limits: Limits,
) -> Network:
    """A network on a fleet that stands; under a power cap, units may be switched off."""
    units = [program.variable(upper=math.inf) for _ in supplies]
    for supply, unit in zip(supplies, units, strict=True):
        program.at_most([(unit, 1.0)], supply.units, f"unit:{supply.name}")
    network = Network(program, demands, supplies, efforts, units, span_s)
    network.limit()
    network.cap(limits)
    return network


def _plan(
    solution: Solution,
    network: Network,
    demands: Sequence[Demand],
    supplies: Sequence[Supply],
    served: Callable[[Solution], float],
) -> Plan:
    shares: list[Share] = []
    for k, demand in enumerate(demands):
        for d, supply in enumerate(supplies):
            prefill, decode = network.amounts(solution, k, d)
            shares.append(Share(demand.name, supply.name, prefill, decode))
    units = {supply.name: solution[unit] for supply, unit in zip(supplies, network.units, strict=True)}
    return Plan(solution.objective, served(solution), units, tuple(shares), solution.duals)
