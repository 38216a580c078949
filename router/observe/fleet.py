"""What the facts say of each backend: kind, state, last report, and counters that outlive a worker's restart.

No metrics and no clock here. Read at scrape time, possibly from another thread: readers copy with list().
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from router.core.messages import (
    BackendCordoned,
    BackendJoined,
    BackendLost,
    BackendRemoved,
    BackendReported,
)
from router.model import BackendSnapshot, BackendSpec, BackendState, Phase, Seconds

SUB_PHASES: Final[Mapping[str, str]] = {
    "attention": "busy_attention_s",
    "ffn": "busy_ffn_s",
    "transfer": "busy_transfer_s",
}
"""Parts of a decode that is split (AFD), and their counters in a snapshot."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How far a worker's counters grew since the report before."""

    busy_prefill_s: Seconds = 0.0
    busy_decode_s: Seconds = 0.0
    energy_j: float = 0.0
    preemptions: int = 0
    busy_loading_s: Seconds = 0.0
    sub_phases: Mapping[str, Seconds] = field(default_factory=dict[str, float])
    """By sub-phase, of backends whose decode is split."""


@dataclass(slots=True)
class BackendRecord:
    """One backend as the facts describe it. Mutable; lives inside Fleet."""

    spec: BackendSpec
    incarnation: str
    joined_at: Seconds
    state: BackendState = BackendState.READY
    cordon: BackendState | None = None
    """CORDONED or DRAINING while an operator keeps new work away; survives a lost lane."""
    snapshot: BackendSnapshot | None = None
    base: BackendSnapshot | None = None
    """Counters of the report before; None until a first report has set the base."""
    busy: dict[Phase, Seconds] = field(default_factory=lambda: {Phase.PREFILL: 0.0, Phase.DECODE: 0.0})
    """Device time since the router knows the backend."""


class Fleet:
    """The backends that joined and were not removed."""

    def __init__(self) -> None:
        self.backends: dict[str, BackendRecord] = {}

    def take(self, fact: Any, now: Seconds) -> Growth | None:
        """Follow a fact; a load report returns how far the worker's counters grew."""
        match fact:
            case BackendReported(backend=backend, snapshot=snapshot):
                return self._report(backend, snapshot)
            case BackendJoined():
                self._join(fact, now)
            case BackendLost(backend=backend) if backend in self.backends:
                self.backends[backend].state, self.backends[backend].snapshot = BackendState.LOST, None
            case BackendCordoned(backend=backend) if backend in self.backends:
                self._cordon(self.backends[backend], fact)
            case BackendRemoved(backend=backend):
                self.backends.pop(backend, None)
            case _:
                pass
        return None

    def _join(self, fact: BackendJoined, now: Seconds) -> None:
        record = self.backends.get(fact.spec.id)
        if record is None:
            self.backends[fact.spec.id] = BackendRecord(fact.spec, fact.incarnation, now)
            return
        if record.incarnation != fact.incarnation:
            # The worker restarted while we watched: its counters began again at zero.
            record.incarnation, record.base = fact.incarnation, BackendSnapshot(observed_at=now)
            record.snapshot = None
        record.spec = fact.spec
        record.state = record.cordon or BackendState.READY

    def _cordon(self, record: BackendRecord, fact: BackendCordoned) -> None:
        if fact.draining:
            record.cordon = BackendState.DRAINING
        else:
            record.cordon = BackendState.CORDONED if fact.cordoned else None
        if record.state is not BackendState.LOST:
            record.state = record.cordon or BackendState.READY

    def _report(self, backend: str, snapshot: BackendSnapshot) -> Growth | None:
        record = self.backends.get(backend)
        if record is None:
            return None
        # A worker may be older than the router: its first report sets the base, or rate() would jump.
        growth = Growth() if record.base is None else _growth(record.base, snapshot)
        record.base = record.snapshot = snapshot
        record.busy[Phase.PREFILL] += growth.busy_prefill_s
        record.busy[Phase.DECODE] += growth.busy_decode_s
        return growth


def _growth(old: BackendSnapshot, new: BackendSnapshot) -> Growth:
    return Growth(
        _rise(old.busy_prefill_s, new.busy_prefill_s),
        _rise(old.busy_decode_s, new.busy_decode_s),
        _rise(old.energy_j, new.energy_j),
        int(_rise(old.preemptions, new.preemptions)),
        _rise(old.busy_loading_s, new.busy_loading_s),
        {
            name: grown
            for name, key in SUB_PHASES.items()
            if (grown := _rise(getattr(old, key), getattr(new, key)))
        },
    )


def _rise(old: float, new: float) -> float:
    """A counter that fell was reset by a restart that nobody announced. Never negative."""
    return max(0.0, new - old if new >= old else new)
