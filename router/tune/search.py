"""Searches a policy's parameters on simulations: many short ones, then the best in full, then fresh seeds.

    rung 1   points drawn from the whole space, the given setting among them, on a quarter of the workload
    climb    neighbours of the best quarter, the same way
    rung 2   the best of both, the given setting among them, on the whole workload and every seed
    verify   the chosen and the given setting on as many fresh seeds

That is successive halving (Jamieson and Talwalkar, AISTATS 2016) with two rungs, and a random local search in
between. The best of many noisy measurements looks better than it is, hence the fresh seeds at the end.
The same search seed gives the same result. Pure but for what `measure` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from router.errors import ConfigError
from router.sim.compare import Estimate, estimate
from router.sim.result import SimResult
from router.tune.pareto import Prefer, Trial, chosen, figures_of, front, ranked
from router.tune.space import Point, Space

SHORT: Final = 0.25
"""Share of the workload in the first rung, and so the price of its runs."""
FINAL_SHARE: Final = 0.4
"""Of the budget that verification leaves, for the second rung."""
CLIMB_SHARE: Final = 0.4
"""Of the short runs, for neighbours."""
REDRAWS: Final = 20
"""Attempts at a point that was not tried yet."""
LEAST_PER_SEED: Final = 6
"""Budget per seed below which nothing can be told."""

Measure = Callable[[Point, int, float], SimResult]
"""(setting, seed, share of the workload) -> one simulation."""
Told = Callable[[str, int, int], None]
"""Hears of progress: what is done, runs so far, runs in all."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a search may cost, and what it is after."""

    budget: int
    """In full simulations; short ones count a quarter."""
    seeds: tuple[int, ...]
    """Of the workload, in the second rung; the first rung takes the first one."""
    prefer: Prefer = Prefer.GOODPUT
    search_seed: int = 1


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of a search."""

    space: Space
    asked: Asked
    given: Trial
    """The setting the search began with, in the second rung."""
    best: Trial
    """The one that was chosen, in the second rung."""
    front: tuple[Trial, ...]
    """Of the second rung: settings that none beats in everything."""
    fresh_seeds: tuple[int, ...]
    given_fresh: Trial
    """On the fresh seeds."""
    best_fresh: Trial
    gain: Estimate
    """Goodput per second of the best minus that of the given setting, on fresh seeds, seed by seed."""
    runs: int

    @property
    def is_better(self) -> bool:
        """Whether the chosen setting is another one and its goodput is higher for sure."""
        return self.best.point != self.given.point and self.gain.sure and self.gain.mean > 0


@dataclass(frozen=True, slots=True)
class _Shares:
    finalists: int
    drawn: int
    climbed: int

    def runs(self, seeds: int) -> int:
        return self.drawn + self.climbed + (self.finalists + 2) * seeds


def search(space: Space, asked: Asked, measure: Measure, told: Told = lambda what, done, of: None) -> Found:
    """Search. Raises ConfigError for a budget that is too small."""
    return _Search(space, asked, measure, told).run()


def _shares(asked: Asked) -> _Shares:
    seeds = len(asked.seeds)
    if asked.budget < LEAST_PER_SEED * seeds:
        raise ConfigError(
            f"a budget of {asked.budget} simulations on {seeds} seeds tells nothing; give at least "
            f"{LEAST_PER_SEED * seeds}, or fewer seeds."
        )
    left = asked.budget - 2 * seeds
    finalists = max(2, math.floor(FINAL_SHARE * left / seeds))
    short = math.floor((left - finalists * seeds) / SHORT)
    climbed = math.floor(CLIMB_SHARE * short)
    return _Shares(finalists, max(1, short - climbed), climbed)


class _Search:
    def __init__(self, space: Space, asked: Asked, measure: Measure, told: Told) -> None:
        self._space, self._asked, self._measure, self._told = space, asked, measure, told
        self._rng = Random(f"{asked.search_seed}/tune")
        self._shares = _shares(asked)
        self._tried: dict[Point, Trial] = {}
        self._runs = 0

    def run(self) -> Found:
        for i in range(self._shares.drawn):
            self._short(self._space.origin if i == 0 else self._fresh(self._space.anywhere))
        for _ in range(self._shares.climbed):
            self._short(self._fresh(self._neighbour))
        finals = [self._full(point, self._asked.seeds, "finalists") for point in self._finalists()]
        best = chosen(finals, self._asked.prefer)
        return self._verified(finals, best)

    def _verified(self, finals: Sequence[Trial], best: Trial) -> Found:
        first = max(self._asked.seeds) + 1
        fresh = tuple(range(first, first + len(self._asked.seeds)))
        origin = self._space.origin
        before = [self._one(origin, seed, 1.0, "fresh seeds") for seed in fresh]
        after = [self._one(best.point, seed, 1.0, "fresh seeds") for seed in fresh]
        gains = [b.goodput_per_s - a.goodput_per_s for a, b in zip(before, after, strict=True)]
        return Found(
            space=self._space,
            asked=self._asked,
            given=next(trial for trial in finals if trial.point == origin),
            best=best,
            front=tuple(front(finals)),
            fresh_seeds=fresh,
            given_fresh=Trial(origin, figures_of(before)),
            best_fresh=Trial(best.point, figures_of(after)),
            gain=estimate(gains),
            runs=self._runs,
        )

    def _finalists(self) -> list[Point]:
        """The best of the short runs; the given setting always, for it is what they are compared with."""
        order = [trial.point for trial in ranked(list(self._tried.values()), self._asked.prefer)]
        others = [point for point in order if point != self._space.origin]
        return [self._space.origin, *others[: self._shares.finalists - 1]]

    def _short(self, point: Point) -> None:
        if point not in self._tried:
            result = self._one(point, self._asked.seeds[0], SHORT, "settings")
            self._tried[point] = Trial(point, figures_of([result]))

    def _full(self, point: Point, seeds: Sequence[int], what: str) -> Trial:
        return Trial(point, figures_of([self._one(point, seed, 1.0, what) for seed in seeds]))

    def _one(self, point: Point, seed: int, share: float, what: str) -> SimResult:
        result = self._measure(point, seed, share)
        self._runs += 1
        self._told(what, self._runs, self._shares.runs(len(self._asked.seeds)))
        return result

    def _neighbour(self, rng: Random) -> Point:
        order = ranked(list(self._tried.values()), self._asked.prefer)
        parents = order[: max(1, len(order) // 4)]
        return self._space.near(rng.choice(parents).point, rng)

    def _fresh(self, draw: Callable[[Random], Point]) -> Point:
        """A point that was not tried, unless there is hardly another; then one that costs nothing."""
        point = draw(self._rng)
        for _ in range(REDRAWS):
            if point not in self._tried:
                break
            point = draw(self._rng)
        return point
