"""Metrics from scripted facts and actions, with values computed by hand."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from router.core.messages import (
    BackendCordoned,
    BackendJoined,
    BackendLost,
    BackendRemoved,
    BackendReported,
    FailRequest,
    KVMoved,
    NoteDecision,
    NotePolicyFault,
    NotePreempted,
    NoteRetry,
    PhaseFailed,
    PrefillDone,
    RequestArrived,
    RequestCancelled,
    StartDecode,
    StartPrefill,
    StopPhase,
)
from router.errors import Reason
from router.model import (
    AfdParameters,
    BackendKind,
    BackendSnapshot,
    Decision,
    FinishReason,
    Phase,
    PhaseCost,
    PhaseTimes,
    PhaseUse,
    Prediction,
    Priority,
    Usage,
)
from router.observe import buckets
from router.observe.catalogue import CATALOGUE
from router.observe.metrics import Metrics
from tests.observe.stories import (
    MODEL,
    SPLIT,
    TIMES,
    failed,
    handle,
    join,
    objectives,
    report,
    request,
    spec,
    split_request,
    value,
)

P = "polyphase_"


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of its own: nothing is shared between routers of one process."""
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    """Metrics of a fleet with one GPU and one LPU."""
    metrics = Metrics(registry, version="1.2.3")
    join(metrics, spec("gpu-0"), spec("lpu-0", BackendKind.LPU, phases=frozenset({Phase.DECODE})))
    return metrics


def test_every_phase_of_a_split_request_lands_on_its_hardware(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """Queue and prefill belong to the GPU, handoff and decode to the LPU."""
    split_request(metrics, request())
    gpu = {"kind": "gpu", "backend": "gpu-0", "model": MODEL}
    lpu = {"kind": "lpu", "backend": "lpu-0", "model": MODEL}
    for phase, seconds, where in (
        ("queue", 0.01, gpu),
        ("prefill", 0.1, gpu),
        ("handoff", 0.02, lpu),
        ("decode", 0.37, lpu),
    ):
        assert value(registry, f"{P}phase_duration_seconds_sum", phase=phase, **where) == seconds
        assert value(registry, f"{P}phase_duration_seconds_count", phase=phase, **where) == 1
    assert value(registry, f"{P}ttft_seconds_sum", **gpu) == 0.14
    assert value(registry, f"{P}tpot_seconds_sum", **lpu) == 0.0075
    assert value(registry, f"{P}e2e_seconds_sum", **lpu) == 0.5
    assert value(registry, f"{P}splits_total", prefill_kind="gpu", decode_kind="lpu", split="true") == 1


def test_a_request_that_gives_way_waits_again(metrics: Metrics, registry: CollectorRegistry) -> None:
    """It counts as queued, under its own class, and not as a retry; its wait is booked at its end."""
    metrics.seen(RequestArrived(request()), 0.0, [StartPrefill("r1", 1, "gpu-0", True)])
    metrics.seen(None, 1.0, [StopPhase("r1", 1, "gpu-0"), NotePreempted("r1", "gpu-0", "r2")])
    assert value(registry, f"{P}gave_way_total", priority="normal") == 1
    assert value(registry, f"{P}queue_depth", priority="normal") == 1
    split_request(metrics, request())
    assert value(registry, f"{P}queue_wait_seconds_count", priority="normal") == 1


def test_an_unsplit_request_has_no_handoff(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Zeros of unsplit requests would hide what a handoff costs."""
    uses = (SPLIT[0], PhaseUse(Phase.DECODE, "gpu-0", BackendKind.GPU, PhaseCost(), 0.0))
    asked = request()
    split_request(metrics, asked, report(asked, uses=uses))
    assert (
        value(
            registry,
            f"{P}phase_duration_seconds_count",
            phase="handoff",
            kind="gpu",
            backend="gpu-0",
            model=MODEL,
        )
        is None
    )
    assert value(registry, f"{P}splits_total", prefill_kind="gpu", decode_kind="gpu", split="false") == 1


def test_tokens_cost_and_energy_are_booked_by_kind_backend_and_phase(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """100 prompt tokens of which 20 came from the cache, 49 out."""
    split_request(metrics, request())
    assert value(registry, f"{P}tokens_total", direction="prompt") == 100
    assert value(registry, f"{P}tokens_total", direction="cached") == 20
    assert value(registry, f"{P}tokens_total", direction="output") == 49
    assert value(registry, f"{P}backend_tokens_total", backend="gpu-0", kind="gpu", phase="prefill") == 80
    assert value(registry, f"{P}backend_tokens_total", backend="lpu-0", kind="lpu", phase="decode") == 49
    assert value(registry, f"{P}cost_usd_total", kind="gpu", backend="gpu-0", phase="prefill") == 0.002
    assert value(registry, f"{P}cost_usd_total", kind="lpu", backend="lpu-0", phase="decode") == 0.001
    assert value(registry, f"{P}energy_joules_total", kind="gpu", backend="gpu-0", phase="prefill") == 50.0
    assert value(registry, f"{P}energy_joules_total", kind="lpu", backend="lpu-0", phase="decode") == 30.0


def test_handoffs_are_counted_by_the_kinds_they_connect(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """Bytes and link time of one transfer; a second report of it counts nothing."""
    split_request(metrics, request())
    metrics.seen(KVMoved("r1", 1, moved_bytes=999), 11.0, [])
    assert value(registry, f"{P}handoff_bytes_total", from_kind="gpu", to_kind="lpu") == 4096
    assert value(registry, f"{P}handoff_transfer_seconds_sum", from_kind="gpu", to_kind="lpu") == 0.015


def test_a_handoff_that_breaks_counts_once_and_the_retry_too(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """The attempt failed between prefill and decode; the next one starts with prefill."""
    _until_handoff(metrics)
    fact = PhaseFailed("r1", 1, Phase.DECODE, "lpu-0", Reason.KV_TRANSFER_FAILED)
    actions = [
        StopPhase("r1", 1, "lpu-0"),
        NoteRetry("r1", Phase.DECODE, "lpu-0", Reason.KV_TRANSFER_FAILED),
        StartPrefill("r1", 2, "gpu-0", decode_here=True),
    ]
    metrics.seen(fact, 11.0, actions)
    labels = {"from_kind": "gpu", "to_kind": "lpu", "reason": "KV_TRANSFER_FAILED"}
    assert value(registry, f"{P}handoff_failures_total", **labels) == 1
    assert value(registry, f"{P}retries_total", phase="decode", reason="KV_TRANSFER_FAILED") == 1
    assert value(registry, f"{P}backend_in_flight", backend="gpu-0", kind="gpu", phase="prefill") == 1
    assert value(registry, f"{P}backend_in_flight", backend="lpu-0", kind="lpu", phase="decode") == 0


def test_a_failure_in_prefill_is_no_handoff_failure(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Only what ends an attempt between prefill and decode cost a handoff."""
    metrics.seen(RequestArrived(request()), 1.0, [StartPrefill("r1", 1, "gpu-0", decode_here=False)])
    fact = PhaseFailed("r1", 1, Phase.PREFILL, "gpu-0", Reason.BACKEND_FAILED)
    metrics.seen(fact, 2.0, [NoteRetry("r1", Phase.PREFILL, "gpu-0", Reason.BACKEND_FAILED)])
    assert "handoff_failures_total{" not in generate_latest(registry).decode()
    assert value(registry, f"{P}queue_depth", priority="normal") == 1


def test_stages_follow_a_request(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Queue, prefill, handoff, decode, gone."""

    def stages() -> dict[str, float | None]:
        names = ("queue", "prefill", "handoff", "decode")
        return {s: n for s in names if (n := value(registry, f"{P}requests_in_progress", stage=s))}

    metrics.seen(RequestArrived(request(priority=Priority.INTERACTIVE)), 1.0, [])
    assert stages() == {"queue": 1}
    assert value(registry, f"{P}queue_depth", priority="interactive") == 1
    metrics.seen(None, 2.0, [StartPrefill("r1", 1, "gpu-0", decode_here=False)])
    assert stages() == {"prefill": 1}
    assert value(registry, f"{P}queue_depth", priority="interactive") == 0
    metrics.seen(PrefillDone("r1", 1, PhaseCost(), kv=handle()), 3.0, [])
    assert stages() == {"handoff": 1}
    metrics.seen(None, 3.5, [StartDecode("r1", 1, "lpu-0", handle())])
    metrics.seen(KVMoved("r1", 1, 10), 4.0, [])
    assert stages() == {"decode": 1}
    assert value(registry, f"{P}backend_in_flight", backend="lpu-0", kind="lpu", phase="decode") == 1
    account = report(request(), finish=None, error="CANCELLED")
    cancelled = [FailRequest("r1", Reason.CANCELLED, "left", 0.0, account)]
    metrics.seen(RequestCancelled("r1"), 5.0, cancelled)
    assert stages() == {}
    assert value(registry, f"{P}cancels_total", reason="CANCELLED", stage="decode") == 1
    assert value(registry, f"{P}backend_in_flight", backend="lpu-0", kind="lpu", phase="decode") == 0


def test_decode_at_the_place_of_prefill_moves_the_in_flight_count(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """With decode_here no action announces decode; the end of prefill does."""
    metrics.seen(RequestArrived(request()), 1.0, [StartPrefill("r1", 1, "gpu-0", decode_here=True)])
    metrics.seen(PrefillDone("r1", 1, PhaseCost()), 2.0, [])
    assert value(registry, f"{P}backend_in_flight", backend="gpu-0", kind="gpu", phase="prefill") == 0
    assert value(registry, f"{P}backend_in_flight", backend="gpu-0", kind="gpu", phase="decode") == 1


def test_facts_of_an_epoch_that_is_over_change_nothing(metrics: Metrics, registry: CollectorRegistry) -> None:
    """A worker that was given up still answers."""
    metrics.seen(RequestArrived(request()), 1.0, [StartPrefill("r1", 2, "gpu-0", decode_here=True)])
    metrics.seen(PrefillDone("r1", 1, PhaseCost()), 2.0, [])
    assert value(registry, f"{P}requests_in_progress", stage="prefill") == 1


@pytest.mark.parametrize(
    ("reason", "attempts", "outcome", "code"),
    [
        (Reason.QUEUE_FULL, 0, "shed", "RESOURCE_EXHAUSTED"),
        (Reason.DEADLINE_INFEASIBLE, 0, "shed", "DEADLINE_EXCEEDED"),
        (Reason.DEADLINE_EXPIRED, 0, "shed", "DEADLINE_EXCEEDED"),
        (Reason.DEADLINE_EXPIRED, 1, "failed", "DEADLINE_EXCEEDED"),
        (Reason.DRAINING, 0, "shed", "UNAVAILABLE"),
        (Reason.DRAINING, 1, "failed", "UNAVAILABLE"),
        (Reason.BACKEND_LOST, 3, "failed", "UNAVAILABLE"),
        (Reason.UNKNOWN_MODEL, 0, "refused", "NOT_FOUND"),
        (Reason.SLOW_READER, 1, "cancelled", "ABORTED"),
    ],
)
def test_outcomes_name_whose_matter_a_failure_was(
    metrics: Metrics, registry: CollectorRegistry, reason: Reason, attempts: int, outcome: str, code: str
) -> None:
    """One count, with the gRPC code and the public reason; sheds have a count of their own."""
    failed(metrics, request(), reason, attempts=attempts)
    assert value(registry, f"{P}requests_total", outcome=outcome, code=code, reason=reason) == 1
    assert value(registry, f"{P}sheds_total", reason=reason) == (1 if outcome == "shed" else None)


def test_failures_exist_as_zeros_before_the_first(metrics: Metrics, registry: CollectorRegistry) -> None:
    """increase() does not see the step from an absent series to 1."""
    labels = {"outcome": "failed", "code": "UNAVAILABLE", "reason": "BACKEND_LOST"}
    assert value(registry, f"{P}requests_total", **labels) == 0
    labels = {"backend": "gpu-0", "kind": "gpu"}
    assert value(registry, f"{P}stray_tokens_total", **labels, fault="gap") == 0


def test_the_queue_time_of_a_request_that_was_never_placed_is_kept(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """Or a jammed queue would look short: only those that got through would count."""
    times = PhaseTimes(9.0, 0.0, 0.0, 0.0, 9.0, None, None)
    failed(metrics, request(), Reason.DEADLINE_EXPIRED, times=times)
    labels = {"phase": "queue", "kind": "none", "backend": "none", "model": MODEL}
    assert value(registry, f"{P}phase_duration_seconds_sum", **labels) == 9.0


# --- objectives --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slo", "deadline", "expected"),
    [
        ({}, float("inf"), {"all": "true"}),
        ({"ttft_s": 0.14}, float("inf"), {"ttft": "true", "all": "true"}),
        ({"ttft_s": 0.13}, float("inf"), {"ttft": "false", "all": "false"}),
        ({"tpot_s": 0.007}, float("inf"), {"tpot": "false", "all": "false"}),
        (
            {"ttft_s": 1.0, "tpot_s": 0.01},
            10.5,
            {"ttft": "true", "tpot": "true", "deadline": "true", "all": "true"},
        ),
        ({"ttft_s": 1.0}, 10.4, {"ttft": "true", "deadline": "false", "all": "false"}),
    ],
)
def test_attainment_counts_each_objective_a_request_had(
    metrics: Metrics,
    registry: CollectorRegistry,
    slo: dict[str, float],
    deadline: float,
    expected: dict[str, str],
) -> None:
    """TTFT is 0.14 s, TPOT 7.5 ms, and the end at 10.5 s; a bound that is hit exactly is met."""
    split_request(metrics, request(workload_class="chat", slo=objectives(**slo), deadline=deadline))
    found = {
        objective: met
        for objective in ("ttft", "tpot", "deadline", "all")
        for met in ("true", "false")
        if value(registry, f"{P}slo_requests_total", workload_class="chat", objective=objective, met=met)
    }
    assert found == expected
    good = 1 if expected["all"] == "true" else 0
    assert value(registry, f"{P}goodput_requests_total", workload_class="chat") == good


def test_an_answer_of_one_token_meets_an_objective_per_token(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """There is no time per token below two tokens."""
    asked = request(slo=objectives(tpot_s=0.001))
    times = PhaseTimes(0.01, 0.1, 0.02, 0.0, 0.13, 0.13, None)
    split_request(metrics, asked, report(asked, times=times, usage=Usage(100, 0, 1)))
    labels = {"workload_class": "none", "objective": "tpot", "met": "true"}
    assert value(registry, f"{P}slo_requests_total", **labels) == 1


@pytest.mark.parametrize(
    ("reason", "counted"), [(Reason.BACKEND_LOST, 1), (Reason.SHED, 1), (Reason.CANCELLED, None)]
)
def test_failures_miss_objectives_but_who_left_was_not_let_down(
    metrics: Metrics, registry: CollectorRegistry, reason: Reason, counted: float | None
) -> None:
    """A client that cancels would otherwise lower the service's attainment."""
    failed(metrics, request(slo=objectives(ttft_s=1.0)), reason, attempts=1)
    labels = {"workload_class": "none", "met": "false"}
    assert value(registry, f"{P}slo_requests_total", **labels, objective="all") == counted
    assert value(registry, f"{P}slo_requests_total", **labels, objective="ttft") == counted
    assert not value(registry, f"{P}goodput_requests_total", workload_class="none")


# --- backends ----------------------------------------------------------------------------------------


def _report(metrics: Metrics, prefill: float, decode: float, energy: float, preemptions: int = 0) -> None:
    snapshot = BackendSnapshot(
        1.0,
        running=3,
        waiting=2,
        kv_used_tokens=400,
        busy_prefill_s=prefill,
        busy_decode_s=decode,
        energy_j=energy,
        preemptions=preemptions,
    )
    metrics.seen(BackendReported("gpu-0", snapshot), 1.0, [])


def _busy(registry: CollectorRegistry, phase: str) -> float | None:
    return value(registry, f"{P}backend_busy_seconds_total", backend="gpu-0", kind="gpu", phase=phase)


def test_busy_time_grows_by_what_the_worker_reports(metrics: Metrics, registry: CollectorRegistry) -> None:
    """The first report sets the base: a worker may be older than the router."""
    _report(metrics, 100.0, 200.0, 1000.0, preemptions=4)
    assert _busy(registry, "prefill") == 0.0
    _report(metrics, 100.5, 202.0, 1010.0, preemptions=5)
    _report(metrics, 101.0, 202.0, 1030.0, preemptions=5)
    assert _busy(registry, "prefill") == 1.0
    assert _busy(registry, "decode") == 2.0
    assert value(registry, f"{P}backend_energy_joules_total", backend="gpu-0", kind="gpu") == 30.0
    assert value(registry, f"{P}backend_preemptions_total", backend="gpu-0", kind="gpu") == 1.0


def test_a_restarted_worker_counts_from_zero(metrics: Metrics, registry: CollectorRegistry) -> None:
    """With another incarnation its counters began anew, so the first report is all growth."""
    _report(metrics, 100.0, 0.0, 0.0)
    _report(metrics, 101.0, 0.0, 0.0)
    metrics.seen(BackendLost("gpu-0"), 2.0, [])
    metrics.seen(BackendJoined(spec("gpu-0"), "boot-2"), 3.0, [])
    _report(metrics, 0.25, 0.0, 0.0)
    assert _busy(registry, "prefill") == 1.25


def test_a_lane_that_comes_back_continues_its_counters(metrics: Metrics, registry: CollectorRegistry) -> None:
    """The same incarnation worked on while it was out of sight."""
    _report(metrics, 100.0, 0.0, 0.0)
    metrics.seen(BackendLost("gpu-0"), 2.0, [])
    metrics.seen(BackendJoined(spec("gpu-0"), "boot-1"), 3.0, [])
    _report(metrics, 100.75, 0.0, 0.0)
    assert _busy(registry, "prefill") == 0.75


def test_a_counter_that_falls_without_a_restart_is_taken_as_reset(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """A worker that breaks its contract must not make a counter fall, which rate() takes for a restart."""
    _report(metrics, 100.0, 0.0, 0.0)
    _report(metrics, 0.5, 0.0, 0.0)
    assert _busy(registry, "prefill") == 0.5


def test_standing_gauges_read_the_last_report(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Capacity comes from the spec, use from the report."""
    _report(metrics, 0.0, 0.0, 0.0)
    gpu = {"backend": "gpu-0", "kind": "gpu"}
    assert value(registry, f"{P}backend_kv_tokens", **gpu, state="used") == 400
    assert value(registry, f"{P}backend_kv_tokens", **gpu, state="capacity") == 1000
    assert value(registry, f"{P}backend_slots", **gpu, state="used") == 3
    assert value(registry, f"{P}backend_slots", **gpu, state="capacity") == 8
    assert value(registry, f"{P}backend_waiting_sequences", **gpu) == 2


def test_states_follow_the_facts_and_a_cordon_outlives_the_lane(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """As in core/fleet.py."""

    def state() -> str:
        states = ("connecting", "ready", "cordoned", "draining", "lost")
        labels = {"backend": "gpu-0", "kind": "gpu"}
        (now,) = [s for s in states if value(registry, f"{P}backend_state", **labels, state=s)]
        return now

    assert state() == "ready"
    metrics.seen(BackendCordoned("gpu-0"), 1.0, [])
    assert state() == "cordoned"
    metrics.seen(BackendLost("gpu-0"), 2.0, [])
    assert state() == "lost"
    metrics.seen(BackendJoined(spec("gpu-0"), "boot-2"), 3.0, [])
    assert state() == "cordoned"
    metrics.seen(BackendCordoned("gpu-0", cordoned=False), 4.0, [])
    assert state() == "ready"
    metrics.seen(BackendCordoned("gpu-0", draining=True), 5.0, [])
    assert state() == "draining"


def test_backends_per_phase_are_exported_at_zero(registry: CollectorRegistry) -> None:
    """The alert for a fleet that cannot decode must not depend on an absent series."""
    metrics = Metrics(registry)
    assert value(registry, f"{P}phase_backends", phase="decode", state="ready") == 0
    join(metrics, spec("a"), spec("b", phases=frozenset({Phase.PREFILL})))
    assert value(registry, f"{P}phase_backends", phase="prefill", state="ready") == 2
    assert value(registry, f"{P}phase_backends", phase="decode", state="ready") == 1


def test_a_departed_backend_leaves_no_series(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Also not when a request that used it ends later; its cost goes to "other"."""
    split_request(metrics, request())
    _report(metrics, 1.0, 1.0, 1.0)
    _report(metrics, 2.0, 2.0, 2.0)
    metrics.stray_tokens("gpu-0", "zombie", 2)
    assert '"gpu-0"' in generate_latest(registry).decode()
    metrics.seen(BackendRemoved("gpu-0"), 20.0, [])
    split_request(metrics, request("r2"), start=21.0)
    _report(metrics, 3.0, 3.0, 3.0)
    metrics.stray_tokens("gpu-0", "zombie")
    text = generate_latest(registry).decode()
    assert '"gpu-0"' not in text
    assert '"lpu-0"' in text
    assert value(registry, f"{P}cost_usd_total", kind="gpu", backend="other", phase="prefill") == 0.002


# --- labels ------------------------------------------------------------------------------------------


def test_workload_classes_are_bounded(metrics: Metrics, registry: CollectorRegistry) -> None:
    """The first 32 classes have a label, the rest share one."""
    for i in range(40):
        split_request(metrics, request(f"r{i}", workload_class=f"class-{i}"), start=10.0 + i)
    assert value(registry, f"{P}goodput_requests_total", workload_class="class-31") == 1
    assert value(registry, f"{P}goodput_requests_total", workload_class="class-32") is None
    assert value(registry, f"{P}goodput_requests_total", workload_class="other") == 8


def test_a_client_cannot_invent_a_model_label(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Models become labels when a backend serves them."""
    failed(metrics, request(model="x" * 5000), Reason.UNKNOWN_MODEL)
    labels = {"phase": "queue", "kind": "none", "backend": "none", "model": "other"}
    assert value(registry, f"{P}phase_duration_seconds_count", **labels) == 1


def test_policies_faults_and_decision_times(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Decisions by policy and reason; faults by kind; times by policy."""
    split_request(metrics, request())
    metrics.seen(None, 30.0, [NotePolicyFault("mine", "raised", "boom")])
    metrics.decision("predicted", 0.00004)
    assert value(registry, f"{P}decisions_total", policy="predicted", reason="arrival") == 1
    assert value(registry, f"{P}policy_faults_total", policy="mine", fault="raised") == 1
    assert value(registry, f"{P}decision_seconds_bucket", policy="predicted", le="5e-05") == 1
    assert value(registry, f"{P}decision_seconds_bucket", policy="predicted", le="2.5e-05") == 0


def test_decisions_are_counted_by_what_asked_for_them(metrics: Metrics, registry: CollectorRegistry) -> None:
    """A policy's own reason is a sentence with numbers in it: a label of it would be without bound."""
    note = NoteDecision("r1", Decision("mine", "5 of 6 backends can prefill; gpu-0 is first"))
    start = StartPrefill("r1", 1, "gpu-0", decode_here=False)
    again = StartPrefill("r1", 2, "gpu-0", decode_here=False)
    metrics.seen(RequestArrived(request()), 1.0, [])
    metrics.seen(RequestArrived(request("r2")), 1.5, [start, note])
    metrics.seen(
        PrefillDone("r1", 1, PhaseCost(), kv=handle()), 2.0, [note, StartDecode("r1", 1, "lpu-0", handle())]
    )
    lost = [NoteRetry("r1", Phase.DECODE, "lpu-0", Reason.BACKEND_LOST), again, note]
    metrics.seen(BackendLost("lpu-0"), 3.0, lost)
    for reason in ("queue", "late_binding", "retry"):
        assert value(registry, f"{P}decisions_total", policy="mine", reason=reason) == 1
    assert value(registry, f"{P}decisions_total", policy="mine", reason="arrival") is None
    assert "5 of 6" not in generate_latest(registry).decode()


def test_predictions_are_held_against_what_happened(metrics: Metrics, registry: CollectorRegistry) -> None:
    """0.14 s against 0.07 s predicted is 2; 0.5 s against 0.5 s is 1."""
    asked = request()
    decision = Decision("predicted", prediction=Prediction(ttft_s=0.07, e2e_s=0.5))
    split_request(metrics, asked, report(asked, decision=decision))
    name = f"{P}prediction_ratio_sum"
    assert value(registry, name, policy="predicted", latency="ttft") == pytest.approx(2.0)
    assert value(registry, name, policy="predicted", latency="e2e") == pytest.approx(1.0)


def test_what_is_not_a_fact_has_a_method(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Lateness, lag, reloads, stray tokens, refusals."""
    metrics.driver_lateness(0.002)
    metrics.loop_lag(0.004)
    metrics.config_reloaded(ok=False)
    metrics.stray_tokens("lpu-0", "duplicate", 3)
    metrics.stray_tokens("nobody", "made up")
    metrics.refused(Reason.INVALID_REQUEST)
    assert value(registry, f"{P}driver_lateness_seconds_sum") == 0.002
    assert value(registry, f"{P}event_loop_lag_seconds_sum") == 0.004
    assert value(registry, f"{P}config_last_reload_success") == 0
    assert value(registry, f"{P}config_reloads_total", result="failed") == 1
    assert value(registry, f"{P}stray_tokens_total", backend="lpu-0", kind="lpu", fault="duplicate") == 3
    assert value(registry, f"{P}stray_tokens_total", backend="other", kind="none", fault="other") == 1
    labels = {"outcome": "refused", "code": "INVALID_ARGUMENT", "reason": "INVALID_REQUEST"}
    assert value(registry, f"{P}requests_total", **labels) == 1
    assert value(registry, f"{P}build_info", version="1.2.3") == 1


# --- shape -------------------------------------------------------------------------------------------


def test_buckets_resolve_an_lpu_and_hold_a_reasoning_run() -> None:
    """Four bounds at or below 0.25 ms a token; minutes at the other end; all strictly rising."""
    assert sum(bound <= 0.00025 for bound in buckets.TPOT_S) >= 4
    assert buckets.TPOT_S[-1] >= 1
    for bounds in (buckets.E2E_S, buckets.PHASE_S, buckets.TTFT_S):
        assert bounds[-1] >= 300
    for family in CATALOGUE:
        assert list(family.buckets) == sorted(set(family.buckets))


def test_buckets_hold_the_bounds_of_the_opentelemetry_conventions() -> None:
    """Semantic conventions for generative AI, server metrics: dashboards built on those transfer."""
    ttft = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
    tpot = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
    assert set(ttft) <= set(buckets.TTFT_S)
    assert set(tpot) <= set(buckets.TPOT_S)
    assert {round(0.01 * 2**i, 2) for i in range(14)} <= set(buckets.E2E_S)


def test_no_created_series_are_exported(metrics: Metrics, registry: CollectorRegistry) -> None:
    """They would double the output of counters for nothing."""
    split_request(metrics, request())
    assert "_created" not in generate_latest(registry).decode()


def test_two_routers_in_one_process_do_not_share_series() -> None:
    """There is no global registry."""
    first, second = CollectorRegistry(), CollectorRegistry()
    one, _ = Metrics(first), Metrics(second)
    failed(one, request(), Reason.SHED)
    assert value(first, f"{P}sheds_total", reason="SHED") == 1
    assert value(second, f"{P}sheds_total", reason="SHED") is None


def test_a_scrape_of_a_thousand_backends_is_bounded(
    registry: CollectorRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    """Histograms stop at the limit of backends; the size is bounded, and size and time are reported."""
    metrics = Metrics(registry, histogram_backends=128)
    for i in range(1000):
        kind = list(BackendKind)[i % 6]
        join(metrics, spec(f"backend-{i}", kind))
        uses = (
            PhaseUse(Phase.PREFILL, f"backend-{i}", kind, PhaseCost(0.0, 0.1, 1.0), 0.1),
            PhaseUse(
                Phase.DECODE,
                f"backend-{max(0, i - 1)}",
                list(BackendKind)[max(0, i - 1) % 6],
                PhaseCost(),
                0.1,
            ),
        )
        asked = request(f"r{i}")
        split_request(metrics, asked, report(asked, uses=uses), start=10.0 + i)
    began = time.perf_counter()
    text = generate_latest(registry).decode()
    took = time.perf_counter() - began
    lines = text.splitlines()
    with capsys.disabled():
        print(f"\n  scrape of 1,000 backends: {len(text) / 1e6:.1f} MB, {len(lines):,} lines, {took:.2f} s")
    histograms = [line for line in lines if line.startswith("polyphase_ttft_seconds_count{")]
    assert len({line.split('backend="')[1].split('"')[0] for line in histograms}) == 129  # with "other"
    assert len(text) < 40e6


def _until_handoff(metrics: Metrics) -> None:
    metrics.seen(RequestArrived(request()), 10.0, [StartPrefill("r1", 1, "gpu-0", decode_here=False)])
    actions = [StartDecode("r1", 1, "lpu-0", handle())]
    metrics.seen(PrefillDone("r1", 1, PhaseCost(), kv=handle()), 10.1, actions)


def test_times_add_up() -> None:
    """The script of these tests is a possible one: the phases sum to the whole."""
    assert TIMES.queue_s + TIMES.prefill_s + TIMES.handoff_s + TIMES.decode_s == pytest.approx(TIMES.e2e_s)
    assert FinishReason.STOP == "stop"


def test_sub_phases_of_a_split_decode_and_loading_have_counters_of_their_own() -> None:
    """As growth since the first report; other backends have no sub-phases."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    rack = replace(spec("rack"), afd=AfdParameters(layers=1, attention_base_s=1e-6, ffn_base_s=1e-6))
    join(metrics, rack, spec("gpu-0"))
    name = "polyphase_backend_sub_phase_busy_seconds_total"
    labels = {"backend": "rack", "kind": "gpu"}
    assert registry.get_sample_value(name, {**labels, "sub_phase": "ffn"}) == 0.0
    for told in (
        BackendSnapshot(1.0, busy_attention_s=1.0, busy_ffn_s=5.0, busy_transfer_s=2.0, busy_loading_s=9.0),
        BackendSnapshot(2.0, busy_attention_s=1.5, busy_ffn_s=7.0, busy_transfer_s=2.0, busy_loading_s=12.0),
    ):
        metrics.seen(BackendReported("rack", told), told.observed_at, ())
    grown = {
        s: registry.get_sample_value(name, {**labels, "sub_phase": s})
        for s in ("attention", "ffn", "transfer")
    }
    assert grown == {"attention": 0.5, "ffn": 2.0, "transfer": 0.0}
    assert registry.get_sample_value("polyphase_backend_loading_seconds_total", labels) == 3.0
    assert registry.get_sample_value(name, {"backend": "gpu-0", "kind": "gpu", "sub_phase": "ffn"}) is None
