"""Reads a policy's parameters from a table of plain values into its frozen dataclass.

Every wrong key or value ends in a ConfigError that names the key, says what is allowed, and what
follows from it. Nothing here knows any policy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import Field, field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from router.errors import ConfigError

T = TypeVar("T")


class Parameters(Protocol):
    """A frozen dataclass whose fields were declared with `number`, `switch` or `choice`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


P = TypeVar("P", bound=Parameters)


def number(default: T, *, low: float, high: float, doc: str) -> T:
    """Declare an int or float parameter with its inclusive range; the default's type is the parameter's."""
    return _declare(default, doc=doc, low=low, high=high)


def switch(default: bool, *, doc: str) -> bool:
    """Declare a boolean parameter."""
    return _declare(default, doc=doc)


def choice(default: str, *, of: Iterable[str], doc: str) -> str:
    """Declare a parameter that is one of a few words."""
    return _declare(default, doc=doc, of=tuple(of))


def _declare(default: T, **about: object) -> T:
    declared: Any = field(default=default, metadata=about)  # dataclass() reads the Field, callers the type
    return declared  # type: ignore[no-any-return]


def read(kind: type[P], values: Mapping[str, object], where: str) -> P:
    """Build parameters of a kind from a table.

    `where` names the table in messages. A field that was declared in another way takes its value
    unchecked: its caller reads nested tables first. Raises ConfigError for an unknown key, a wrong type,
    a number that is not finite, or one out of range.
    """
    known = {each.name: each for each in fields(kind)}
    for key in values:
        if key not in known:
            raise unknown(where, "key", key, known)
    return kind(**{key: _checked(known[key], value, where) for key, value in values.items()})


def unknown(where: str, what: str, given: str, valid: Iterable[str]) -> ConfigError:
    """The error for a name that is not in a list, with the nearest valid one as a suggestion."""
    names = sorted(valid)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f'; did you mean "{near[0]}"?' if near else "."
    return ConfigError(
        f'{where}: unknown {what} "{clip(given)}"{hint} Nothing was changed. '
        f"Valid: {', '.join(names) or 'none'}."
    )


def wrong(where: str, key: str, value: object, wanted: str) -> ConfigError:
    """The error for a value that a key cannot take."""
    return ConfigError(
        f"{where}: {key} is {clip(repr(value))} but must be {wanted}. Nothing was changed; correct the value."
    )


def clip(text: str) -> str:
    """A name or value short enough for a message."""
    return text if len(text) <= 80 else text[:77] + "..."


def finite(value: object, where: str, key: str, low: float, high: float) -> float:
    """A number of the table within an inclusive range, or ConfigError. NaN is in no range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise wrong(where, key, value, f"a number from {low:g} to {high:g}")
    return value


def _checked(declared: Field[Any], value: object, where: str) -> object:
    default, about = declared.default, declared.metadata
    if not about:  # a nested table, which the caller of `read` has checked
        return value
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise wrong(where, declared.name, value, "true or false")
        return value
    if isinstance(default, str):
        if value not in about["of"]:
            raise wrong(where, declared.name, value, "one of " + ", ".join(about["of"]))
        return value
    checked = finite(value, where, declared.name, about["low"], about["high"])
    if isinstance(default, int):
        if checked != int(checked):
            raise wrong(where, declared.name, value, "a whole number")
        return int(checked)
    return float(checked)
