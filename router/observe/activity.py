"""Running totals of what the fleet did, for the live table and the summary of the command line.

A tap like the metrics, but read in-process: plain values, quantiles within 1 %. Knows no terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from router.core.messages import (
    BackendJoined,
    FailRequest,
    FinishRequest,
    KVMoved,
    NoteRetry,
    RequestArrived,
)
from router.model import BackendKind, Phase, PhaseUse, Report, Seconds
from router.observe.fleet import BackendRecord, Fleet
from router.observe.progress import Progress, Stage
from router.observe.reports import Outcome, last_use, objectives_met, outcome_of
from router.observe.sketch import Sketch
from router.observe.summary import ActivitySnapshot, BackendActivity, KindActivity

MAX_BACKENDS: Final = 4096
"""Rows kept, those of backends that left included."""


@dataclass(slots=True)
class _Phase:
    """Sums of one phase, on a backend or a kind."""

    done: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    energy_j: float = 0.0
    duration: Sketch = field(default_factory=Sketch)

    def take(self, use: PhaseUse) -> None:
        self.done += 1
        self.cost_usd += use.cost_usd
        self.energy_j += use.cost.energy_j


@dataclass(slots=True)
class _Latencies:
    queue: Sketch = field(default_factory=Sketch)
    prefill: Sketch = field(default_factory=Sketch)
    handoff: Sketch = field(default_factory=Sketch)
    decode: Sketch = field(default_factory=Sketch)
    ttft: Sketch = field(default_factory=Sketch)
    tpot: Sketch = field(default_factory=Sketch)
    e2e: Sketch = field(default_factory=Sketch)


class Activity:
    """A core.ports.Tap with running totals. Memory is bounded by backends x phases, not by requests."""

    def __init__(self) -> None:
        self._fleet = Fleet()
        self._progress = Progress()
        self._began: Seconds | None = None
        self._known: dict[str, BackendRecord] = {}
        """Also those that left: their busy time is part of the account."""
        self._by_backend: dict[tuple[str, Phase], _Phase] = {}
        self._by_kind: dict[tuple[BackendKind, Phase], _Phase] = {}
        self._latencies = _Latencies()
        self._outcomes = {outcome.value: 0 for outcome in Outcome}
        self._arrived = self._retries = self._handoffs = self._handoff_bytes = 0
        self._split = self._split_kinds = self._goodput = 0
        self._prompt_tokens = self._output_tokens = 0

    # --- the tap -----------------------------------------------------------------------------------

    def seen(self, fact: Any, now: Seconds, actions: Sequence[Any]) -> None:
        """Follow one fact and what the core answered."""
        if self._began is None:
            self._began = now
        if fact is not None:
            self._take_fact(fact, now)
        for action in actions:
            self._take_action(action, now)
            self._progress.take_action(action)

    def _take_fact(self, fact: Any, now: Seconds) -> None:
        if isinstance(fact, RequestArrived):
            self._arrived += 1
        elif isinstance(fact, KVMoved) and self._is_handoff(fact):
            self._handoffs += 1
            self._handoff_bytes += fact.moved_bytes
        self._progress.take_fact(fact)
        self._fleet.take(fact, now)
        if isinstance(fact, BackendJoined):
            self._keep(fact.spec.id)

    def _keep(self, backend: str) -> None:
        self._known[backend] = self._fleet.backends[backend]
        if len(self._known) > MAX_BACKENDS:  # ids that come and go must not fill the memory
            gone = next((known for known in self._known if known not in self._fleet.backends), backend)
            del self._known[gone]
            for phase in Phase:
                self._by_backend.pop((gone, phase), None)

    def _is_handoff(self, fact: KVMoved) -> bool:
        journey = self._progress.of(fact.request_id, fact.epoch)
        return journey is not None and journey.stage is Stage.HANDOFF

    def _take_action(self, action: Any, now: Seconds) -> None:
        match action:
            case FinishRequest(report=report):
                self._outcomes[Outcome.OK] += 1
                self._account(report)
                self._finished(report, now)
            case FailRequest(reason=reason, report=report):
                self._outcomes[outcome_of(reason, started=report.attempts > 0)] += 1
                self._account(report)
            case NoteRetry():
                self._retries += 1
            case _:
                pass

    def _account(self, report: Report) -> None:
        computed = max(0, report.usage.prompt_tokens - report.usage.cached_prompt_tokens)
        for use in report.uses:
            for sums in self._sums(use):
                sums.take(use)
        for phase, tokens in ((Phase.PREFILL, computed), (Phase.DECODE, report.usage.output_tokens)):
            for sums in self._sums(last_use(report, phase)):
                sums.tokens += tokens
        self._output_tokens += report.usage.output_tokens
        self._prompt_tokens += report.usage.prompt_tokens

    def _finished(self, report: Report, now: Seconds) -> None:
        times, to = report.times, self._latencies
        to.queue.add(times.queue_s)
        to.prefill.add(times.prefill_s)
        to.decode.add(times.decode_s)
        to.e2e.add(times.e2e_s)
        if times.ttft_s is not None:
            to.ttft.add(times.ttft_s)
        if times.tpot_s is not None:
            to.tpot.add(times.tpot_s)
        self._goodput += objectives_met(report, now)["all"]
        self._finished_where(report)

    def _finished_where(self, report: Report) -> None:
        prefill, decode = last_use(report, Phase.PREFILL), last_use(report, Phase.DECODE)
        for use, duration in ((prefill, report.times.prefill_s), (decode, report.times.decode_s)):
            for sums in self._sums(use):
                sums.duration.add(duration)
        if prefill and decode and prefill.backend != decode.backend:
            self._split += 1
            self._split_kinds += prefill.kind is not decode.kind
            self._latencies.handoff.add(report.times.handoff_s)

    def _sums(self, use: PhaseUse | None) -> tuple[_Phase, ...]:
        if use is None:
            return ()
        return (
            self._by_backend.setdefault((use.backend, use.phase), _Phase()),
            self._by_kind.setdefault((use.kind, use.phase), _Phase()),
        )

    # --- reading -----------------------------------------------------------------------------------

    def snapshot(self, now: Seconds) -> ActivitySnapshot:
        """Everything as of `now`. Sorts histograms: for a table a few times a second, not for a hot path."""
        to = self._latencies
        backends = [self._backend(record, now) for record in self._known.values()]
        return ActivitySnapshot(
            elapsed_s=0.0 if self._began is None else now - self._began,
            arrived=self._arrived,
            ok=self._outcomes[Outcome.OK],
            outcomes=dict(self._outcomes),
            live={stage.value: self._progress.stages[stage] for stage in Stage},
            retries=self._retries,
            handoffs=self._handoffs,
            handoff_bytes=self._handoff_bytes,
            split=self._split,
            split_kinds=self._split_kinds,
            goodput=self._goodput,
            phases={
                name: getattr(to, name).percentiles() for name in ("queue", "prefill", "handoff", "decode")
            },
            ttft_s=to.ttft.percentiles(),
            tpot_s=to.tpot.percentiles(),
            e2e_s=to.e2e.percentiles(),
            backends=backends,
            kinds=self._kinds(now),
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            cost_usd=sum(sums.cost_usd for sums in self._by_kind.values()),
            energy_j=sum(sums.energy_j for sums in self._by_kind.values()),
        )

    def _backend(self, record: BackendRecord, now: Seconds) -> BackendActivity:
        backend = record.spec.id
        prefill = self._by_backend.get((backend, Phase.PREFILL), _Phase())
        decode = self._by_backend.get((backend, Phase.DECODE), _Phase())
        present = self._fleet.backends.get(backend) is record
        return BackendActivity(
            id=backend,
            kind=record.spec.kind,
            state=record.state if present else None,
            prefills=prefill.done,
            decodes=decode.done,
            prefills_in_flight=self._progress.in_flight.get((backend, Phase.PREFILL), 0),
            decodes_in_flight=self._progress.in_flight.get((backend, Phase.DECODE), 0),
            busy_ratio=_ratio(sum(record.busy.values()), now - record.joined_at),
            busy_prefill_s=record.busy[Phase.PREFILL],
            busy_decode_s=record.busy[Phase.DECODE],
            tokens=decode.tokens,
            prompt_tokens=prefill.tokens,
            cost_usd=prefill.cost_usd + decode.cost_usd,
            energy_j=prefill.energy_j + decode.energy_j,
        )

    def _kinds(self, now: Seconds) -> list[KindActivity]:
        """In the order of BackendKind, prefill before decode; only what some backend offers or has done."""
        offered = {
            (record.spec.kind, phase) for record in self._known.values() for phase in record.spec.phases
        }
        keys = offered | self._by_kind.keys()
        return [
            self._kind(kind, phase, now) for kind in BackendKind for phase in Phase if (kind, phase) in keys
        ]

    def _kind(self, kind: BackendKind, phase: Phase, now: Seconds) -> KindActivity:
        sums = self._by_kind.get((kind, phase), _Phase())
        of_kind = [r for r in self._known.values() if r.spec.kind is kind and phase in r.spec.phases]
        present = [r for r in of_kind if self._fleet.backends.get(r.spec.id) is r]
        return KindActivity(
            kind=kind,
            phase=phase,
            backends=len(present),
            done=sums.done,
            in_flight=sum(self._progress.in_flight.get((r.spec.id, phase), 0) for r in present),
            busy_ratio=_ratio(sum(r.busy[phase] for r in of_kind), sum(now - r.joined_at for r in of_kind)),
            duration_s=sums.duration.percentiles(),
            tokens=sums.tokens,
            cost_usd=sums.cost_usd,
            energy_j=sums.energy_j,
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
