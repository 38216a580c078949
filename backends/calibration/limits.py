"""The limits a run's engine was started with: as given, or as the run shows them.

What is inferred is noted, so that a reader can object. Nothing here is a parameter of the step model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np

from backends.calibration.runfile import EngineRun
from backends.calibration.search import GENERIC, quiet, rough
from backends.calibration.shown import peak_tokens, plans_ahead, slots_of, waits_for_room
from router.model import BackendKind, BackendSpec, Phase

UNLIMITED_TOKENS: Final = 1 << 30
VLLM_MAX_NUM_SEQS: Final = 256
VLLM_MAX_NUM_BATCHED_TOKENS: Final = 2048
BUDGETS: Final = (512, 1024, 2048, 4096, 8192, 16384)
CLEARLY: Final = 0.9
"""Another budget than the default must cut the loss to this share."""
CAPACITIES: Final = (0.6, 0.67, 0.74, 0.82, 0.9, 1.0)
"""Of the tokens of requests between first and last token; preempted ones hold none of theirs."""
BARE: Final = BackendSpec(
    id="run",
    kind=BackendKind.GPU,
    device="unknown",
    models=("unknown",),
    phases=frozenset(Phase),
    step=GENERIC,
    kv_capacity_tokens=UNLIMITED_TOKENS,
)
"""An engine that batches continuously, whatever the prior's does: that is what such runs are of."""

Noted = tuple[BackendSpec, tuple[str, ...]]
"""A spec, and what was inferred for it."""


class Scheduling(StrEnum):
    """Whether the engine puts a step together while the one before it runs."""

    AUTO = "auto"
    """As the run shows; where it does not, whichever fits better, or for a check as the profile says."""
    ASYNC = "async"
    SYNC = "sync"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine was started with; None is unknown."""

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_tokens: int | None = None
    block_size: int = 16
    scheduling: Scheduling = Scheduling.AUTO


def with_limits(run: EngineRun, spec: BackendSpec, limits: Limits) -> Noted:
    """A spec with the limits that are given, vLLM's defaults for the others, both phases, and no noise."""
    slots, shown = limits.max_num_seqs, slots_of(run)
    notes: tuple[str, ...] = ()
    if slots is None and shown is not None:
        slots, notes = shown, (f"max_num_seqs: the run shows {shown} (requests wait while {shown} run)",)
    slots = slots or VLLM_MAX_NUM_SEQS
    budget = limits.max_num_batched_tokens or max(slots, VLLM_MAX_NUM_BATCHED_TOKENS)
    return replace(
        spec,
        phases=frozenset(Phase),
        step=quiet(spec.step),
        max_num_seqs=slots,
        max_num_batched_tokens=budget,
        max_context_tokens=max(spec.max_context_tokens, _longest(run)),
        kv_capacity_tokens=limits.kv_tokens or spec.kv_capacity_tokens,
        block_tokens=limits.block_size,
    ), notes


def with_capacity(run: EngineRun, spec: BackendSpec, limits: Limits) -> Noted:
    """The spec with the KV capacity to believe.

    A prior's capacity is doubted when the run used more, or waited for room: then the capacity with which the
    engine reproduces the odd requests best is taken, to within 2 %.
    """
    known = limits.kv_tokens or spec.kv_capacity_tokens
    peak, waits = peak_tokens(run), waits_for_room(run)
    if limits.kv_tokens is not None or (known >= peak and not waits):
        return spec, ()
    if not waits:
        note = f"KV room: the run used {peak} tokens, the prior has {known}: taken as unlimited"
        return replace(spec, kv_capacity_tokens=UNLIMITED_TOKENS), (note,)
    longest = _longest(run) + spec.block_tokens
    best = _best_capacity(run, spec, [max(longest, round(share * peak)) for share in CAPACITIES])
    for step in (0.05, 0.02):
        around = [max(longest, round(best * factor)) for factor in (1.0 - step, 1.0, 1.0 + step)]
        best = _best_capacity(run, spec, around)
    note = f"KV room: requests waited for it; {best} tokens reproduce that best (give --kv-tokens)"
    return replace(spec, kv_capacity_tokens=best), (note,)


def _best_capacity(run: EngineRun, spec: BackendSpec, capacities: Sequence[int]) -> int:
    def loss(capacity: int) -> float:
        return rough(run, replace(spec, kv_capacity_tokens=capacity)).fitted_on.loss

    return min(sorted(set(capacities)), key=loss)


def with_budget(run: EngineRun, spec: BackendSpec, limits: Limits) -> Noted:
    """The spec with the tokens of a step: as given, or vLLM's default unless another is clearly better."""
    if limits.max_num_batched_tokens is not None:
        return spec, ()
    usual = spec.max_num_batched_tokens
    losses = {
        budget: rough(run, replace(spec, max_num_batched_tokens=budget)).fitted_on.loss
        for budget in {*BUDGETS, usual}
        if budget >= spec.max_num_seqs
    }
    best = min(sorted(losses), key=lambda budget: losses[budget])
    if losses[best] > CLEARLY * losses[usual]:
        return spec, (f"max_num_batched_tokens: {usual}, the default; the run shows no other",)
    note = f"max_num_batched_tokens: {best} reproduces the run best"
    return replace(spec, max_num_batched_tokens=best), (note,)


def schedulings(run: EngineRun, spec: BackendSpec, limits: Limits) -> tuple[bool, ...]:
    """The ways of scheduling to try, asynchronous as True."""
    match limits.scheduling:
        case Scheduling.ASYNC:
            return (True,)
        case Scheduling.SYNC:
            return (False,)
        case Scheduling.AUTO:
            shown = plans_ahead(run, spec.max_num_batched_tokens)
            return (True, False) if shown is None else (shown,)


def _longest(run: EngineRun) -> int:
    return int(np.max(run.prompts + run.outputs))
