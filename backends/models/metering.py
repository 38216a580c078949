"""Who pays for a step: each sequence by its marginal terms, the base shared equally. Pure.

A decoding sequence is charged like a household with a meter: the batch advances six counters once per
stretch of steps, and a sequence owes the difference between two readings. So a stretch costs the same
whether the batch is 4 or 400. With x_j the noise of step j and context = step + offset for a sequence:

    its time in a stretch = sum of x_j (base / n + per_sequence + per_context_token (first_step + j + offset))
                          = difference(T) + offset difference(T0) + difference(T1)

and in the same way for its energy. The shares of all sequences of a step add up to the step. A step at the
power cap costs cap_w for each of its seconds; below the cap it costs what it moves and computes.

Works, spans and bills are named tuples: they are made once per step, and a frozen dataclass takes four times
as long to make.
"""

from __future__ import annotations

from typing import NamedTuple

from backends.models.latency import Parts, Price, StepLaw
from router.model import PowerParameters, Seconds

Reading = tuple[float, float, float, float, float, float]
"""A meter's counters at one moment, in its own order."""


class Chunk(NamedTuple):
    """Prompt tokens of one sequence in one step: `tokens` new ones after `history`."""

    tokens: int
    history: int
    padded: int = 0
    """Tokens it costs, at least `tokens`; 0 means that nothing is padded."""

    @property
    def paid(self) -> int:
        """Tokens it costs."""
        return self.padded or self.tokens

    @property
    def pairs(self) -> float:
        """Attention pairs: tokens (history + tokens / 2)."""
        return self.tokens * (self.history + 0.5 * self.tokens)

    @property
    def paid_pairs(self) -> float:
        """Attention pairs of the tokens it costs."""
        return self.paid * (self.history + 0.5 * self.paid)


class Work(NamedTuple):
    """What each step of a stretch works on, what it costs, and how long it takes without noise."""

    decodes: int
    context_tokens: int
    """Sum over the decodes, in the first step; every further step adds one token to each."""
    chunks: tuple[Chunk, ...]
    """Only in a stretch of one step."""
    price: Price
    first_s: Seconds
    growth_s: Seconds
    """By how much each step is longer than the one before."""
    dynamic_j: float
    """Energy of what the first step moves and computes."""
    dynamic_growth_j: float
    sequences: int
    """In each step: decodes and chunks."""


class Span(NamedTuple):
    """Steps of a stretch that are over, as sums over them. j is a step's position, from 0."""

    steps: int
    noise: float
    """Of the noise."""
    noise_step: float
    """Of noise x j."""
    watts: float
    """Of noise x power: idle_w below the cap, cap_w at it."""
    watts_step: float
    """Of noise x power x j."""
    free: int
    """Steps below the cap: they pay for what they move and compute."""
    positions: float
    """Sum of j over them."""


class Bill(NamedTuple):
    """Device time and energy of the steps of a span."""

    work: Work
    span: Span
    time_s: Seconds
    energy_j: float


class Meter:
    """Six counters: constant, offset and step terms of time and of energy."""

    __slots__ = ("energy", "energy_offset", "energy_step", "time", "time_offset", "time_step")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.time = self.time_offset = self.time_step = 0.0
        self.energy = self.energy_offset = self.energy_step = 0.0

    def read(self) -> Reading:
        """The counters as they are."""
        return (
            self.time, self.time_offset, self.time_step, self.energy, self.energy_offset, self.energy_step,
        )  # fmt: skip

    def owed(self, before: Reading, context_offset: int) -> tuple[Seconds, float]:
        """Time and energy of a decoding sequence since a reading; its context is step + offset."""
        time, time_offset, time_step, energy, energy_offset, energy_step = before
        time_s = self.time - time + context_offset * (self.time_offset - time_offset)
        time_s += self.time_step - time_step
        joule = self.energy - energy + context_offset * (self.energy_offset - energy_offset)
        joule += self.energy_step - energy_step
        return max(0.0, time_s), max(0.0, joule)


class Tariff:
    """Times and energies of stretches on one backend, and their shares."""

    __slots__ = ("_context_j", "_flop_j", "_law", "_weights_j")

    def __init__(self, law: StepLaw, power: PowerParameters, kv_bytes_per_token: float) -> None:
        self._law = law
        self._weights_j = power.joule_per_byte * power.weight_bytes
        self._context_j = power.joule_per_byte * kv_bytes_per_token
        self._flop_j = power.joule_per_flop * power.flop_per_token

    def work(self, decodes: int, context_tokens: int, chunks: tuple[Chunk, ...]) -> Work:
        """Price the steps of a stretch; there is at least one decode or chunk."""
        tokens, pairs, held = 0, 0.0, context_tokens
        for chunk in chunks:
            tokens += chunk.paid
            pairs += chunk.paid_pairs
            held += chunk.history + chunk.tokens
        price = self._law.price(decodes, context_tokens, tokens, pairs)
        first_s = price.base_s + price.per_sequence_s * decodes + price.per_context_token_s * context_tokens
        if tokens:
            first_s += price.per_prefill_token_s * tokens + price.per_attention_pair_s * pairs
        computed = decodes + tokens + price.padding
        dynamic_j = self._weights_j + self._context_j * held + self._flop_j * computed
        return Work(
            decodes,
            context_tokens,
            chunks,
            price,
            first_s,
            price.per_context_token_s * decodes,
            dynamic_j,
            self._context_j * decodes,
            decodes + len(chunks),
        )

    def bill(self, work: Work, span: Span) -> Bill:
        """Add up the steps of a span."""
        joule = work.first_s * span.watts + work.growth_s * span.watts_step
        joule += work.dynamic_j * span.free + work.dynamic_growth_j * span.positions
        return Bill(work, span, work.first_s * span.noise + work.growth_s * span.noise_step, joule)

    def meter(self, meter: Meter, bill: Bill, first_step: int) -> None:
        """Advance the meter over a stretch that began at decode step `first_step`."""
        work, (_, noise, noise_step, watts, watts_step, free, positions), *_ = bill
        price = work.price
        share_s = price.base_s / work.sequences + price.per_sequence_s
        context_s, context_j = price.per_context_token_s, self._context_j
        meter.time += share_s * noise
        meter.time_offset += context_s * noise
        meter.time_step += context_s * (first_step * noise + noise_step)
        meter.energy += share_s * watts + free * (self._flop_j + self._shared_j(work))
        meter.energy_offset += context_s * watts + free * context_j
        meter.energy_step += context_s * (first_step * watts + watts_step)
        meter.energy_step += context_j * (free * first_step + positions)

    def chunk_share(self, bill: Bill, chunk: Chunk) -> tuple[Seconds, float]:
        """Time and energy that the sequence of a chunk owes for its (single) step."""
        work, span = bill.work, bill.span
        price = work.price
        own_s = price.base_s / work.sequences + price.per_prefill_token_s * chunk.paid
        own_s += price.per_attention_pair_s * chunk.paid_pairs
        own_j = self._shared_j(work) + self._flop_j * chunk.paid
        own_j += self._context_j * (chunk.history + chunk.tokens)
        return own_s * span.noise, own_s * span.watts + own_j * span.free

    def _shared_j(self, work: Work) -> float:
        """The sweep of the weights and the empty places, which all sequences share equally."""
        return (self._weights_j + self._flop_j * work.price.padding) / work.sequences


def parts_s(bill: Bill) -> tuple[Seconds, Seconds, Seconds]:
    """Busy time of the attention devices, the FFN devices and the network between, where decode is split."""
    parts, span = bill.work.price.parts, bill.span
    if parts is None:
        return 0.0, 0.0, 0.0
    attention_s = parts.attention_s * span.noise + parts.attention_growth_s * span.noise_step
    return attention_s, parts.ffn_s * span.noise, parts.transfer_s * span.noise


__all__ = ["Bill", "Chunk", "Meter", "Parts", "Reading", "Span", "Tariff", "Work", "parts_s"]
