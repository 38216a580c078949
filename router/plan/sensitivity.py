"""At which price, load or objective the answer becomes another fleet.

Prices: exactly, among the fleets that were verified; their costs are lines in each price, so the crossing
is a formula. Loads and objectives: by the program with whole units, at the share of the units that could be
planned for, since every load would have to be simulated anew; the factor is moved away from 1 in steps, and
the step in which the set of types changes is halved until it is known within 10 %. Nothing is simulated here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from router.plan.playback import Asked
from router.plan.program import InfeasibleError
from router.plan.sizing import Fleet, Goal, Sizing, fleet_of, size, sizing_of

PRECISION: Final = 1.1
LOADS: Final = (1.5, 2.5, 5.0)
LIGHTER: Final = (0.7, 0.4, 0.2)
STRICTER: Final = (0.8, 0.6, 0.4)
LOOSER: Final = (1.3, 2.0, 4.0)
MOST: Final = 10.0
"""Factors beyond it, or below its inverse, are not mentioned."""
Mix = frozenset[str]


@dataclass(frozen=True, slots=True)
class Flip:
    """A factor at which the answer changes."""

    what: str
    at: float
    """Times what it is now."""
    then: str
    """The fleet, or the types, that are the answer beyond it."""


@dataclass(frozen=True, slots=True)
class Costed:
    """A verified fleet as a sum of prices."""

    name: str
    parts: Mapping[str, float]
    """USD an hour by what it is paid for: a type of device, or `electricity`."""

    @property
    def usd_per_hour(self) -> float:
        """All of it."""
        return sum(self.parts.values())


def price_flips(best: Costed, others: Sequence[Costed]) -> Iterator[Flip]:
    """For each price the nearest factor above and below 1 at which another verified fleet is cheaper."""
    paid = dict.fromkeys([*best.parts, *(part for one in others for part in one.parts)])
    for part in paid:
        crossings = [(_crossing(best, one, part), one.name) for one in others]
        dearer = [(at, name) for at, name in crossings if 1.0 < at <= MOST]
        cheaper = [(at, name) for at, name in crossings if 1.0 / MOST <= at < 1.0]
        if dearer:
            yield Flip(f"price of {part}", *min(dearer))
        if cheaper:
            yield Flip(f"price of {part}", *max(cheaper))


def _crossing(best: Costed, other: Costed, part: str) -> float:
    """The factor on one price at which two fleets cost the same; 0 where there is none."""
    slope = best.parts.get(part, 0.0) - other.parts.get(part, 0.0)
    lead = other.usd_per_hour - best.usd_per_hour
    return 1.0 + lead / slope if abs(slope) > 1e-12 else 0.0


def demand_flips(asked: Asked, sizing: Sizing, share: float, tell: Callable[[str], None]) -> Iterator[Flip]:
    """The nearest flip in each direction of the load and of the latency objectives; `share` of each unit
    may be planned for."""
    base = _mix(sizing, share)
    tell("sensitivity: load")
    for factors in (LOADS, LIGHTER):
        yield from _look("load", factors, base, lambda x: _mix(sizing.scaled(x), share))
    if any(task.ttft_s < float("inf") or task.tpot_s < float("inf") for _, task in sizing.named):
        tell("sensitivity: objectives")
        for factors in (STRICTER, LOOSER):
            yield from _look(
                "latency objectives", factors, base, lambda x: _mix(_stretched(asked, sizing, x), share)
            )


def _look(what: str, factors: Sequence[float], base: Mix, mix: Callable[[float], Mix]) -> Iterator[Flip]:
    kept = 1.0
    for factor in factors:
        if mix(factor) != base:
            at = _narrowed(kept, factor, base, mix)
            yield Flip(what, at, _words(mix(at)))
            return
        kept = factor


def _narrowed(kept: float, flipped: float, base: Mix, mix: Callable[[float], Mix]) -> float:
    """The flipped end of the smallest interval around the change."""
    while max(kept / flipped, flipped / kept) > PRECISION:
        middle = (kept * flipped) ** 0.5
        if mix(middle) == base:
            kept = middle
        else:
            flipped = middle
    return flipped


def _mix(sizing: Sizing, utilisation: float) -> Mix:
    try:
        fleet: Fleet = fleet_of(size(sizing, Goal.CHEAPEST, utilisation))
    except InfeasibleError:
        return frozenset()
    return frozenset(fleet)


def _stretched(asked: Asked, sizing: Sizing, factor: float) -> Sizing:
    return sizing_of(asked, sizing.supplies, sizing.prices, sizing.limits, sizing.min_flexible, factor)


def _words(mix: Mix) -> str:
    return " + ".join(sorted(mix)) if mix else "nothing on offer does it"
