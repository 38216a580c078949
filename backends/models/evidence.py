"""What an observation says of a backend's speed: seconds by the prior per term, and seconds observed. Pure.

Two sources. A worker that counts the regressors of the step model (router.model.BackendSnapshot) gives one
observation per pair of load reports: the work of the interval and the busy time it took. A worker that does
not count them gives one per phase of a request, from the device time that it charged for the phase.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

from backends.models.latency import StepLaw
from router.model import BackendSnapshot, BackendSpec, Phase, PhaseSample, SchedulerKind, Seconds

Terms = tuple[float, float, float, float, float]
"""One number for each linear term: per step, per sequence, per context token, per prompt token, per
attention pair. The saturating term, and the base and floor of a prefill, go with `per step`: their shape
stays that of the prior."""


class Work(StrEnum):
    """Kinds of observations. Each has its own errors: they are compared with their like only."""

    DECODE = "decode"
    PREFILL = "prefill"
    MIXED = "mixed"
    DECODE_PHASE = "decode_phase"
    PREFILL_PHASE = "prefill_phase"


class Prior(NamedTuple):
    """A backend as it declares itself."""

    spec: BackendSpec
    law: StepLaw


class Evidence(NamedTuple):
    """One observation."""

    work: Work
    terms: Terms
    """Seconds by the prior; their sum is above 0."""
    observed_s: Seconds
    """Above 0."""
    at: Seconds


class Growth(NamedTuple):
    """What a worker counted, since its boot or between two snapshots."""

    busy_s: Seconds
    prefill_s: Seconds
    """Of these, on prompts."""
    steps: int
    decode_sequences: int
    context_tokens: float
    prefill_tokens: int
    attention_pairs: float

    @property
    def is_sound(self) -> bool:
        """Whether counters can have grown by this: nothing is negative, infinite or no number."""
        busy_s, prefill_s, steps, sequences, context, prompt, pairs = self
        reals = 0.0 <= busy_s < math.inf and 0.0 <= prefill_s < math.inf
        reals = reals and 0.0 <= context < math.inf and 0.0 <= pairs < math.inf
        return reals and steps >= 0 and sequences >= 0 and prompt >= 0


def counted(snapshot: BackendSnapshot) -> Growth:
    """The counters of a snapshot: growth since the worker's boot."""
    return Growth(
        snapshot.busy_prefill_s + snapshot.busy_decode_s,
        snapshot.busy_prefill_s,
        snapshot.steps,
        snapshot.decode_sequences,
        snapshot.context_tokens,
        snapshot.prefill_tokens,
        snapshot.attention_pairs,
    )


def between(old: Growth, new: Growth) -> Growth:
    """What was counted after `old`; not sound when the counters were set back in between."""
    busy_s, prefill_s, steps, sequences, context, prompt, pairs = old
    return Growth(
        new.busy_s - busy_s,
        new.prefill_s - prefill_s,
        new.steps - steps,
        new.decode_sequences - sequences,
        new.context_tokens - context,
        new.prefill_tokens - prompt,
        new.attention_pairs - pairs,
    )


# --- intervals -------------------------------------------------------------------------------------


def of_interval(prior: Prior, growth: Growth, at: Seconds) -> Evidence | None:
    """The evidence of a sound growth; None when there were no steps, or they cannot be priced."""
    if growth.steps <= 0:
        return None
    if not growth.decode_sequences:
        terms: Terms | None = _prefill_alone(
            prior, growth.steps, growth.prefill_tokens, growth.attention_pairs
        )
        return _evidence(Work.PREFILL, terms, growth.busy_s, at)
    if not growth.prefill_tokens:
        return _evidence(Work.DECODE, _together(prior, growth), growth.busy_s, at)
    return _evidence(Work.MIXED, _mixed(prior, growth), growth.busy_s, at)


def _mixed(prior: Prior, growth: Growth) -> Terms | None:
    """Decodes and prefills in one interval.

    Where one sequence runs at a time, steps of the two kinds can be told apart. Where compiled programs take
    turns they cannot, and nothing is learned. Else all steps are priced as steps of a mixed batch: those that
    only prefill have a cheaper base, which is why intervals of this kind are trusted least.
    """
    match prior.spec.scheduler:
        case SchedulerKind.SINGLE:
            decodes = min(growth.steps, growth.decode_sequences)
            alone = Growth(0.0, 0.0, decodes, decodes, growth.context_tokens, 0, 0.0)
            steps = max(1, growth.steps - decodes)
            prefill = _prefill_alone(prior, steps, growth.prefill_tokens, growth.attention_pairs)
            a, b, c, d, e = _together(prior, alone)
            f, g, h, i, j = prefill
            return (a + f, b + g, c + h, d + i, e + j)
        case SchedulerKind.BUCKETED:
            return None
        case _:
            return _together(prior, growth)


def _together(prior: Prior, growth: Growth) -> Terms:
    """Steps of equal size that each decode; the means are exact where the price does not bend."""
    _, _, n, sequences, context, tokens, pairs = growth
    price = prior.law.price(max(1, round(sequences / n)), round(context / n), round(tokens / n), pairs / n)
    return (
        n * price.base_s,
        price.per_sequence_s * sequences,
        price.per_context_token_s * context,
        price.per_prefill_token_s * tokens,
        price.per_attention_pair_s * pairs,
    )


def _prefill_alone(prior: Prior, steps: int, tokens: int, pairs: float) -> Terms:
    """Steps of equal size that only prefill. Where the sweep of the weights hides the compute, a prefill says
    nothing of the time per token: all of it goes with the base."""
    chunk = max(1, round(tokens / steps))
    price = prior.law.price(0, 0, chunk, pairs / steps)
    base, compute = steps * price.base_s, price.per_prefill_token_s * tokens
    if price.per_prefill_token_s > 1.001 * prior.spec.step.per_prefill_token_s:
        base, compute = base + compute, 0.0
    terms = (base, 0.0, 0.0, compute, price.per_attention_pair_s * pairs)
    if prior.spec.scheduler is not SchedulerKind.BUCKETED:
        return terms
    history = max(0, round(pairs / steps / chunk - 0.5 * chunk))
    return _stretched(terms, steps * prior.law.prefill_s(chunk, history))


def _stretched(terms: Terms, whole_s: Seconds) -> Terms:
    """The same shares of another whole: compiled shapes compute what is only padding as well."""
    factor = whole_s / max(1e-12, sum(terms))
    base, sequence, context, token, pair = terms
    return (base * factor, sequence * factor, context * factor, token * factor, pair * factor)


# --- phases ----------------------------------------------------------------------------------------


def of_phase(prior: Prior, sample: PhaseSample, prefill_share: float, at: Seconds) -> Evidence | None:
    """The evidence of a phase of one request; None when it computed nothing, or took no time.

    The device time of a phase is the share of its sequence: the base of a step is split among those in it.
    `prefill_share`, in [0, 1], is the part of the time it lasted that the backend spent on prompts.
    """
    if sample.phase is Phase.PREFILL:
        terms = _prefill_share(prior, sample)
        return _evidence(Work.PREFILL_PHASE, terms, sample.cost.device_s, at)
    terms = _decode_share(prior, sample, prefill_share)
    return _evidence(Work.DECODE_PHASE, terms, sample.cost.device_s, at)


def _prefill_share(prior: Prior, sample: PhaseSample) -> Terms | None:
    tokens, cached = sample.prompt_tokens - sample.cached_tokens, sample.cached_tokens
    if tokens <= 0:
        return None
    match prior.spec.scheduler:
        case SchedulerKind.SLOTS:
            return (prior.law.prefill_s(tokens, cached) / (1 + sample.beside), 0.0, 0.0, 0.0, 0.0)
        case SchedulerKind.BUCKETED:
            return _stretched(_chunked(prior, tokens, cached, 0), prior.law.prefill_s(tokens, cached))
        case SchedulerKind.SINGLE:
            return _chunked(prior, tokens, cached, 0)
        case _:
            return _chunked(prior, tokens, cached, sample.beside)


def _chunked(prior: Prior, tokens: int, cached: int, beside: int) -> Terms:
    """Chunks as large as a step takes, in steps whose base `beside` decodes share."""
    steps, pairs = -(-tokens // max(1, prior.spec.max_num_batched_tokens)), tokens * (cached + 0.5 * tokens)
    if beside < 1:
        return _prefill_alone(prior, steps, tokens, pairs)
    price = prior.law.price(beside, 0, round(tokens / steps), pairs / steps)
    base = steps * price.base_s / (1 + beside)
    return (base, 0.0, 0.0, price.per_prefill_token_s * tokens, price.per_attention_pair_s * pairs)


def _decode_share(prior: Prior, sample: PhaseSample, prefill_share: float) -> Terms | None:
    """The batch is told by the share: a sequence that owes a tenth of the time it was there is one of ten."""
    n, device_s = sample.output_tokens, sample.cost.device_s
    if n <= 0 or not device_s > 0.0 or not sample.lasted_s < math.inf:
        return None
    there_s = sample.lasted_s * (1.0 - prefill_share)
    batch = min(max(1.0, there_s / device_s), max(1.0, float(prior.spec.max_num_seqs)))
    context = sample.prompt_tokens + 0.5 * n
    price = prior.law.price(round(batch), round(batch * context), 0, 0.0)
    base = n * price.base_s / batch
    return (base, price.per_sequence_s * n, price.per_context_token_s * n * context, 0.0, 0.0)


def _evidence(work: Work, terms: Terms | None, observed_s: Seconds, at: Seconds) -> Evidence | None:
    if terms is None or not _is_a_time(sum(terms)) or not _is_a_time(observed_s):
        return None
    return Evidence(work, terms, observed_s, at)


def _is_a_time(value: Seconds) -> bool:
    """From a nanosecond to 30 years: beyond, ratios of two of them leave the range of floats."""
    return 1e-9 <= value <= 1e9
