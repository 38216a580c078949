"""The values of the live table and of the JSON summary: what the fleet did up to one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from router.model import BackendKind, BackendState, Phase, Seconds
from router.observe.sketch import Percentiles


@dataclass(frozen=True, slots=True)
class BackendActivity:
    """One backend, since the router knows it; backends that left stay, so that totals add up."""

    id: str
    kind: BackendKind
    state: BackendState | None
    """None once the backend was removed."""
    prefills: int
    """Finished prefills, those of failed requests included."""
    decodes: int
    prefills_in_flight: int
    decodes_in_flight: int
    busy_ratio: float
    """Device time over wall time, [0, 1] but for a worker that reports nonsense."""
    busy_prefill_s: Seconds
    busy_decode_s: Seconds
    tokens: int
    """Output tokens decoded here for requests that ended."""
    prompt_tokens: int
    """Prompt tokens computed here for requests that ended, cached ones aside."""
    cost_usd: float
    energy_j: float


@dataclass(frozen=True, slots=True)
class KindActivity:
    """One phase on one kind of hardware."""

    kind: BackendKind
    phase: Phase
    backends: int
    """Known backends of the kind that offer the phase."""
    done: int
    in_flight: int
    busy_ratio: float
    """Mean over those backends of the device time spent on this phase."""
    duration_s: Percentiles
    """As in core/timeline.py; of requests that finished."""
    tokens: int
    """Computed prompt tokens in prefill, output tokens in decode."""
    cost_usd: float
    energy_j: float


@dataclass(frozen=True, slots=True)
class ActivitySnapshot:
    """Everything at one moment."""

    elapsed_s: Seconds
    """Since the first fact."""
    arrived: int
    ok: int
    outcomes: Mapping[str, int]
    """By reports.Outcome, "ok" included."""
    live: Mapping[str, int]
    """Requests under way by progress.Stage."""
    retries: int
    handoffs: int
    handoff_bytes: int
    split: int
    """Finished requests whose phases ran on two backends."""
    split_kinds: int
    """Finished requests whose phases ran on two kinds of hardware."""
    goodput: int
    """Finished requests that met all they asked for."""
    phases: Mapping[str, Percentiles]
    """queue, prefill, handoff (of split requests) and decode, of finished requests."""
    ttft_s: Percentiles
    tpot_s: Percentiles
    e2e_s: Percentiles
    backends: Sequence[BackendActivity]
    kinds: Sequence[KindActivity]
    prompt_tokens: int
    output_tokens: int
    cost_usd: float
    energy_j: float
