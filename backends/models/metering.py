"""Who pays for a step: each sequence by its marginal terms, the base shared equally. Pure.

A decoding sequence is charged like a household with a meter: the batch advances six counters once per
stretch of steps, and a sequence owes the difference between two readings. So a stretch costs the same
whether the batch is 4 or 400. With x_j the noise of step j and context = step + offset for a sequence:

    its time in a stretch = sum of x_j (base / n + per_sequence + per_context_token (first_step + j + offset))
                          = difference(T) + offset difference(T0) + difference(T1)

and in the same way for its energy. The shares of all sequences of a step add up to the step.
"""

from __future__ import annotations

from dataclasses import dataclass

from backends.models.latency import StepModel
from backends.models.power import uncapped_j
from router.model import PowerParameters, Seconds


@dataclass(frozen=True, slots=True)
class Reading:
    """The six counters at one moment: constant, offset and step terms of time and of energy."""

    time: float = 0.0
    time_offset: float = 0.0
    time_step: float = 0.0
    energy: float = 0.0
    energy_offset: float = 0.0
    energy_step: float = 0.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens of one sequence in one step: `tokens` new ones after `history`."""

    tokens: int
    history: int

    @property
    def pairs(self) -> float:
        """Attention pairs: tokens (history + tokens / 2)."""
        return self.tokens * (self.history + 0.5 * self.tokens)


@dataclass(frozen=True, slots=True)
class Work:
    """What each step of a stretch works on, and how long the steps take without noise."""

    decodes: int
    context_tokens: int
    """Sum over the decodes, in the first step; every further step adds one token to each."""
    chunks: tuple[Chunk, ...]
    """Only in a stretch of one step."""
    prefill_tokens: int
    first_s: Seconds
    growth_s: Seconds
    """By how much each step is longer than the one before."""
    base_s: Seconds
    """The part of a step that all its sequences share equally."""

    @property
    def sequences(self) -> int:
        """Sequences in each step."""
        return self.decodes + len(self.chunks)


@dataclass(frozen=True, slots=True)
class Span:
    """Steps of a stretch that are over: their number, the sum of their noise, and of noise times position."""

    steps: int
    noise: float
    noise_step: float

    @property
    def positions(self) -> float:
        """0 + 1 + ... + (steps - 1)."""
        return 0.5 * self.steps * (self.steps - 1)


@dataclass(frozen=True, slots=True)
class Bill:
    """Device time and energy of the steps of a span."""

    work: Work
    span: Span
    time_s: Seconds
    energy_j: float
    """The cap of the power model holds over the span as a whole."""
    factor: float
    """What the cap leaves of each share, at most 1."""


class Tariff:
    """Times and energies of stretches on one backend, and their shares."""

    __slots__ = ("_kv_bytes", "_model", "_power")

    def __init__(self, model: StepModel, power: PowerParameters, kv_bytes_per_token: float) -> None:
        self._model = model
        self._power = power
        self._kv_bytes = kv_bytes_per_token

    def work(self, decodes: int, context_tokens: int, chunks: tuple[Chunk, ...]) -> Work:
        """Price the steps of a stretch; there is at least one decode or chunk."""
        model, growth_s = self._model, self._model.parameters.per_context_token_s * decodes
        if not chunks:
            first_s = model.decode_step_s(decodes, context_tokens)
            return Work(decodes, context_tokens, chunks, 0, first_s, growth_s, model.base_s(decodes))
        tokens = sum(chunk.tokens for chunk in chunks)
        pairs = sum(chunk.pairs for chunk in chunks)
        first_s = model.mixed_step_s(decodes, context_tokens, tokens, pairs)
        base_s = model.base_s(decodes + tokens) if decodes else model.parameters.prefill_base_s
        return Work(decodes, context_tokens, chunks, tokens, first_s, growth_s, base_s)

    def bill(self, work: Work, span: Span) -> Bill:
        """Add up the steps of a span."""
        power, steps = self._power, span.steps
        context = steps * work.context_tokens + work.decodes * span.positions
        if work.chunks:
            context += sum(chunk.history + chunk.tokens for chunk in work.chunks)
        moved = steps * power.weight_bytes + self._kv_bytes * context
        flop = power.flop_per_token * (steps * work.decodes + work.prefill_tokens)
        time_s = work.first_s * span.noise + work.growth_s * span.noise_step
        wanted = uncapped_j(power, time_s, moved, flop)
        joule = min(wanted, power.cap_w * time_s)
        return Bill(work, span, time_s, joule, joule / wanted if wanted > 0.0 else 1.0)

    def read(self, meter: Reading, bill: Bill, first_step: int) -> Reading:
        """The meter after a stretch that began at decode step `first_step`."""
        p, power, work, span, factor = self._model.parameters, self._power, bill.work, bill.span, bill.factor
        steps = span.steps
        flat = (work.base_s / work.sequences + p.per_sequence_s) * span.noise
        by_offset = p.per_context_token_s * span.noise
        by_step = p.per_context_token_s * (first_step * span.noise + span.noise_step)
        kv_j = power.joule_per_byte * self._kv_bytes
        fixed_j = power.joule_per_byte * power.weight_bytes / work.sequences
        fixed_j += power.joule_per_flop * power.flop_per_token
        return Reading(
            meter.time + flat,
            meter.time_offset + by_offset,
            meter.time_step + by_step,
            meter.energy + factor * (power.idle_w * flat + steps * fixed_j),
            meter.energy_offset + factor * (power.idle_w * by_offset + kv_j * steps),
            meter.energy_step
            + factor * (power.idle_w * by_step + kv_j * (steps * first_step + span.positions)),
        )

    def chunk_share(self, bill: Bill, chunk: Chunk) -> tuple[Seconds, float]:
        """Time and energy that the sequence of a chunk owes for its (single) step."""
        power, work = self._power, bill.work
        time_s = self._chunk_s(work, chunk) * bill.span.noise
        joule = power.idle_w * time_s + power.joule_per_flop * power.flop_per_token * chunk.tokens
        moved = power.weight_bytes / work.sequences + self._kv_bytes * (chunk.history + chunk.tokens)
        return time_s, bill.factor * (joule + power.joule_per_byte * moved)

    def _chunk_s(self, work: Work, chunk: Chunk) -> Seconds:
        p = self._model.parameters
        shared = work.base_s / work.sequences + p.per_attention_pair_s * chunk.pairs
        if work.decodes:
            return shared + p.per_prefill_token_s * chunk.tokens
        # Alone, the chunks share the sweep of the weights in proportion to their tokens.
        sweep = max(p.prefill_floor_s, p.per_prefill_token_s * work.prefill_tokens)
        return shared + sweep * chunk.tokens / work.prefill_tokens


def owed(before: Reading, after: Reading, context_offset: int) -> tuple[Seconds, float]:
    """Time and energy of a decoding sequence between two readings; its context is step + offset."""
    time_s = after.time - before.time
    time_s += context_offset * (after.time_offset - before.time_offset) + after.time_step - before.time_step
    joule = after.energy - before.energy
    joule += context_offset * (after.energy_offset - before.energy_offset)
    joule += after.energy_step - before.energy_step
    return max(0.0, time_s), max(0.0, joule)
