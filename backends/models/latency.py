"""The step model: how long one engine step takes on a backend. Pure; called in every decision and every step.

With B decoding sequences, S the sum of their contexts, N new prompt tokens and P the sum of n (h + n / 2)
over the prefill chunks (n new tokens after h tokens of history):

    mixed step     base + saturating (1 - exp(-(B + N) / saturation_tokens))
                   + per_sequence B + per_context_token S + per_prefill_token N + per_attention_pair P
    prefill alone  prefill_base + max(prefill_floor, per_prefill_token N) + per_attention_pair P

Origin: the form was fitted to public measurements of 240 device, model and precision combinations: median
error 3 % on decode and prefill grids of NVIDIA AIConfigurator 0.12 (Apache-2.0), 1-3 % on InferenceX serving
runs of Llama-3.1-70B. A prefill that has the device to itself hides its compute behind one sweep of the
weights (the max); in a mixed step the sum fits better (2.6 % against 4.6 %).
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import NamedTuple, Protocol

from router.core.ports import LatencyModel
from router.errors import ConfigError
from router.model import Seconds, StepParameters

UNBOUNDED = 1 << 30
"""Steps for which a price holds when nothing ends it."""
MAX_TERM = 3600.0
"""No term of a step is worth more than an hour a unit: a larger one is a unit mistake."""


def check_step(parameters: StepParameters) -> None:
    """Raise ConfigError unless every parameter is finite and in range, and a step takes time."""
    for field in fields(parameters):
        value = getattr(parameters, field.name)
        limit = math.inf if field.name == "saturation_tokens" else MAX_TERM
        if not 0.0 <= value <= limit or math.isinf(value):
            raise ConfigError(
                f"step.{field.name} = {value!r} is outside [0, {limit}]; "
                "the step model would give impossible times. Give it in seconds."
            )
    if parameters.base_s <= 0.0:
        raise ConfigError("step.base_s must be above 0: a decode step that takes no time never ends.")
    if parameters.saturation_tokens <= 0.0:
        raise ConfigError("step.saturation_tokens must be above 0: it divides the batch.")
    if parameters.noise_sigma > 1.0:
        raise ConfigError("step.noise_sigma must be at most 1; measured steps have 0.001 to 0.03.")
    if parameters.stall_probability > 1.0:
        raise ConfigError(
            "step.stall_probability must be at most 1; GPUs stall in about 0.003 of their steps."
        )


class Parts(NamedTuple):
    """Busy time of the sub-phases of a decode step that is split; the first grows with the contexts."""

    attention_s: Seconds
    attention_growth_s: Seconds
    """By how much each step's is longer than that of the step before."""
    ffn_s: Seconds
    transfer_s: Seconds


class Price(NamedTuple):
    """A step as what its sequences owe: the sum over them is the step."""

    base_s: Seconds
    """Shared equally by all sequences of the step."""
    per_sequence_s: Seconds
    """Owed by each decoding sequence."""
    per_context_token_s: Seconds
    per_prefill_token_s: Seconds = 0.0
    per_attention_pair_s: Seconds = 0.0
    padding: int = 0
    """Places of the step that nobody uses, and that compute all the same."""
    steps: int = UNBOUNDED
    """Steps for which it holds while every context grows by one token a step."""
    parts: Parts | None = None


class StepLaw(LatencyModel, Protocol):
    """A latency model whose steps can be shared out among the sequences in them."""

    def price(
        self, sequences: int, context_tokens: int, prefill_tokens: int, attention_pairs: float
    ) -> Price:
        """The price of `mixed_step_s` with the same arguments; there is a sequence or a token."""
        ...


class StepModel:
    """The step model as a StepLaw, for one set of parameters. Noise is the engine's, not the model's."""

    __slots__ = ("_p", "_saturating")

    def __init__(self, parameters: StepParameters) -> None:
        """Raise ConfigError for parameters that give no sensible times."""
        check_step(parameters)
        self._p = parameters
        self._saturating = parameters.saturating_s > 0.0

    @property
    def parameters(self) -> StepParameters:
        """The parameters, as given."""
        return self._p

    def base_s(self, tokens: float) -> Seconds:
        """The part of a step that its sequences share equally; `tokens` is B + N, or their mean."""
        p = self._p
        if not self._saturating:
            return p.base_s
        return p.base_s + p.saturating_s * -math.expm1(-tokens / p.saturation_tokens)

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> Seconds:
        """A prefill of `new_tokens` after `cached_tokens` that has the device to itself."""
        if new_tokens <= 0:
            return 0.0
        p = self._p
        compute = max(p.prefill_floor_s, p.per_prefill_token_s * new_tokens)
        pairs = new_tokens * (cached_tokens + 0.5 * new_tokens)
        return p.prefill_base_s + compute + p.per_attention_pair_s * pairs

    def decode_step_s(self, sequences: int, context_tokens: int) -> Seconds:
        """One decode step; `context_tokens` is the sum over the sequences."""
        if sequences <= 0:
            return 0.0
        p = self._p
        base = self.base_s(sequences) if self._saturating else p.base_s
        return base + p.per_sequence_s * sequences + p.per_context_token_s * context_tokens

    def mixed_step_s(
        self, sequences: int, context_tokens: int, prefill_tokens: int, attention_pairs: float
    ) -> Seconds:
        """A step that decodes a batch and prefills chunks; without decodes the form for prefill alone."""
        p = self._p
        if prefill_tokens <= 0:
            return self.decode_step_s(sequences, context_tokens)
        if sequences <= 0:
            compute = max(p.prefill_floor_s, p.per_prefill_token_s * prefill_tokens)
            return p.prefill_base_s + compute + p.per_attention_pair_s * attention_pairs
        return (
            self.base_s(sequences + prefill_tokens)
            + p.per_sequence_s * sequences
            + p.per_context_token_s * context_tokens
            + p.per_prefill_token_s * prefill_tokens
            + p.per_attention_pair_s * attention_pairs
        )

    def price(
        self, sequences: int, context_tokens: int, prefill_tokens: int, attention_pairs: float
    ) -> Price:
        """Linear in everything but the base; a prefill alone shares the sweep of the weights by tokens."""
        p = self._p
        if prefill_tokens <= 0:
            return Price(self.base_s(sequences), p.per_sequence_s, p.per_context_token_s)
        if sequences <= 0:
            sweep_s = max(p.prefill_floor_s, p.per_prefill_token_s * prefill_tokens) / prefill_tokens
            return Price(p.prefill_base_s, 0.0, 0.0, sweep_s, p.per_attention_pair_s)
        return Price(
            self.base_s(sequences + prefill_tokens),
            p.per_sequence_s,
            p.per_context_token_s,
            p.per_prefill_token_s,
            p.per_attention_pair_s,
        )
