"""The space that a search walks: the declared ranges of a policy's parameters, as a unit cube.

A range that spans orders of magnitude is logarithmic. Points are values, not positions, so that a policy file
holds what was simulated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from policies.declared import Declared, complete, declared, with_value
from router.errors import ConfigError
from router.tune.dry_run import IRRELEVANT, from_scale, is_wide, to_scale

Point = tuple[Any, ...]
"""A value per dimension, in the order of the space."""
STEP: Final = 0.15
"""Deviation of a neighbour in one dimension, as a share of its range."""
DIGITS: Final = 4
"""Significant digits of a searched number: more would be noise in a policy file."""


@dataclass(frozen=True, slots=True)
class Space:
    """What is searched."""

    policy: str
    base: Mapping[str, Any]
    """Every parameter, as in a policy file; those that are not searched keep these values."""
    dimensions: tuple[Declared, ...]

    @property
    def origin(self) -> Point:
        """The parameters as given."""
        return tuple(_held(self.base, one) for one in self.dimensions)

    def params(self, point: Point) -> dict[str, Any]:
        """The parameters of a point, as in a policy file."""
        params = dict(self.base)
        for one, value in zip(self.dimensions, point, strict=True):
            params = with_value(params, one.key, value)
        return params

    def anywhere(self, rng: Random) -> Point:
        """A point drawn uniformly from the cube."""
        return tuple(_drawn(one, rng) for one in self.dimensions)

    def near(self, point: Point, rng: Random) -> Point:
        """A neighbour: one or two dimensions moved a little."""
        moved = rng.sample(range(len(point)), min(len(point), rng.choice((1, 1, 2))))
        return tuple(
            _moved(one, value, rng) if i in moved else value
            for i, (one, value) in enumerate(zip(self.dimensions, point, strict=True))
        )


def space_of(
    policy: str, params: Mapping[str, Any], narrowed: Mapping[str, tuple[float, float]], only: Sequence[str]
) -> Space:
    """The declared ranges, narrowed where asked; with `only`, of these keys alone. Raises ConfigError."""
    known = {one.key: one for one in declared(policy) if one.key not in IRRELEVANT}
    for key in (*narrowed, *only):
        if key not in known:
            raise ConfigError(
                f"policy {policy!r} has no parameter {key!r} to search; it has {', '.join(known) or 'none'}."
            )
    chosen = [known[key] for key in known if not only or key in only or key in narrowed]
    dimensions = tuple(_narrowed(one, narrowed.get(one.key)) for one in chosen)
    if not dimensions:
        raise ConfigError(f"policy {policy!r} has nothing to tune; choose another.")
    return Space(policy, complete(policy, params), dimensions)


def _narrowed(one: Declared, to: tuple[float, float] | None) -> Declared:
    if to is None:
        return one
    if not one.is_number or not one.low <= to[0] <= to[1] <= one.high:
        raise ConfigError(
            f"{one.key} cannot be searched from {to[0]:g} to {to[1]:g}: it takes "
            f"{f'{one.low:g} to {one.high:g}' if one.is_number else ', '.join(map(str, one.of))}."
        )
    return replace(one, low=to[0], high=to[1])


def _held(params: Mapping[str, Any], one: Declared) -> Any:
    value: Any = params
    for name in one.key.split("."):
        value = value.get(name, one.default) if isinstance(value, Mapping) else one.default
    return value


def _drawn(one: Declared, rng: Random) -> Any:
    return _at(one, rng.random()) if one.is_number else rng.choice(one.of)


def _moved(one: Declared, value: Any, rng: Random) -> Any:
    if not one.is_number:
        return rng.choice(one.of)
    return _at(one, min(1.0, max(0.0, _position(one, float(value)) + rng.gauss(0.0, STEP))))


def _position(one: Declared, value: float) -> float:
    """In [0, 1]; a value outside of a narrowed range is at its end."""
    low, high = _ends(one)
    if high <= low:
        return 0.0
    at = to_scale(one, value) if is_wide(one) else value
    return min(1.0, max(0.0, (at - low) / (high - low)))


def _at(one: Declared, position: float) -> Any:
    low, high = _ends(one)
    at = low + position * (high - low)
    value = from_scale(one, at) if is_wide(one) else at
    if isinstance(one.default, int):
        return min(math.floor(one.high), max(math.ceil(one.low), round(value)))
    return min(one.high, max(one.low, float(f"{value:.{DIGITS}g}")))


def _ends(one: Declared) -> tuple[float, float]:
    if is_wide(one):
        return to_scale(one, one.low), to_scale(one, one.high)
    return float(one.low), float(one.high)
