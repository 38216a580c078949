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

from router.errors import ConfigError
from router.model import BackendSpec, Seconds, StepParameters

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


class StepModel:
    """Implements core.ports.LatencyModel for one set of parameters. Noise is the engine's, not the
    model's."""

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

    def base_s(self, tokens: int) -> Seconds:
        """The part of a step that its sequences share equally; `tokens` is B + N."""
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


class StepModels:
    """Implements core.ports.ModelSource: one StepModel per set of parameters."""

    LIMIT = 1024
    """Sets kept; backends that come and go with ever new parameters must not fill the memory."""

    def __init__(self) -> None:
        self._models: dict[StepParameters, StepModel] = {}

    def __call__(self, spec: BackendSpec) -> StepModel:
        """The model of a backend; raise ConfigError for parameters that give no sensible times."""
        model = self._models.get(spec.step)
        if model is None:
            if len(self._models) >= self.LIMIT:
                self._models.clear()
            model = self._models[spec.step] = StepModel(spec.step)
        return model
