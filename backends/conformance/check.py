"""A check: what the contract says, where it says it, and how to find out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from backends.conformance.bench import Bench, Need


@dataclass(frozen=True, slots=True)
class Check:
    """One rule of the contract."""

    name: str
    """As group.rule; `--only` takes either."""
    rule: str
    where: str
    run: Callable[[Bench], Awaitable[str]]
    """Gives the evidence. Raises ViolationError, or NotCheckedError."""
    needs: tuple[Need, ...] = ()
