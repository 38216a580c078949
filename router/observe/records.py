"""Why each recent request went where it went: a bounded store of decisions and reports by request id.

In memory only, oldest first out. Holds no prompts: a request has none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from router.core.messages import (
    FailRequest,
    FinishRequest,
    NoteDecision,
    NotePolicyFault,
    NoteRetry,
    RequestArrived,
)
from router.errors import Reason
from router.model import Decision, Phase, Report, Request, Seconds

MAX_STEPS = 16
"""Decisions, and retries, kept of one request; attempts are bounded far below."""


@dataclass(frozen=True, slots=True)
class RetryNote:
    """One attempt that failed."""

    at: Seconds
    phase: Phase
    backend: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one request. Times are on the driver's clock."""

    request: Request
    arrived_at: Seconds
    decisions: tuple[tuple[Seconds, Decision], ...] = ()
    """In order: the placement, a late binding, and those of further attempts."""
    retries: tuple[RetryNote, ...] = ()
    policy_faults: tuple[str, ...] = ()
    """Faults of the policy in the same step as a decision of this request."""
    ended_at: Seconds | None = None
    report: Report | None = None
    message: str = ""
    """Of the failure; empty if there was none."""


class DecisionLog:
    """A core.ports.Tap that remembers the last `capacity` requests, live or ended."""

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._records: OrderedDict[str, Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def get(self, request_id: str) -> Record | None:
        """The record of a request, if it is recent enough."""
        return self._records.get(request_id)

    def recent(self, count: int) -> Sequence[Record]:
        """The requests that arrived last, newest first."""
        return [record for _, record in zip(range(count), reversed(self._records.values()), strict=False)]

    def seen(self, fact: Any, now: Seconds, actions: Sequence[Any]) -> None:
        """Follow one fact and what the core answered."""
        if isinstance(fact, RequestArrived):
            self._arrived(fact.request, now)
        faults = tuple(f"{a.policy}: {a.fault}" for a in actions if isinstance(a, NotePolicyFault))
        for action in actions:
            request_id = getattr(action, "request_id", "")
            record = self._records.get(request_id)
            if record is not None:
                self._records[request_id] = _after(record, action, now, faults)

    def _arrived(self, request: Request, now: Seconds) -> None:
        self._records.pop(request.id, None)  # an id that is used again is the newest
        self._records[request.id] = Record(request, now)
        if len(self._records) > self._capacity:
            self._records.popitem(last=False)


def _after(record: Record, action: Any, now: Seconds, faults: tuple[str, ...]) -> Record:
    match action:
        case NoteDecision(decision=decision):
            decisions = (*record.decisions, (now, decision))[-MAX_STEPS:]
            return replace(
                record, decisions=decisions, policy_faults=(*record.policy_faults, *faults)[-MAX_STEPS:]
            )
        case NoteRetry(phase=phase, backend=backend, reason=reason):
            note = RetryNote(now, phase, backend, reason)
            return replace(record, retries=(*record.retries, note)[-MAX_STEPS:])
        case FinishRequest(report=report):
            return replace(record, ended_at=now, report=report)
        case FailRequest(report=report, message=message):
            return replace(record, ended_at=now, report=report, message=message)
        case _:
            return record
