"""What a setting achieved, and which settings no other beats in everything. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from router.sim.result import SimResult
from router.tune.space import Point

ALIKE: Final = 0.01
"""Settings within 1 % of the best in what is preferred are told apart by the rest (assumption)."""
KEPT: Final = 0.98
"""Share of the best goodput that a setting keeps, be it cheap as it may (assumption)."""


class Prefer(StrEnum):
    """What decides between settings on the front."""

    GOODPUT = "goodput"
    COST = "cost"
    ENERGY = "energy"


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over the seeds."""

    goodput_per_s: float
    """Requests per second that met all objectives."""
    usd_per_1000_good: float
    """List price of the device time; infinite without good requests."""
    joule_per_1000_good: float
    """Energy of the fleet, idle time included; infinite without good requests."""
    attainment: float
    runs: int
    stopped: int = 0
    """Runs that were ended early because the load was too high."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is infinite is null."""
        held = {name: getattr(self, name) for name in self.__slots__}
        return {name: value if math.isfinite(value) else None for name, value in held.items()}

    def beats(self, other: Figures) -> bool:
        """Whether it is at least as good in all three, and better in one."""
        mine, theirs = _vector(self), _vector(other)
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting and what it achieved."""

    point: Point
    figures: Figures


def figures_of(results: Sequence[SimResult]) -> Figures:
    """The figures of one setting over its runs, at least one."""
    met, n = sum(one.met for one in results), len(results)

    def each(amount: float) -> float:
        return 1000 * amount / met if met else math.inf

    return Figures(
        math.fsum(one.goodput_per_s for one in results) / n,
        each(math.fsum(one.device_usd for one in results)),
        each(math.fsum(one.energy_j for one in results)),
        math.fsum(one.attainment for one in results) / n,
        n,
        sum(bool(one.stopped) for one in results),
    )


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Those that none beats, most goodput first; of equal ones the first."""
    kept: list[Trial] = []
    for trial in trials:
        if any(other.figures.beats(trial.figures) for other in trials):
            continue
        if all(_vector(one.figures) != _vector(trial.figures) for one in kept):
            kept.append(trial)
    return sorted(kept, key=lambda trial: _vector(trial.figures))


def ranked(trials: Sequence[Trial], prefer: Prefer) -> list[Trial]:
    """Front by front, each in order of preference."""
    rest, order = list(trials), list[Trial]()
    while rest:
        best = front(rest) or rest
        order += sorted(best, key=lambda trial: _key(trial.figures, prefer))
        rest = [trial for trial in rest if trial not in best]
        if len(order) >= len(trials):
            break
    return order


def chosen(trials: Sequence[Trial], prefer: Prefer) -> Trial:
    """The setting to write: the best in what is preferred; within 1 % of it, the cheapest in the rest.

    Whatever is preferred, it keeps nearly all of the best goodput: refusing everybody is cheap.
    """
    most = max(trial.figures.goodput_per_s for trial in trials)
    trials = [trial for trial in trials if trial.figures.goodput_per_s >= KEPT * most]
    best = min(trials, key=lambda trial: _key(trial.figures, prefer))
    limit = _primary(best.figures, prefer)
    alike = [trial for trial in trials if _primary(trial.figures, prefer) <= limit + ALIKE * abs(limit)]
    return min(alike, key=lambda trial: _secondary(trial.figures, prefer))


def _vector(figures: Figures) -> tuple[float, float, float]:
    """Lower is better."""
    return (-figures.goodput_per_s, figures.usd_per_1000_good, figures.joule_per_1000_good)


def _primary(figures: Figures, prefer: Prefer) -> float:
    return _vector(figures)[list(Prefer).index(prefer)]


def _secondary(figures: Figures, prefer: Prefer) -> tuple[float, ...]:
    """Goodput preferred: dollars, then joules. Otherwise goodput first."""
    goodput, usd, joule = _vector(figures)
    return (usd, joule, goodput) if prefer is Prefer.GOODPUT else (goodput, usd, joule)


def _key(figures: Figures, prefer: Prefer) -> tuple[float, ...]:
    return (_primary(figures, prefer), *_secondary(figures, prefer))
