"""How long one backend takes for a phase of a request, given its standing. Times are seconds.

The step model comes through a port; these functions only say which steps are ahead, by the backend's
scheduler. One that batches continuously carries all decoding sequences in a step, and up to
max_num_batched_tokens minus these of prompt; with compiled shapes prompts and decodes take turns; a static
pipeline takes prompts beside the decodes; a single sequence is over before the next one starts. Anything that
is no time (NaN, negative) becomes infinity, so that a backend with a broken profile is never the fastest.
"""

from __future__ import annotations

import math
from typing import Final, assert_never

from policies.standing import UNKNOWN_OUTPUT_TOKENS, Standing
from router.core.ports import LatencyModel
from router.model import LinkParameters, SchedulerKind, Seconds

MAX_DUTY: Final = 0.9
"""Prefill is never taken for more than this share of a backend's time; beyond, decode would look endless."""


def seconds(value: float) -> Seconds:
    """A duration, or infinity for what is none."""
    return value if value >= 0 else math.inf


def alone_s(s: Standing, tokens: int, cached_tokens: int = 0) -> Seconds:
    """Prefill of a prompt's last `tokens`, after cached ones, that has the backend to itself."""
    assert s.latency is not None
    return seconds(s.latency.prefill_s(tokens, cached_tokens))


def prefill_end_s(s: Standing, tokens: int, cached_tokens: int = 0) -> Seconds:
    """Until the prefill of a prompt's last `tokens` is done, behind what is ahead and beside what decodes.

    Half of the running step is added where sequences decode.
    """
    latency = s.latency
    assert latency is not None
    if not s.prefill_tokens and not s.decodes:
        return seconds(latency.prefill_s(tokens, cached_tokens))
    match s.spec.scheduler:
        case SchedulerKind.CONTINUOUS:
            return seconds(s.half_step_s + _chunked_s(s, latency, tokens, cached_tokens))
        case SchedulerKind.SLOTS:
            return seconds(s.half_step_s + latency.prefill_s(s.prefill_tokens + tokens))
        case SchedulerKind.BUCKETED:
            return seconds(s.half_step_s + _in_turns_s(s, latency, tokens, cached_tokens))
        case SchedulerKind.SINGLE:
            ahead_s = s.prompts_s + s.view.in_flight.decode_tokens * 2 * s.half_step_s
            return seconds(ahead_s + latency.prefill_s(tokens, cached_tokens))
        case _:
            assert_never(s.spec.scheduler)


def _chunked_s(s: Standing, latency: LatencyModel, tokens: int, cached_tokens: int) -> Seconds:
    """Steps needed for all prompt tokens, each of mean size: exact where the step model is linear in them."""
    total = s.prefill_tokens + tokens
    steps = -(-total // s.chunk_tokens)
    pairs = s.pairs_ahead + tokens * (cached_tokens + tokens / 2)
    return steps * latency.mixed_step_s(s.decodes, s.context_tokens, round(total / steps), pairs / steps)


def _in_turns_s(s: Standing, latency: LatencyModel, tokens: int, cached_tokens: int) -> Seconds:
    """One prompt, or a chunk of one, to a step, and a step of the decodes between two."""
    chunks = max(s.prefills, -(-s.prefill_tokens // s.spec.max_num_batched_tokens))
    own = -(-tokens // s.spec.max_num_batched_tokens)
    between_s = (chunks + own - 1) * 2 * s.half_step_s
    return s.prompts_s + latency.prefill_s(tokens, cached_tokens) + between_s


def stall_s(s: Standing, tokens: int, cached_tokens: int = 0) -> Seconds:
    """What a prefill of a prompt's last `tokens` takes from those that decode beside it, or wait with it."""
    latency = s.latency
    assert latency is not None
    if s.spec.scheduler in (SchedulerKind.BUCKETED, SchedulerKind.SINGLE):
        return seconds(latency.prefill_s(tokens, cached_tokens))
    pairs = tokens * (cached_tokens + tokens / 2)
    batch = max(1, s.decodes)
    mixed = latency.mixed_step_s(batch, s.context_tokens, tokens, pairs)
    return seconds(mixed - latency.decode_step_s(batch, s.context_tokens))


def joined_step_s(s: Standing, context_tokens: int) -> Seconds:
    """A decode step of the batch after a sequence of that context has joined it."""
    assert s.latency is not None
    return seconds(
        s.latency.decode_step_s(min(s.decodes + 1, s.spec.max_num_seqs), s.context_tokens + context_tokens)
    )


def decode_drain_s(s: Standing, context_tokens: int, output_tokens: int) -> Seconds:
    """Until the batch, with a new sequence in it, is done: tokens to come over the batch's rate."""
    ours = s.view.in_flight
    mean = ours.decode_tokens / ours.decodes if ours.decodes else UNKNOWN_OUTPUT_TOKENS
    to_come = ours.decode_tokens + mean * (s.decodes - ours.decodes) + output_tokens
    return to_come / (s.decodes + 1) * joined_step_s(s, context_tokens)


def handoff_s(tokens: int, kv_bytes_per_token: float, link: LinkParameters) -> Seconds:
    """A KV transfer that has the link to itself, serially after prefill."""
    if not link.bandwidth_bytes_per_s > 0:
        return math.inf
    return seconds(link.latency_s + tokens * kv_bytes_per_token / link.bandwidth_bytes_per_s)


def prefill_energy_j(s: Standing, tokens: int) -> float:
    """Joules of a prefill alone; power model and origin as in router.model.PowerParameters."""
    power, duration = s.spec.power, alone_s(s, tokens)
    moved = power.weight_bytes + s.spec.kv_bytes_per_token * tokens
    return _energy_j(s, duration, moved, power.flop_per_token * tokens)


def token_energy_j(s: Standing, context_tokens: int) -> float:
    """Joules of one output token: a joined step's energy shared by its sequences."""
    power, batch = s.spec.power, s.decodes + 1
    moved = power.weight_bytes + s.spec.kv_bytes_per_token * (s.context_tokens + context_tokens)
    step = joined_step_s(s, context_tokens)
    return _energy_j(s, step, moved, power.flop_per_token * batch) / batch


def _energy_j(s: Standing, duration_s: Seconds, moved_bytes: float, flop: float) -> float:
    p = s.spec.power
    joules = p.idle_w * duration_s + p.joule_per_byte * moved_bytes + p.joule_per_flop * flop
    return seconds(min(joules, p.cap_w * duration_s))


def prefill_usd(s: Standing, tokens: int) -> float:
    """List price of a prefill alone."""
    return seconds(s.spec.usd_per_hour / 3600 * alone_s(s, tokens))


def more_prefill_usd(s: Standing, tokens: int) -> float:
    """List price of the device time that a prefill adds: all of it on an idle backend, else what it takes."""
    busy = s.decodes or s.prefill_tokens
    added = stall_s(s, tokens) if busy else alone_s(s, tokens)
    return seconds(s.spec.usd_per_hour / 3600 * added)


def more_token_usd(s: Standing, context_tokens: int) -> float:
    """List price of the device time that one output token adds: what it makes a step longer, and the step
    itself as far as the backend would have been idle without it; that gets unlikely fast with the batch
    (assumption: with the square of it)."""
    step, now = joined_step_s(s, context_tokens), 2 * s.half_step_s
    alone = 1.0 / (s.decodes + 1) ** 2
    return seconds(s.spec.usd_per_hour / 3600 * (alone * step + (1.0 - alone) * max(0.0, step - now)))


def token_usd(s: Standing, context_tokens: int) -> float:
    """List price of one output token: a joined step's price shared by its sequences."""
    return seconds(s.spec.usd_per_hour / 3600 * joined_step_s(s, context_tokens) / (s.decodes + 1))
