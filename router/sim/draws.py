"""Random quantities of a workload: token counts and pauses. Values; randomness is passed in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from backends.models.fields import Fields
from router.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same."""

    value: float

    def draw(self, rng: Random) -> float:
        """The value; draws nothing."""
        return self.value

    @property
    def mean(self) -> float:
        """The expectation."""
        return self.value


@dataclass(frozen=True, slots=True)
class Uniform:
    """Anything between two bounds, equally likely."""

    least: float
    most: float

    def draw(self, rng: Random) -> float:
        """One value."""
        return self.least + (self.most - self.least) * rng.random()

    @property
    def mean(self) -> float:
        """The expectation."""
        return 0.5 * (self.least + self.most)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Lengths of prompts and answers are skewed: most are short, a few are very long.

    The parameters of the underlying normal follow from mean and coefficient of variation:
    sigma^2 = ln(1 + cv^2), mu = ln(mean) - sigma^2 / 2.
    """

    average: float
    """Mean before values are cut to the bounds."""
    cv: float
    least: float = 0.0
    most: float = math.inf

    def draw(self, rng: Random) -> float:
        """One value, cut to the bounds."""
        variance = math.log1p(self.cv * self.cv)
        value = rng.lognormvariate(math.log(self.average) - 0.5 * variance, math.sqrt(variance))
        return min(max(value, self.least), self.most)

    @property
    def mean(self) -> float:
        """The expectation before the cut."""
        return self.average


Draw = Fixed | Uniform | Lognormal


def parse_draw(value: object, where: str, *, least: float = 0.0) -> Draw:
    """A number, {uniform = [a, b]}, or {mean = m, cv = c, least = a, most = b} (lognormal).

    `least` is the smallest value that makes sense here. Raises ConfigError.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check(value >= least and math.isfinite(value), where, value, least)
        return Fixed(float(value))
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{where} is {value!r}; give a number, {{ uniform = [a, b] }} or {{ mean = m, cv = c }}."
        )
    return _parse_table(value, where, least)


def _parse_table(table: Mapping[str, Any], where: str, least: float) -> Draw:
    if "uniform" in table:
        bounds = Fields(table, where, ("uniform",)) and table["uniform"]
        if not isinstance(bounds, list) or len(bounds) != 2 or not all(map(_is_number, bounds)):
            raise ConfigError(f"{where}: uniform is {bounds!r}; give two numbers, [least, most].")
        _check(least <= bounds[0] <= bounds[1] and math.isfinite(bounds[1]), where, bounds, least)
        return Uniform(float(bounds[0]), float(bounds[1]))
    fields = Fields(table, where, ("mean", "cv", "least", "most"))
    low = fields.number("least", least, least=least)
    high = fields.number("most", math.inf, least=low)
    mean = fields.number("mean")
    _check(mean > 0, where, mean, least)
    return Lognormal(mean, fields.number("cv", 0.0), low, high)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(good: bool, where: str, value: object, least: float) -> None:
    if not good:
        raise ConfigError(
            f"{where} is {value!r}; it must be at least {least:g}, finite, and bounds in order."
        )
