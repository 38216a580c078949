"""Prometheus metrics derived from facts and actions: a tap on the core, and a few notes from the daemon.

No global registry, nothing per token: tokens are counted when a request ends, busy time when a load report
comes in. Names and labels are in catalogue.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry

from router.core.messages import (
    BackendJoined,
    BackendRemoved,
    BackendReported,
    FailRequest,
    FinishRequest,
    KVMoved,
    NoteDecision,
    NotePolicyFault,
    NotePreempted,
    NoteRetry,
    RequestArrived,
)
from router.core.ports import LearningModels
from router.errors import Reason
from router.model import Phase, Seconds
from router.observe.accounts import Accounts
from router.observe.fleet import SUB_PHASES, Fleet
from router.observe.instruments import Instruments
from router.observe.names import Names
from router.observe.progress import Progress, Stage
from router.observe.reports import Outcome, outcome_of
from router.observe.series import NONE, OTHER
from router.observe.shadow import Opinion
from router.observe.standing import Standing

STRAY_FAULTS: Final = ("zombie", "duplicate", "gap")
"""Tokens of a sequence that is over, tokens that came before, and tokens that did not come."""

PRICE_OUTCOMES: Final = ("solved", "late", "failed", "thin", "groups", "fleet")


class Metrics:
    """A core.ports.Tap that keeps the metrics of one router.

    `histogram_backends` bounds how many backends have latency histograms of their own; those that join
    later share backend="other" until one leaves. Counters and gauges always name the backend.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        version: str = "unknown",
        histogram_backends: int = 128,
        learning: LearningModels | None = None,
    ) -> None:
        """`learning` is asked at each scrape how its models stand; without it they have no series."""
        self._to = Instruments(registry)
        self._fleet = Fleet()
        self._progress = Progress()
        registry.register(Standing(self._fleet, self._progress, learning))
        self._names = Names(self._fleet, histogram_backends)
        self._accounts = Accounts(self._to, self._names, self._progress)
        self._to.build_info.labels(version).set(1)
        self._to.reload_success.set(1)
        for result in ("ok", "failed"):
            self._to.reloads.add(0, result)

    # --- the tap -----------------------------------------------------------------------------------

    def seen(self, fact: Any, now: Seconds, actions: Sequence[Any]) -> None:
        """Follow one fact (None: a deadline) and what the core answered."""
        if fact is not None:
            self._take_fact(fact, now)
        for action in actions:
            if isinstance(action, NoteDecision):
                self._decided(action, fact)
            else:
                self._take_action(action, now)
            self._progress.take_action(action)

    def _take_fact(self, fact: Any, now: Seconds) -> None:
        match fact:
            case BackendReported():
                self._reported(fact, now)
                return
            case RequestArrived(request):
                self._to.arrivals.add(1, request.priority.name.lower())
            case KVMoved():
                self._kv_moved(fact)
            case BackendJoined():
                self._joined(fact, now)
                return
            case BackendRemoved():
                self._removed(fact.backend)
            case _:
                pass
        self._progress.take_fact(fact)
        self._fleet.take(fact, now)

    def _take_action(self, action: Any, now: Seconds) -> None:
        match action:
            case FinishRequest(report=report):
                self._accounts.finished(report, now)
            case FailRequest(request_id=request_id, reason=reason):
                if outcome_of(reason, started=True) is Outcome.FAILED:
                    self._attempt_failed(request_id, reason)
                self._accounts.failed(action, now)
            case NoteRetry(request_id=request_id, phase=phase, reason=reason):
                self._attempt_failed(request_id, reason)
                self._to.retries.add(1, phase, reason)
            case NotePreempted(request_id=request_id):
                if (journey := self._progress.of(request_id)) is not None:
                    self._to.gave_way.add(1, journey.priority.name.lower())
            case NotePolicyFault(policy=policy, fault=fault):
                self._to.policy_faults.add(1, self._names.policy(policy), self._names.fault(fault))
            case _:
                pass

    # --- what is not a fact ------------------------------------------------------------------------

    def driver_lateness(self, lateness_s: Seconds) -> None:
        """A deadline of the core was served this much after it was due."""
        self._to.driver_lateness.observe(lateness_s)

    def loop_lag(self, lag_s: Seconds) -> None:
        """A periodic timer of the event loop ran this much late."""
        self._to.loop_lag.observe(lag_s)

    def decision(self, policy: str, duration_s: Seconds) -> None:
        """A policy took this long for one answer."""
        self._to.decision_seconds.observe(duration_s, self._names.policy(policy))

    def config_reloaded(self, ok: bool) -> None:
        """The configuration was read again; if not ok, the last good one stays in force."""
        self._to.reload_success.set(float(ok))
        self._to.reloads.add(1, "ok" if ok else "failed")

    def stray_tokens(self, backend: str, fault: str, count: int = 1) -> None:
        """Tokens dropped or missed on a lane; `fault` is one of STRAY_FAULTS."""
        record = self._fleet.backends.get(backend)
        name, kind = (backend, str(record.spec.kind)) if record else (OTHER, NONE)
        self._to.stray_tokens.add(count, name, kind, fault if fault in STRAY_FAULTS else OTHER)

    def price_problem(self, outcome: str) -> None:
        """A problem was solved, late or failed, or was not stated for a reason (router.prices.Unpriced)."""
        self._to.price_problems.add(1, outcome if outcome in PRICE_OUTCOMES else OTHER)

    def price_solve(self, duration_s: Seconds) -> None:
        """Prices took this long to work out."""
        self._to.price_solve.observe(duration_s)

    def price_age(self, age_s: Seconds) -> None:
        """The last prices were worked out for a load this long ago."""
        self._to.price_age.set(age_s)

    def refused(self, reason: Reason) -> None:
        """A request was refused before it became a fact."""
        self._accounts.refused(reason)

    # --- a shadow policy; called on its thread ------------------------------------------------------

    def shadow_opinion(self, policy: str, opinion: Opinion, cpu_s: Seconds) -> None:
        """A shadow policy answered, and its answer was compared with the live one's."""
        name = self._names.policy(policy)
        self._to.shadow_decisions.add(1, name, opinion.verdict)
        self._to.shadow_seconds.observe(cpu_s, name)
        for latency, ratio in opinion.ratios.items():
            self._to.shadow_prediction.observe(ratio, name, latency)
        if opinion.fault:
            self.shadow_fault(policy, opinion.fault)

    def shadow_fault(self, policy: str, fault: str) -> None:
        """A shadow policy was slow, or did what it must not."""
        self._to.shadow_faults.add(1, self._names.policy(policy), self._names.fault(fault))

    def shadow_skipped(self, policy: str, what: str) -> None:
        """A shadow policy was not shown a decision or a fact; `what` is one of the two words."""
        self._to.shadow_skipped.add(1, self._names.policy(policy), what)

    # --- backends ----------------------------------------------------------------------------------

    def _joined(self, fact: BackendJoined, now: Seconds) -> None:
        backend, kind = fact.spec.id, fact.spec.kind
        known = self._fleet.backends.get(backend)
        if known is not None and known.spec.kind is not kind:
            self._to.forget_backend(backend)  # or the old kind's series would stay for ever
        self._fleet.take(fact, now)
        self._names.joined(backend)
        # Series start at zero: rate() and increase() do not see the jump from absent to the first value.
        for phase in fact.spec.phases:
            self._to.busy.add(0, backend, kind, phase)
        self._to.preemptions.add(0, backend, kind)
        self._to.loading.add(0, backend, kind)
        for sub_phase in SUB_PHASES if fact.spec.afd is not None else ():
            self._to.sub_phase_busy.add(0, backend, kind, sub_phase)
        for fault in STRAY_FAULTS:
            self._to.stray_tokens.add(0, backend, kind, fault)

    def _reported(self, fact: BackendReported, now: Seconds) -> None:
        growth = self._fleet.take(fact, now)
        if growth is None:
            return
        backend, kind = fact.backend, self._fleet.backends[fact.backend].spec.kind
        if growth.busy_prefill_s:
            self._to.busy.add(growth.busy_prefill_s, backend, kind, Phase.PREFILL)
        if growth.busy_decode_s:
            self._to.busy.add(growth.busy_decode_s, backend, kind, Phase.DECODE)
        if growth.energy_j:
            self._to.backend_energy.add(growth.energy_j, backend, kind)
        if growth.preemptions:
            self._to.preemptions.add(growth.preemptions, backend, kind)
        if growth.busy_loading_s:
            self._to.loading.add(growth.busy_loading_s, backend, kind)
        for sub_phase, grown_s in growth.sub_phases.items():
            self._to.sub_phase_busy.add(grown_s, backend, kind, sub_phase)

    def _removed(self, backend: str) -> None:
        self._fleet.backends.pop(backend, None)
        self._names.removed(backend)
        self._to.forget_backend(backend)

    # --- decisions and handoffs -------------------------------------------------------------------

    def _decided(self, action: NoteDecision, fact: Any) -> None:
        """A policy's own reason is a sentence for people, with numbers in it; the label says what asked."""
        journey = self._progress.of(action.request_id)
        if journey is not None and journey.stage is Stage.HANDOFF:
            why = "late_binding"
        elif journey is not None and (journey.epoch > 1 or journey.is_waiting_again):
            why = "retry"
        else:
            arrived = isinstance(fact, RequestArrived) and fact.request.id == action.request_id
            why = "arrival" if arrived else "queue"
        self._to.decisions.add(1, self._names.policy(action.decision.policy), why)

    def _kv_moved(self, fact: KVMoved) -> None:
        journey = self._progress.of(fact.request_id, fact.epoch)
        if journey is None or journey.stage is not Stage.HANDOFF:
            return
        kinds = self._names.kind(journey.prefill), self._names.kind(journey.decode)
        self._to.handoff_bytes.add(fact.moved_bytes, *kinds)
        self._to.handoff_transfer.observe(fact.transfer_s, *kinds)

    def _attempt_failed(self, request_id: str, reason: Reason) -> None:
        """Whatever ended an attempt between prefill and decode, be it a timer of the core, cost a handoff."""
        journey = self._progress.of(request_id)
        if journey is not None and journey.stage is Stage.HANDOFF:
            kinds = self._names.kind(journey.prefill), self._names.kind(journey.decode)
            self._to.handoff_failures.add(1, *kinds, reason)
