"""A step law from below: linear terms that no step of a backend undercuts, whatever its scheduler. Pure.

continuous   the step model itself; a prefill may ride in a step that decodes pay for
single       the same, but a prefill is always alone and pays its start and its sweep of the weights
bucketed     the same as single, for prompts padded to what was compiled; decodes without padding
slots        a constant step, shared by at most all places; prompts flow beside it, so that each phase has a
             row of its own
afd          with the serial law the step model; with overlap whatever attention or FFN alone take, with one
             micro-batch, so that there are two floors and the larger counts
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from backends.models.afd import with_serial_law
from backends.models.forming import pipeline_s, tokens_per_step
from backends.models.laws import law_of
from router.model import AfdLaw, AfdParameters, BackendSpec, SchedulerKind, Seconds, StepParameters

BESIDE: Final = 0.02
"""Weight of the prompts' row in the decodes' row where prompts flow beside them.

A preempted sequence gets a token from computing its context again, which takes prompt time alone. Of two
rows that hold, BESIDE times the one plus 1 - BESIDE times the other holds too, and in it a token costs the
lesser of BESIDE times the prompt time and 1 - BESIDE times a share of a step, whichever way it came.
"""


@dataclass(frozen=True, slots=True)
class DecodeFloor:
    """T >= base + saturating (1 - exp(-B / saturation_tokens)) + per_sequence B + per_context_token S."""

    base_s: Seconds
    per_sequence_s: Seconds
    per_context_token_s: Seconds
    saturating_s: Seconds = 0.0
    saturation_tokens: float = 1.0

    def shared_s(self, batch: float) -> Seconds:
        """The part that a batch shares."""
        return self.base_s + self.saturating_s * -math.expm1(-batch / self.saturation_tokens)

    def share_s(self, batch: float, context_tokens: float) -> Seconds:
        """What one sequence owes of a step."""
        return self.shared_s(batch) / batch + self.per_sequence_s + self.per_context_token_s * context_tokens


def decode_floors(spec: BackendSpec) -> tuple[DecodeFloor, ...]:
    """One or more floors, all of which hold."""
    p = spec.step
    if spec.scheduler is SchedulerKind.SLOTS:
        return (DecodeFloor(pipeline_s(p, spec.max_num_seqs), 0.0, p.per_context_token_s),)
    if spec.afd is not None:
        if spec.afd.law is not AfdLaw.SERIAL and spec.afd.micro_batches > 1:
            return _either_side(spec.afd)
        p = with_serial_law(p, spec.afd)
    plain = DecodeFloor(
        p.base_s, p.per_sequence_s, p.per_context_token_s, p.saturating_s, p.saturation_tokens
    )
    return (plain,)


def _either_side(afd: AfdParameters) -> tuple[DecodeFloor, ...]:
    layers = afd.layers
    attention = DecodeFloor(
        layers * afd.attention_base_s,
        layers * afd.attention_per_sequence_s,
        layers * afd.attention_per_context_token_s,
    )
    return (attention, DecodeFloor(layers * afd.ffn_base_s, layers * afd.ffn_per_sequence_s, 0.0))


def overlaps(spec: BackendSpec) -> bool:
    """Whether prompts take no time from decodes, so that each phase has all of the time."""
    return spec.scheduler is SchedulerKind.SLOTS


def rides(spec: BackendSpec) -> bool:
    """Whether a prompt may share a step with decodes."""
    return spec.max_num_seqs > 1 and spec.scheduler in (SchedulerKind.CONTINUOUS, SchedulerKind.SLOTS)


def prefill_share_s(spec: BackendSpec, new_tokens: int, cached_tokens: int) -> Seconds:
    """Device time that a prompt takes at least."""
    if overlaps(spec):
        return new_tokens * _pipeline_token_s(spec)
    if not rides(spec):
        return _alone_s(spec, new_tokens, cached_tokens)
    return _compute_s(spec.step, new_tokens, cached_tokens)


def least_prefill_s(spec: BackendSpec, new_tokens: int, cached_tokens: int) -> Seconds:
    """No prefill ends sooner, alone or beside decodes, whole or in chunks."""
    alone = _alone_s(spec, new_tokens, cached_tokens)
    if overlaps(spec) or not rides(spec):
        return alone
    floor = max(one.base_s for one in decode_floors(spec))
    return min(alone, floor + _compute_s(spec.step, new_tokens, cached_tokens))


def _alone_s(spec: BackendSpec, new_tokens: int, cached_tokens: int) -> Seconds:
    return law_of(spec).prefill_s(new_tokens, cached_tokens)


def _compute_s(p: StepParameters, new_tokens: int, cached_tokens: int) -> Seconds:
    pairs = new_tokens * (cached_tokens + 0.5 * new_tokens)
    return p.per_prefill_token_s * new_tokens + p.per_attention_pair_s * pairs


def _pipeline_token_s(spec: BackendSpec) -> Seconds:
    budget = tokens_per_step(spec.step, spec.max_num_seqs, spec.max_num_batched_tokens)
    return pipeline_s(spec.step, spec.max_num_seqs) / budget
