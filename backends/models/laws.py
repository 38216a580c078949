"""Which law a backend's steps follow: the plain step model, or one that its scheduler bends. Pure.

bucketed   the step model of the padded shape: the batch and each prompt chunk round up to what was compiled
slots      a constant step, that of all places; contexts count where the profile gives them a term
afd        attention and FFN on devices of their own (afd.py)
"""

from __future__ import annotations

from collections.abc import Sequence

from backends.models.afd import AfdModel
from backends.models.forming import batch_buckets, bucket_of, check_buckets, prompt_buckets, tokens_per_step
from backends.models.latency import Price, StepLaw, StepModel
from router.model import BackendSpec, SchedulerKind, Seconds, StepParameters


class PaddedModel:
    """Steps of compiled shapes. Implements latency.StepLaw; chunks come padded (forming.Bucketed)."""

    __slots__ = ("_batches", "_model", "_per_sequence_s", "_prompts")

    def __init__(self, parameters: StepParameters, prompts: Sequence[int], batches: Sequence[int]) -> None:
        """Buckets ascend; raise ConfigError for parameters that give no sensible times."""
        self._model = StepModel(parameters)
        self._per_sequence_s = parameters.per_sequence_s
        self._prompts = prompts
        self._batches = batches

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> Seconds:
        """Chunks of the largest bucket, and one of the bucket that holds the rest."""
        total, largest = 0.0, self._prompts[-1]
        whole, rest = divmod(max(0, new_tokens), largest)
        for i in range(whole):
            total += self._model.prefill_s(largest, cached_tokens + i * largest)
        padded = bucket_of(rest, self._prompts) if rest else 0
        return total + self._model.prefill_s(padded, cached_tokens + whole * largest)

    def decode_step_s(self, sequences: int, context_tokens: int) -> Seconds:
        """The step of the smallest compiled batch that holds them; empty places have no context."""
        if sequences <= 0:
            return 0.0
        return self._model.decode_step_s(bucket_of(sequences, self._batches), context_tokens)

    def mixed_step_s(
        self, sequences: int, context_tokens: int, prefill_tokens: int, attention_pairs: float
    ) -> Seconds:
        """Two programs one after the other, where there is work for both."""
        prefill_s = 0.0
        if prefill_tokens > 0:
            prefill_s = self._model.mixed_step_s(0, 0, prefill_tokens, attention_pairs)
        return prefill_s + self.decode_step_s(sequences, context_tokens)

    def price(
        self, sequences: int, context_tokens: int, prefill_tokens: int, attention_pairs: float
    ) -> Price:
        """Empty places are shared by the sequences that are there."""
        if prefill_tokens > 0:
            return self._model.price(0, 0, prefill_tokens, attention_pairs)
        size = bucket_of(sequences, self._batches)
        padding = max(0, size - sequences)
        plain = self._model.price(size, context_tokens, 0, 0.0)
        return plain._replace(base_s=plain.base_s + padding * self._per_sequence_s, padding=padding)


class PipelineModel:
    """A static pipeline of `slots` places. Implements latency.StepLaw."""

    __slots__ = ("_budget", "_per_context_token_s", "_slots", "_step_s")

    def __init__(self, parameters: StepParameters, slots: int, budget: int) -> None:
        """`budget` prompt tokens flow through in a step, at least 1."""
        self._step_s = StepModel(parameters).decode_step_s(slots, 0)
        self._per_context_token_s = parameters.per_context_token_s
        self._slots = slots
        self._budget = budget

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> Seconds:
        """Whole steps, however little the last one has to do."""
        return -(-max(0, new_tokens) // self._budget) * self._step_s

    def decode_step_s(self, sequences: int, context_tokens: int) -> Seconds:
        """The same for one sequence as for all."""
        return self._step_s + self._per_context_token_s * context_tokens if sequences > 0 else 0.0

    def mixed_step_s(
        self, sequences: int, context_tokens: int, prefill_tokens: int, attention_pairs: float
    ) -> Seconds:
        """Prompts take no time from the decodes beside them."""
        return self._step_s + self._per_context_token_s * context_tokens

    def price(
        self, sequences: int, context_tokens: int, prefill_tokens: int, attention_pairs: float
    ) -> Price:
        """Whoever is in the pipeline shares it."""
        padding = max(0, self._slots - sequences)
        return Price(self._step_s, 0.0, self._per_context_token_s, padding=padding)


def law_of(spec: BackendSpec) -> StepLaw:
    """The law of a backend; raise ConfigError for parameters that give no sensible times."""
    if spec.afd is not None:
        return AfdModel(spec.afd, spec.step)
    if spec.scheduler is SchedulerKind.BUCKETED:
        check_buckets(spec)
        return PaddedModel(spec.step, prompt_buckets(spec), batch_buckets(spec))
    if spec.scheduler is SchedulerKind.SLOTS:
        slots = spec.max_num_seqs
        budget = tokens_per_step(spec.step, slots, spec.max_num_batched_tokens)
        return PipelineModel(spec.step, slots, budget)
    return StepModel(spec.step)


class StepModels:
    """Implements core.ports.ModelSource: one law per set of parameters."""

    LIMIT = 1024
    """Sets kept; backends that come and go with ever new parameters must not fill the memory."""

    def __init__(self) -> None:
        self._laws: dict[object, StepLaw] = {}

    def __call__(self, spec: BackendSpec) -> StepLaw:
        """The law of a backend; raise ConfigError for parameters that give no sensible times."""
        key = _key_of(spec)
        law = self._laws.get(key)
        if law is None:
            if len(self._laws) >= self.LIMIT:
                self._laws.clear()
            law = self._laws[key] = law_of(spec)
        return law


def _key_of(spec: BackendSpec) -> object:
    """What the law depends on; the parameters alone for the plain step model."""
    if spec.afd is None and spec.scheduler in (SchedulerKind.CONTINUOUS, SchedulerKind.SINGLE):
        return spec.step
    limits = (spec.scheduler, spec.max_num_seqs, spec.max_num_batched_tokens)
    return (spec.step, spec.afd, limits, spec.prompt_buckets, spec.batch_buckets)
