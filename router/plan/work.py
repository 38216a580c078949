"""The least that one request can take from one backend, whatever the policy. Pure.

What a request costs on our engine (backends/models/engine.py) is bounded from below, so that a program over
these numbers bounds every policy from above. A step of B decodes with contexts S and N prompt tokens takes
at least base + per_sequence B + per_context S + per_prefill N + per_pair P, so that it can be shared out:

    prompt    per_prefill n + per_pair n (h + n / 2). Floors, fixed starts and the base are left out, since a
              prefill may ride in a step that decodes pay for. n leaves out the h tokens whose KV some earlier
              request of the workload may have left in a prefix cache.
    answer    O - 1 decode steps (the first token comes with the prefill), each at least
              f(B) + per_sequence + per_context (I + O / 2), where f(B) = (base + saturating
              (1 - exp(-B / saturation_tokens))) / B is the share of the base. f is convex and falls with B. A
              mean time per token of at most TPOT keeps the mean of B over the steps of a request at or below
              Bmax, so by Jensen's inequality the mean of f is at least f(Bmax).
    Bmax      from base + saturating (1 - exp(-1 / saturation_tokens)) + per_sequence B
              + per_context (ctx + (B - 1) smallest context) <= TPOT, and from max_num_seqs and KV room.
    KV        a decode step lasts no less than with B = 1, and holds at least the tokens no one shares.

A preempted sequence gets a token from computing its context again; where that is cheaper than a decode step,
it is taken as the price. Energy above idle: of each term the lesser of what the work draws and of what the
cap leaves, at the largest batch any step can have.

Assumed: the engine's own parameters (a bound for the model, not for physics); steps without noise, or, with
lognormal noise of mean 1, device time in expectation and objectives with LUCK sigmas to spare; one model
per backend at a time; no speculative decoding. Network and router take no time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from router.model import BackendSpec, Phase, Seconds
from router.plan.steps import (
    BESIDE,
    DecodeFloor,
    decode_floors,
    least_prefill_s,
    overlaps,
    prefill_share_s,
)
from router.plan.supply import Effort

LUCK: Final = 4.0
"""Sigmas by which noise may make a request faster than its objective's arithmetic allows."""
ROUNDING: Final = 1e-9
"""Share of an objective below which a miss is arithmetic."""


@dataclass(frozen=True, slots=True)
class Task:
    """A request as a planner with hindsight sees it."""

    model: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    """Tokens of the prompt, at most all but one, that an earlier request may have left in a cache."""
    ttft_s: Seconds = math.inf
    tpot_s: Seconds = math.inf
    deadline_s: Seconds = math.inf
    """From arrival to the last token."""
    workload_class: str = ""

    @property
    def new_tokens(self) -> int:
        """Prompt tokens that are computed for it at least, 1 or more."""
        return self.prompt_tokens - self.cached_tokens

    @property
    def steps(self) -> int:
        """Decode steps that no policy can avoid."""
        return max(0, self.output_tokens - 1)

    @property
    def context_tokens(self) -> float:
        """Mean context of its decode steps."""
        return self.prompt_tokens + 0.5 * self.output_tokens


@dataclass(frozen=True, slots=True)
class Floors:
    """The least of any request that may share a batch."""

    context_tokens: float = 1.0
    unshared_tokens: float = 1.0


def floors_of(tasks: Sequence[Task]) -> Floors:
    """Of a workload; 1 where there is none."""
    return Floors(
        min((task.prompt_tokens + 1.0 for task in tasks), default=1.0),
        min((task.prompt_tokens - task.cached_tokens + 1.0 for task in tasks), default=1.0),
    )


def least_efforts(task: Task, specs: Sequence[BackendSpec], floors: Floors) -> list[Effort]:
    """What a request takes from each backend of a fleet at least, and why it cannot run there in time.

    The prompt may run on any of them, so an answer's time is what the fastest prefill of the fleet leaves.
    """
    usable = [spec for spec in specs if not _no_prefill(task, spec)]
    first_s = min((least_first_token_s(task, spec) for spec in usable), default=0.0)
    return [_least_effort(task, spec, floors, first_s) for spec in specs]


def _least_effort(task: Task, spec: BackendSpec, floors: Floors, first_s: Seconds) -> Effort:
    hard, left_s = hard_batch(task, spec, floors), tpot_left_s(task, spec, first_s)
    batches = [(floor, _largest_batch(task, floor, floors, hard, left_s)) for floor in decode_floors(spec)]
    batch = min(batch for _, batch in batches)
    step_s = max(floor.share_s(max(1.0, batch), task.context_tokens) for floor, batch in batches)
    return Effort(
        prefill_s=prefill_share_s(spec, task.new_tokens, task.cached_tokens),
        decode_s=task.steps * _token_s(task, spec, step_s),
        kv_token_s=task.steps * least_step_s(task, spec) * (task.context_tokens - task.cached_tokens),
        egress_bytes=task.prompt_tokens * spec.kv_bytes_per_token,
        prefill_j=_prefill_j(task, spec),
        decode_j=task.steps * _token_j(task, spec, max(1.0, batch), max(1.0, hard)),
        batch=batch,
        no_prefill=_no_prefill(task, spec),
        no_decode=_no_decode(task, spec, batch, left_s),
    )


# --- B0: one request on an idle backend ------------------------------------------------------------------


def least_first_token_s(task: Task, spec: BackendSpec) -> Seconds:
    """No first token comes sooner."""
    return least_prefill_s(spec, task.new_tokens, task.cached_tokens) * _luck(spec, 1)


def least_step_s(task: Task, spec: BackendSpec) -> Seconds:
    """A decode step of the mean context with nobody beside it."""
    return max(floor.share_s(1.0, task.context_tokens) for floor in decode_floors(spec))


def tpot_left_s(task: Task, spec: BackendSpec, first_s: Seconds) -> Seconds:
    """The time per output token that the objectives leave after a first token at `first_s`: TPOT, or what
    the deadline leaves."""
    if not task.steps:
        return math.inf
    left = max(0.0, task.deadline_s - first_s) / task.steps
    return min(task.tpot_s, left) / _luck(spec, task.steps)


def _largest_batch(task: Task, floor: DecodeFloor, floors: Floors, hard: float, left_s: Seconds) -> float:
    """The largest mean batch in which the request keeps its time per output token; below 1 it cannot."""
    per_member = floor.per_sequence_s + floor.per_context_token_s * floors.context_tokens
    others_s = floor.per_context_token_s * (task.context_tokens - floors.context_tokens)
    spare = left_s - floor.shared_s(1.0) - others_s
    if spare < per_member * (1.0 - ROUNDING):
        return 0.0
    return min(hard, max(1.0, spare / per_member)) if per_member > 0.0 else hard


def hard_batch(task: Task, spec: BackendSpec, floors: Floors) -> float:
    """The largest batch of any step that the request can take part in."""
    others = max(0.0, spec.kv_capacity_tokens - task.new_tokens) / floors.unshared_tokens
    return min(spec.max_num_seqs, 1.0 + others)


# --- terms -----------------------------------------------------------------------------------------------


def _token_s(task: Task, spec: BackendSpec, step_s: Seconds) -> Seconds:
    """A share of a step, or computing a preempted sequence again, with what can be cached of it."""
    again_s = prefill_share_s(spec, task.new_tokens, task.cached_tokens)
    if overlaps(spec):
        return min((1.0 - BESIDE) * step_s, BESIDE * again_s)
    return min(step_s, again_s)


def _luck(spec: BackendSpec, steps: int) -> float:
    return max(0.1, 1.0 - LUCK * spec.step.noise_sigma / math.sqrt(max(1, steps)))


def _prefill_j(task: Task, spec: BackendSpec) -> float:
    power = spec.power
    drawn = power.joule_per_byte * spec.kv_bytes_per_token + power.joule_per_flop * power.flop_per_token
    return task.new_tokens * _capped(drawn, spec, spec.step.per_prefill_token_s)


def _token_j(task: Task, spec: BackendSpec, batch: float, hard: float) -> float:
    """Energy above idle of one decode step's share.

    In x = 1 / B it is the lesser of two rising lines, hence concave: the chord from the largest batch of any
    step to a batch of 1 lies below it, and the mean of x is at least 1 / batch.
    """
    low, here = 1.0 / max(hard, batch), 1.0 / batch
    at_low, at_one = _token_at_j(task, spec, low), _token_at_j(task, spec, 1.0)
    share = (here - low) / (1.0 - low) if low < 1.0 else 0.0
    return at_low + share * (at_one - at_low)


def _token_at_j(task: Task, spec: BackendSpec, share: float) -> float:
    power, floor = spec.power, decode_floors(spec)[0]
    moved = power.weight_bytes * share + spec.kv_bytes_per_token * task.context_tokens
    drawn = power.joule_per_byte * moved + power.joule_per_flop * power.flop_per_token
    marginal_s = floor.per_sequence_s + floor.per_context_token_s * task.context_tokens
    return _capped(drawn, spec, floor.base_s * share + marginal_s)


def _capped(drawn: float, spec: BackendSpec, time_s: Seconds) -> float:
    """What the cap leaves of an energy above idle."""
    headroom_w = spec.power.cap_w - spec.power.idle_w
    return drawn if math.isinf(headroom_w) else min(drawn, headroom_w * time_s)


# --- why not ---------------------------------------------------------------------------------------------


def _misfit(task: Task, spec: BackendSpec, phase: Phase, tokens: int) -> str:
    if task.model not in spec.models:
        return f"model {task.model} is not served"
    if phase not in spec.phases:
        return f"no {phase}"
    if tokens > spec.max_context_tokens:
        return f"context of {tokens} tokens above {spec.max_context_tokens}"
    # The last token of an answer is never computed, so it needs no room.
    blocks = spec.kv_capacity_tokens // spec.block_tokens
    if -(-(tokens - 1) // spec.block_tokens) > blocks:
        return f"KV of {tokens - 1} tokens above {blocks * spec.block_tokens}"
    return ""


def _no_prefill(task: Task, spec: BackendSpec) -> str:
    if misfit := _misfit(task, spec, Phase.PREFILL, task.prompt_tokens + 1):
        return misfit
    least, objective = least_first_token_s(task, spec), min(task.ttft_s, task.deadline_s)
    if least > objective * (1.0 + ROUNDING):
        return f"the first token takes {least:.3g} s, more than {objective:.3g} s"
    return ""


def _no_decode(task: Task, spec: BackendSpec, batch: float, left_s: Seconds) -> str:
    if misfit := _misfit(task, spec, Phase.DECODE, task.prompt_tokens + task.output_tokens):
        return misfit
    if task.steps and batch < 1.0:
        return f"a token takes {least_step_s(task, spec):.3g} s, more than {left_s:.3g} s"
    return ""
