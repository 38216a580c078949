"""An index that believes in blocks only when they are there: when a prefill is done, or KV has moved.

Stands for the KV events of an engine, for the originals that listen to them (policies/prefixes.py says what
differs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from policies.prefixes import PrefixIndex
from policies.standing import Standing
from router.core.messages import (
    BackendLost,
    BackendRemoved,
    DecodeDone,
    KVMoved,
    PrefillDone,
    RequestCancelled,
)
from router.model import Request, Seconds

MAX_EXPECTED: Final = 1 << 16
"""Requests whose blocks are waited for; the oldest is forgotten first."""


@dataclass(frozen=True, slots=True)
class _Expected:
    hashes: tuple[int, ...]
    producer: Standing
    consumer: Standing


class Holdings:
    """What each backend holds, as far as facts show it."""

    def __init__(self) -> None:
        self.index = PrefixIndex()
        self._expected: dict[str, _Expected] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Holdings:
        other = Holdings()
        other.index = self.index.__deepcopy__(memo)
        other._expected = dict(self._expected)  # values are immutable; standings are only read for their spec
        return other

    def expect(self, request: Request, producer: Standing, consumer: Standing) -> None:
        """A request is on its way."""
        if not request.prefix_hashes:
            return
        if len(self._expected) >= MAX_EXPECTED and request.id not in self._expected:
            del self._expected[next(iter(self._expected))]
        self._expected[request.id] = _Expected(request.prefix_hashes, producer, consumer)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learn from the facts of a request, and of backends that come empty or leave."""
        match fact:
            case PrefillDone():
                if (waited := self._expected.get(fact.request_id)) is not None:
                    self.index.store(waited.producer, waited.hashes, now)
            case KVMoved():
                if (waited := self._expected.get(fact.request_id)) is not None:
                    self.index.store(waited.consumer, waited.hashes, now)
            case DecodeDone() | RequestCancelled():
                self._expected.pop(fact.request_id, None)
            case BackendLost() | BackendRemoved():
                self.index.forget(fact.backend)
            case _:
                pass
