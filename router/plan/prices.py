"""Prices of a fleet's resources: the duals of the fluid program B1, with a price for crowding.

    maximise   sum worth_k served_k - sum N_d Q(load_d) - usd_s x dollars       served_k <= rate_k

on the network of phases (network.py), where load_d is the share of the scarcest resource of type d that is in
use. Q(x) = x / (1 - x) + ln(1 - x) is convex with the slope x / (1 - x)^2: in an M/M/1 queue that many
seconds of waiting are caused to others by one more second of work (the derivative of the mean number in the
system less the own time). Hence prices are in seconds of delay, rise smoothly with the load, and are unique
but at the edges of the pieces by which Q is made linear: a plain theta program has prices for its bottlenecks
alone, and several that are as good.

Assumed: work at a backend of the type queues as in M/M/1. With steadier work, or with several backends that
share a queue, less waiting is caused; the policy has a weight for that.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from router.plan.network import Network
from router.plan.program import Program, Solution, Term
from router.plan.steps import BESIDE, overlaps
from router.plan.supply import Demand, Effort, Efforts, Limits, Supply
from router.prices import GroupPrice, PricedClass, PricedGroup, PricedUse, PriceProblem, Prices

LOWEST_PRICE: Final = 0.05
"""Of the first piece of Q but for a free one: a load of 5 %."""
HIGHEST_PRICE: Final = 1000.0
"""Of the last one: a load of 97 %; nothing is planned above."""
STEP: Final = 1.25
"""Ratio of the prices of neighbouring pieces."""
TIME_LIMIT_S: Final = 2.0
"""For HiGHS; prices that take longer are late anyway."""


def prices_of(problem: PriceProblem, time_limit_s: float = TIME_LIMIT_S) -> Prices:
    """Solve a problem. Raises ConfigError for no answer in time, or without SciPy."""
    program = Program()
    demands = [Demand(f"class-{k}", one.rate, one.model) for k, one in enumerate(problem.classes)]
    supplies = [_supply(group) for group in problem.groups]
    units = [_crowding(program, supply, problem.usd_s) for supply in supplies]
    network = Network(program, demands, supplies, _efforts(problem), units, 1.0)
    network.limit()
    network.cap(Limits(power_w=_headroom_w(problem)))
    served = [_serve(program, network, k, one) for k, one in enumerate(problem.classes)]
    solution = program.maximise(time_limit_s)
    groups = [_price(solution, s, unit) for s, unit in zip(supplies, units, strict=True)]
    came = sum(one.rate for one in problem.classes)
    share = sum(solution[one] for one in served) / came if came > 0.0 else 1.0
    return Prices(problem.at, tuple(groups), _dual(solution, "power"), min(1.0, share))


def load_at(price: float) -> float:
    """The load at which one more second of work causes `price` seconds of waiting: x / (1 - x)^2 = price."""
    return (2.0 * price + 1.0 - math.sqrt(4.0 * price + 1.0)) / (2.0 * price)


def _crowding(program: Program, supply: Supply, usd_s: float) -> int:
    """A variable for the units in use, paid for piece by piece."""
    pieces: list[Term] = []
    rent = usd_s * supply.spec.usd_per_hour / 3600.0
    edge, price = load_at(LOWEST_PRICE), LOWEST_PRICE
    pieces.append((program.variable(-rent, upper=edge * supply.units), -1.0))
    while price < HIGHEST_PRICE:
        upto = load_at(price * STEP)
        slope = price * math.sqrt(STEP)
        pieces.append((program.variable(-slope - rent, upper=(upto - edge) * supply.units), -1.0))
        edge, price = upto, price * STEP
    used = program.variable()
    program.equal([(used, 1.0), *pieces], 0.0)
    return used


def _serve(program: Program, network: Network, k: int, one: PricedClass) -> int:
    served = program.variable(one.worth_s, upper=one.rate)
    network.serve(k, [(served, 1.0)])
    return served


def _supply(group: PricedGroup) -> Supply:
    """Idle power is drawn anyway: the cap is lowered by it instead."""
    spec = replace(group.spec, id=group.name, power=replace(group.spec.power, idle_w=0.0))
    return Supply(group.name, spec, group.units)


def _headroom_w(problem: PriceProblem) -> float:
    idle_w = sum(group.units * group.spec.power.idle_w for group in problem.groups)
    return max(0.0, problem.power_cap_w - idle_w)


def _efforts(problem: PriceProblem) -> Efforts:
    return {
        (f"class-{k}", group.name): _effort(use)
        for k, one in enumerate(problem.classes)
        for group, use in zip(problem.groups, one.uses, strict=True)
    }


def _effort(use: PricedUse) -> Effort:
    return Effort(
        use.prefill_s if use.prefills else 0.0,
        use.decode_s if use.decodes else 0.0,
        use.kv_token_s,
        use.egress_bytes,
        use.prefill_j,
        use.decode_j,
        no_prefill="" if use.prefills else "no",
        no_decode="" if use.decodes else "no",
    )


def _price(solution: Solution, supply: Supply, unit: int) -> GroupPrice:
    spec, rows = supply.spec, ("device", "prompts", "kv", "link", "ingress")
    device, prompts, kv, link, ingress = (_dual(solution, f"{row}:{supply.name}") for row in rows)
    return GroupPrice(
        supply.name,
        BESIDE * device + prompts if overlaps(spec) else device,
        device,
        _per(kv, spec.kv_capacity_tokens),
        _per(link, spec.link.bandwidth_bytes_per_s),
        _per(ingress, spec.link.ingress_bytes_per_s),
        device + prompts + kv + link + ingress,
        min(1.0, max(0.0, solution[unit] / supply.units)),
    )


def _dual(solution: Solution, row: str) -> float:
    """Rows that nobody uses, or without a limit, are not in the program."""
    return max(0.0, solution.duals.get(row, 0.0))


def _per(worth: float, per_unit: float) -> float:
    """A row counts shares of what one unit has of a resource."""
    return worth / per_unit if 0.0 < per_unit < math.inf else 0.0
