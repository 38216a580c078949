"""Values: immutable by type, cheap to make.

A frozen dataclass sets each field through `object.__setattr__`, which takes four times as long as an
assignment, and a simulated request makes some sixty values. A class under `@value` is a plain dataclass with
slots when it runs, and frozen to mypy and pyright: `make types` refuses an assignment to a field of one
(docs/adr/0007-values-are-frozen-by-type.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """Make a class a value: fields from its annotations, slots, equality and hash by all fields.

    Everything in `dataclasses` works on it. What it holds must be immutable too: nothing is copied.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
