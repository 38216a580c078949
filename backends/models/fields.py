"""Reads a parsed TOML table field by field. Pure; a complaint names the field and the nearest known one."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from router.errors import ConfigError

Choice = TypeVar("Choice", bound=StrEnum)
Table = Mapping[str, Any]
"""As tomllib gives it: values of any TOML type."""

_NOTHING: Any = object()


def refuse_unknown(table: Table, known: Collection[str], where: str) -> None:
    """Raise ConfigError for a key that means nothing: most likely a misspelt one that means something."""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}."
            raise ConfigError(f"{where}: unknown field {key!r} would be ignored; {advice}")


def merged(below: Table, above: Table) -> dict[str, Any]:
    """`above` laid over `below`, table by table."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        result[key] = merged(under, value) if both and isinstance(under, Mapping) else value
    return result


class Fields:
    """One table, read with types and ranges. `where` is the file and the table, for messages."""

    def __init__(self, table: Table, where: str, known: Collection[str]) -> None:
        """Raise ConfigError for unknown keys."""
        refuse_unknown(table, known, where)
        self._table = table
        self._where = where

    def __contains__(self, key: str) -> bool:
        return key in self._table

    def text(self, key: str, default: str = _NOTHING) -> str:
        """A string that is not empty, unless the default is."""
        value = self._get(key, default)
        if not isinstance(value, str) or (not value and value is not default):
            raise self._wrong(key, value, "a string that is not empty")
        return value

    def texts(self, key: str, default: tuple[str, ...] = _NOTHING) -> tuple[str, ...]:
        """A list of strings."""
        value = self._get(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) and one for one in value):
            raise self._wrong(key, value, "a list of strings")
        return tuple(value)

    def number(self, key: str, default: float = _NOTHING, *, least: float = 0.0) -> float:
        """A number of at least `least`; infinite only where the default is."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise self._wrong(key, value, f"a number of at least {least:g}")
        if math.isinf(value) and not math.isinf(default if isinstance(default, float) else 0.0):
            raise self._wrong(key, value, "a finite number")
        return float(value)

    def whole(self, key: str, default: int = _NOTHING, *, least: int = 1, most: int = 1 << 62) -> int:
        """An integer in a range."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(key, value, f"a whole number from {least} to {most}")
        return value

    def wholes(self, key: str, default: tuple[int, ...] = _NOTHING) -> tuple[int, ...]:
        """A list of whole numbers from 1 on."""
        value = self._get(key, default)
        if not isinstance(value, list | tuple) or not all(type(one) is int and one >= 1 for one in value):
            raise self._wrong(key, value, "a list of whole numbers from 1 on")
        return tuple(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def choice(self, key: str, choices: type[Choice], default: Choice = _NOTHING) -> Choice:
        """One of an enumeration's values."""
        value = self._get(key, default)
        if value not in list(choices):
            raise self._wrong(key, value, f"one of {', '.join(choices)}")
        return choices(value)

    def choices(self, key: str, choices: type[Choice]) -> frozenset[Choice]:
        """A list of an enumeration's values, at least one."""
        values = self.texts(key)
        if not values or any(value not in list(choices) for value in values):
            raise self._wrong(key, values, f"a list of {', '.join(choices)}")
        return frozenset(choices(value) for value in values)

    def table(self, key: str) -> Table:
        """A table, empty when it is not there."""
        value = self._get(key, {})
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "a table")
        return value

    def _get(self, key: str, default: object) -> Any:
        if key in self._table:
            return self._table[key]
        if default is _NOTHING:
            raise ConfigError(f"{self._where}: {key!r} is missing; add it.")
        return default

    def _wrong(self, key: str, value: object, wanted: str) -> ConfigError:
        return ConfigError(f"{self._where}: {key!r} is {value!r}; it must be {wanted}.")
