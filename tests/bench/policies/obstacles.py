"""What stands in the way, cell by cell, where our policy is short of a bound.

    ours / B2 = ours / lengths known x lengths known / best known x best known / B2

The first factor is what not knowing answers' lengths costs: the same policy, told them. The second is the
policy: decisions of some other schedule, clairvoyant or any contestant's, that did better on the same
arrivals. The third is what nobody is known to reach: the bound's looseness, or a schedule yet to be found.
The smallest factor is named.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tests.bench.policies.field import CLAIRVOYANTS
from tests.bench.policies.rows import Cell

ENOUGH_OF_B2: Final = 0.8
ENOUGH_OF_BEST: Final = 0.9
LENGTHS: Final = CLAIRVOYANTS[0]
INFORMATION: Final = "lost information"
POLICY: Final = "policy"
BOUND: Final = "bound"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One cell that is short of a target."""

    cell: Cell
    of_b2: float
    of_best: float
    factors: dict[str, float]
    best: str
    """Who reached most there, over the seeds."""

    @property
    def name(self) -> str:
        """The smallest factor."""
        return min(self.factors, key=lambda each: self.factors[each])


def obstacles(cells: Iterable[Cell]) -> list[Obstacle]:
    """Cells below either target, the farthest from the best known first."""
    found = [one for cell in cells if (one := obstacle(cell)) is not None]
    short = [one for one in found if one.of_b2 < ENOUGH_OF_B2 or one.of_best < ENOUGH_OF_BEST]
    return sorted(short, key=lambda one: (one.of_best, one.cell.name))


def obstacle(cell: Cell) -> Obstacle | None:
    """The factors of one cell; None without the bounds, or where nobody meets anything."""
    ours, told = cell.ours, cell.rows.get(LENGTHS)
    if ours is None or told is None or not cell.b2 or not cell.best_known or not told.met:
        return None
    factors = {
        INFORMATION: ours.met / told.met,
        POLICY: told.met / cell.best_known,
        BOUND: cell.best_known / cell.b2,
    }
    best = max(cell.rows.values(), key=lambda row: row.met)
    return Obstacle(cell, ours.met / cell.b2, ours.met / cell.best_known, factors, best.policy)
