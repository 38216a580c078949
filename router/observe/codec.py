"""Facts and actions as JSON values and back, by an explicit walk over the fields of closed types.

Nothing in a recording is executed: there is no pickle, no eval, and no type is looked up by a name that is
not in the tables below. A policy is written as the text that rebuilds it, and rebuilt by a function that the
caller gives.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from router.core import messages
from router.core.ports import Policy
from router.errors import PolyphaseError, Reason

FACTS: Final[Mapping[str, type]] = {fact.__name__: fact for fact in get_args(messages.Fact)}
ACTIONS: Final[Mapping[str, type]] = {action.__name__: action for action in get_args(messages.Action)}

_NOT_FINITE: Final[Mapping[str, float]] = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}

Rebuild = Callable[[str], Policy]
"""Makes a policy from PolicyReplaced.text."""


class RecordingError(PolyphaseError):
    """A recording cannot be read."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.INVALID_REQUEST, message)


def to_json(value: Any) -> Any:
    """A value of the closed types as JSON: dataclasses by field, enums by value, bytes in hexadecimal.

    Fields that hold their default are left out. Infinities are strings, because JSON has none.
    Raises TypeError for any other type.
    """
    match value:
        case Enum():
            return value.value
        case bool() | int() | str() | None:
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes():
            return value.hex()
        case _:
            return _compound_to_json(value)


def _compound_to_json(value: Any) -> Any:
    match value:
        case tuple() | list():
            return [to_json(item) for item in value]
        case frozenset():
            return sorted(to_json(item) for item in value)
        case Mapping():
            return {str(key): to_json(item) for key, item in value.items()}
        case messages.PolicyReplaced():
            return {"text": value.text, "name": value.policy.name}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return _fields_to_json(value)
        case _:
            raise TypeError(f"{type(value).__name__} is not a type that recordings hold")


def _fields_to_json(value: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        if held is not field.default and not (
            field.default is not dataclasses.MISSING and held == field.default
        ):
            out[field.name] = to_json(held)
    return out


def tagged(value: Any) -> dict[str, Any]:
    """A fact or an action with the name of its type: {"RequestArrived": {...}}."""
    return {type(value).__name__: to_json(value)}


def noun_from_json(kind: type, value: Any) -> Any:
    """A noun of the model from what `to_json` made of it. Raises RecordingError."""
    if not isinstance(value, Mapping):
        raise RecordingError(f"a {kind.__name__} is an object, not {value!r:.40}")
    try:
        return FactReader().dataclass(kind, value)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RecordingError(f"a {kind.__name__} cannot be read: {error}") from error


class FactReader:
    """Turns tagged JSON back into facts. Field types are read off the dataclasses, once each."""

    def __init__(self, rebuild: Rebuild | None = None) -> None:
        self._rebuild = rebuild
        self._hints: dict[type, dict[str, Any]] = {}

    def read(self, value: Any) -> messages.Fact:
        """The fact of {"Type": {...}}. Raises RecordingError."""
        if not isinstance(value, dict) or len(value) != 1:
            raise RecordingError("a fact is one object with one key, its type; the recording is damaged")
        ((name, body),) = value.items()
        cls = FACTS.get(name)
        if cls is None:
            raise RecordingError(
                f"{name!r} is not a fact of this version; replay with the version that recorded it"
            )
        try:
            fact: messages.Fact = (
                self._policy(body) if cls is messages.PolicyReplaced else self.dataclass(cls, body)
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise RecordingError(f"a {name} cannot be read: {error}; the recording is damaged") from error
        return fact

    def _policy(self, body: Any) -> messages.PolicyReplaced:
        if self._rebuild is None:
            raise RecordingError(
                "the policy was replaced in the recording; give the function that rebuilds it"
            )
        return messages.PolicyReplaced(self._rebuild(body["text"]), body["text"])

    def dataclass(self, cls: type, body: Any) -> Any:
        """A value of a closed type. Raises TypeError, ValueError, KeyError or AttributeError."""
        hints = self._hints.get(cls)
        if hints is None:
            hints = self._hints[cls] = get_type_hints(cls)
        unknown = body.keys() - hints.keys()
        if unknown:
            raise ValueError(f"{cls.__name__} has no {min(unknown)}")
        return cls(**{name: self._value(hints[name], item) for name, item in body.items()})

    def _value(self, hint: Any, value: Any) -> Any:
        origin = get_origin(hint)
        if origin in (Union, types.UnionType):
            return self._optional(get_args(hint), value)
        if origin is tuple:
            item = get_args(hint)[0]
            return tuple(self._value(item, entry) for entry in value)
        if origin is frozenset:
            return frozenset(self._value(get_args(hint)[0], entry) for entry in value)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self.dataclass(hint, value)
        return _scalar(hint, value)

    def _optional(self, members: tuple[Any, ...], value: Any) -> Any:
        if value is None:
            return None
        (member,) = (member for member in members if member is not types.NoneType)
        return self._value(member, value)


def _scalar(hint: Any, value: Any) -> Any:
    if hint is float:
        # An int stays one: turned into a float it would change the digest of what the core answers.
        return _NOT_FINITE[value] if isinstance(value, str) else _expect(value, (int, float))
    if hint is bytes:
        return bytes.fromhex(value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    return _expect(value, (hint,))


def _expect(value: Any, kinds: tuple[type, ...]) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{value!r:.40} is not a {kinds[-1].__name__}")
    return value
