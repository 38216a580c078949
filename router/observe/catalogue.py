"""Every metric of the router as a value: name, type, labels, meaning. Names here are public API.

This table is the one source: instruments are built from it, docs/metrics.md and every query under deploy/
are tested against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from router.observe import buckets

PREFIX: Final = "polyphase_"

MetricType = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with all its series."""

    name: str
    """In full: with the prefix, and with _total if it is a counter."""
    type: MetricType
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds without infinity; only of histograms."""


def _counter(name: str, help_: str, *labels: str) -> Family:
    return Family(f"{PREFIX}{name}", "counter", help_, labels)


def _gauge(name: str, help_: str, *labels: str) -> Family:
    return Family(f"{PREFIX}{name}", "gauge", help_, labels)


def _histogram(name: str, help_: str, bounds: tuple[float, ...], *labels: str) -> Family:
    return Family(f"{PREFIX}{name}", "histogram", help_, labels, bounds)


# --- latency ---------------------------------------------------------------------------------------

PHASE_DURATION: Final = _histogram(
    "phase_duration_seconds",
    "Time a request spent in one phase",
    buckets.PHASE_S,
    *("phase", "kind", "backend", "model"),
)
TTFT: Final = _histogram(
    "ttft_seconds",
    "Arrival to first token, by the prefill backend",
    buckets.TTFT_S,
    "kind",
    "backend",
    "model",
)
TPOT: Final = _histogram(
    "tpot_seconds",
    "Mean time per output token after the first, by the decode backend",
    buckets.TPOT_S,
    *("kind", "backend", "model"),
)
E2E: Final = _histogram(
    "e2e_seconds", "Arrival to last token, by the decode backend", buckets.E2E_S, "kind", "backend", "model"
)

# --- backends --------------------------------------------------------------------------------------

BUSY: Final = _counter(
    "backend_busy_seconds_total", "Device time spent on a phase, as reported", "backend", "kind", "phase"
)
SUB_PHASE_BUSY: Final = _counter(
    "backend_sub_phase_busy_seconds_total",
    "Busy time of the parts of a decode that is split between attention and FFN devices, as reported",
    *("backend", "kind", "sub_phase"),
)
LOADING: Final = _counter(
    "backend_loading_seconds_total",
    "Time spent on loading or compiling another model, as reported",
    *("backend", "kind"),
)
BACKEND_ENERGY: Final = _counter(
    "backend_energy_joules_total", "Energy drawn, idle included, as reported", "backend", "kind"
)
PREEMPTIONS: Final = _counter(
    "backend_preemptions_total", "Sequences preempted for want of KV room, as reported", "backend", "kind"
)
BACKEND_TOKENS: Final = _counter(
    "backend_tokens_total",
    "Tokens of requests that ended: computed prompt tokens in prefill, output tokens in decode",
    *("backend", "kind", "phase"),
)
STRAY_TOKENS: Final = _counter(
    "stray_tokens_total", "Tokens dropped or missed on a lane", "backend", "kind", "fault"
)
KV_TOKENS: Final = _gauge("backend_kv_tokens", "KV cache in tokens", "backend", "kind", "state")
SLOTS: Final = _gauge("backend_slots", "Sequences a backend may run at once", "backend", "kind", "state")
WAITING: Final = _gauge("backend_waiting_sequences", "Sequences queued at the backend", "backend", "kind")
IN_FLIGHT: Final = _gauge(
    "backend_in_flight", "Requests the router has running on a backend", "backend", "kind", "phase"
)
STATE: Final = _gauge("backend_state", "1 for the state a backend is in, else 0", "backend", "kind", "state")
MODEL_DRIFT: Final = _gauge(
    "backend_model_drift_ratio",
    "Learned over declared time of a reference prefill and a reference decode step",
    *("backend", "kind", "phase"),
)
MODEL_FIT: Final = _gauge(
    "backend_model_fit_ratio",
    "Observed over predicted time of the same work, median of the last observations",
    *("backend", "kind", "work"),
)
PHASE_BACKENDS: Final = _gauge(
    "phase_backends", "Backends that offer a phase, by state; zeros are exported", "phase", "state"
)

# --- requests --------------------------------------------------------------------------------------

ARRIVALS: Final = _counter("arrivals_total", "Valid requests that arrived", "priority")
REQUESTS: Final = _counter("requests_total", "Requests that ended", "outcome", "code", "reason")
IN_PROGRESS: Final = _gauge("requests_in_progress", "Requests by the stage they are in", "stage")
QUEUE_DEPTH: Final = _gauge("queue_depth", "Requests waiting for a first or new placement", "priority")
QUEUE_WAIT: Final = _histogram(
    "queue_wait_seconds", "Time in the queue phase of requests that ended", buckets.PHASE_S, "priority"
)
GAVE_WAY: Final = _counter(
    "gave_way_total", "Requests that gave up their place to a higher class before a token", "priority"
)
RETRIES: Final = _counter("retries_total", "Phases that failed and were tried anew", "phase", "reason")
SHEDS: Final = _counter("sheds_total", "Requests turned away for want of room or time", "reason")
CANCELS: Final = _counter("cancels_total", "Requests nobody waited for any more", "reason", "stage")
TOKENS: Final = _counter("tokens_total", "Tokens of requests that ended", "direction")
REQUEST_TOKENS: Final = _histogram(
    "request_tokens", "Tokens of one finished request", buckets.REQUEST_TOKENS, "direction"
)
COST: Final = _counter("cost_usd_total", "Device time at list price", "kind", "backend", "phase")
ENERGY: Final = _counter("energy_joules_total", "Energy of the device time", "kind", "backend", "phase")
SLO: Final = _counter(
    "slo_requests_total",
    "Requests with an objective, by whether it was met",
    "workload_class",
    "objective",
    "met",
)
GOODPUT: Final = _counter(
    "goodput_requests_total", "Requests that finished and met all they asked for", "workload_class"
)

# --- decisions and handoffs ------------------------------------------------------------------------

DECISIONS: Final = _counter(
    "decisions_total", "Placements booked, by what asked for them", "policy", "reason"
)
DECISION_SECONDS: Final = _histogram(
    "decision_seconds", "Time a policy took for one answer", buckets.DECISION_S, "policy"
)
POLICY_FAULTS: Final = _counter(
    "policy_faults_total", "Answers of a policy that the fallback replaced", "policy", "fault"
)
PREDICTION: Final = _histogram(
    "prediction_ratio",
    "Measured over predicted latency of finished requests",
    buckets.RATIO,
    "policy",
    "latency",
)
SPLITS: Final = _counter(
    "splits_total", "Finished requests by where their phases ran", "prefill_kind", "decode_kind", "split"
)
HANDOFF_BYTES: Final = _counter("handoff_bytes_total", "KV moved between backends", "from_kind", "to_kind")
HANDOFF_TRANSFER: Final = _histogram(
    "handoff_transfer_seconds",
    "Time KV took on the link, as reported by the puller",
    buckets.TRANSFER_S,
    *("from_kind", "to_kind"),
)
HANDOFF_FAILURES: Final = _counter(
    "handoff_failures_total", "Handoffs that failed", "from_kind", "to_kind", "reason"
)

# --- a shadow policy -------------------------------------------------------------------------------

SHADOW_DECISIONS: Final = _counter(
    "shadow_decisions_total",
    "Answers of the shadow policy, compared with the live one's",
    "policy",
    "verdict",
)
SHADOW_SECONDS: Final = _histogram(
    "shadow_decision_seconds", "CPU time the shadow policy took for one answer", buckets.DECISION_S, "policy"
)
SHADOW_PREDICTION: Final = _histogram(
    "shadow_prediction_ratio",
    "Latency predicted by the shadow policy over that predicted by the live one, each for its own place",
    buckets.RATIO,
    *("policy", "latency"),
)
SHADOW_FAULTS: Final = _counter("shadow_faults_total", "What the shadow policy did wrong", "policy", "fault")
SHADOW_SKIPPED: Final = _counter(
    "shadow_skipped_total", "What the shadow policy was not shown for want of time", "policy", "what"
)

# --- the daemon itself -----------------------------------------------------------------------------

DRIVER_LATENESS: Final = _histogram(
    "driver_lateness_seconds", "How late a deadline of the core was served", buckets.LATENESS_S
)
LOOP_LAG: Final = _histogram(
    "event_loop_lag_seconds", "How late a periodic timer of the event loop ran", buckets.LATENESS_S
)
RELOAD_SUCCESS: Final = _gauge(
    "config_last_reload_success", "1 if the last configuration read was valid, else 0"
)
RELOADS: Final = _counter("config_reloads_total", "Reads of the configuration", "result")
BUILD_INFO: Final = _gauge("build_info", "Always 1; the labels say what runs", "version")

# --- prices ----------------------------------------------------------------------------------------

PRICE_PROBLEMS: Final = _counter(
    "price_problems_total", "Problems that a price-directed policy stated, or why it stated none", "outcome"
)
PRICE_SOLVE: Final = _histogram("price_solve_seconds", "Time to work out prices", buckets.LATENESS_S)
PRICE_AGE: Final = _gauge("price_age_seconds", "Age of the load that the last prices were worked out for")

INSTRUMENTS: Final = (
    *(PHASE_DURATION, TTFT, TPOT, E2E),
    *(BUSY, SUB_PHASE_BUSY, LOADING, BACKEND_ENERGY, PREEMPTIONS, BACKEND_TOKENS, STRAY_TOKENS),
    *(QUEUE_WAIT, GAVE_WAY),
    *(ARRIVALS, REQUESTS, RETRIES, SHEDS, CANCELS, TOKENS, REQUEST_TOKENS, COST, ENERGY, SLO, GOODPUT),
    *(DECISIONS, DECISION_SECONDS, POLICY_FAULTS, PREDICTION, SPLITS),
    *(HANDOFF_BYTES, HANDOFF_TRANSFER, HANDOFF_FAILURES),
    *(SHADOW_DECISIONS, SHADOW_SECONDS, SHADOW_PREDICTION, SHADOW_FAULTS, SHADOW_SKIPPED),
    *(DRIVER_LATENESS, LOOP_LAG, RELOAD_SUCCESS, RELOADS, BUILD_INFO),
    *(PRICE_PROBLEMS, PRICE_SOLVE, PRICE_AGE),
)
"""Kept as running sums."""

STANDING: Final = (
    *(KV_TOKENS, SLOTS, WAITING, IN_FLIGHT, STATE, PHASE_BACKENDS, IN_PROGRESS, QUEUE_DEPTH),
    *(MODEL_DRIFT, MODEL_FIT),
)
"""Read off the state of the fleet when somebody scrapes."""

CATALOGUE: Final = (*INSTRUMENTS, *STANDING)
