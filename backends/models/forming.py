"""How each kind of hardware forms its steps. Pure.

    continuous   decodes and prompt chunks share a step; a chunk takes what the token budget leaves
    bucketed     a step is one compiled program: it prefills one chunk, padded to a compiled length, or
                 decodes the batch, padded to a compiled size; with work for both they take turns
    slots        a static pipeline: every step takes the same time, whatever is in it; prompts flow through
                 beside the decodes, as many tokens a step as the pipeline takes in that time
    single       one sequence at a time, from its prompt to its last token

Who runs is the schedule's business (schedule.py), how long it takes the law's (laws.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol, assert_never

from backends.models.latency import StepModel
from router.errors import ConfigError
from router.model import BackendSpec, SchedulerKind, Seconds, StepParameters

LEAST_BUCKET = 16
"""Smallest compiled prompt length where none are named, as in the TPU back end of vLLM."""


class StepForm(Protocol):
    """What the schedule asks while it puts a step together."""

    @property
    def slots(self) -> int:
        """Sequences that may run."""
        ...

    @property
    def takes_turns(self) -> bool:
        """Whether a step either prefills or decodes."""
        ...

    @property
    def shares_budget(self) -> bool:
        """Whether decodes take from the tokens that prompts may have."""
        ...

    def room(self, decodes: int, chunks: int, taken: int) -> int:
        """Prompt tokens that may still join a step of so many decodes, and chunks of `taken` tokens."""
        ...

    def padded(self, tokens: int) -> int:
        """Tokens that a chunk of `tokens` costs."""
        ...


class Continuous:
    """Continuous batching with chunked prefill."""

    takes_turns = False
    shares_budget = True

    def __init__(self, slots: int, budget: int) -> None:
        self.slots = slots
        self._budget = budget

    def room(self, decodes: int, chunks: int, taken: int) -> int:
        """What is left of the token budget, of which every decode takes one."""
        return self._budget - decodes - taken

    def padded(self, tokens: int) -> int:
        """Nothing is padded."""
        return tokens


class Bucketed:
    """Shapes that were compiled ahead."""

    takes_turns = True
    shares_budget = False

    def __init__(self, slots: int, buckets: Sequence[int]) -> None:
        """`buckets` are the compiled lengths, ascending."""
        self.slots = slots
        self._buckets = buckets

    def room(self, decodes: int, chunks: int, taken: int) -> int:
        """One chunk a step, of the longest compiled length at most."""
        return 0 if chunks else self._buckets[-1]

    def padded(self, tokens: int) -> int:
        """The smallest compiled length that holds them."""
        return bucket_of(tokens, self._buckets)


class Slots:
    """A static pipeline."""

    takes_turns = False
    shares_budget = False

    def __init__(self, slots: int, budget: int) -> None:
        """`budget` prompt tokens flow through in a step."""
        self.slots = slots
        self._budget = budget

    def room(self, decodes: int, chunks: int, taken: int) -> int:
        """Decodes have places of their own."""
        return self._budget - taken

    def padded(self, tokens: int) -> int:
        """The pipeline moves at the same speed, full or not."""
        return tokens


def form_of(spec: BackendSpec) -> StepForm:
    """The form of a backend; raise ConfigError when its limits do not fit its scheduler."""
    match spec.scheduler:
        case SchedulerKind.CONTINUOUS:
            return Continuous(spec.max_num_seqs, spec.max_num_batched_tokens)
        case SchedulerKind.BUCKETED:
            check_buckets(spec)
            return Bucketed(spec.max_num_seqs, prompt_buckets(spec))
        case SchedulerKind.SLOTS:
            return Slots(
                spec.max_num_seqs, tokens_per_step(spec.step, spec.max_num_seqs, spec.max_num_batched_tokens)
            )
        case SchedulerKind.SINGLE:
            if spec.max_num_seqs != 1:
                raise ConfigError(
                    f"{spec.id}: scheduler 'single' runs one sequence at a time, and max_num_seqs is "
                    f"{spec.max_num_seqs}; policies would send it a batch. Set max_num_seqs = 1."
                )
            return Continuous(1, spec.max_num_batched_tokens)
        case _:
            assert_never(spec.scheduler)


def bucket_of(count: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `count`, or the largest there is."""
    return buckets[min(bisect_left(buckets, count), len(buckets) - 1)]


def prompt_buckets(spec: BackendSpec) -> Sequence[int]:
    """Compiled chunk lengths; powers of two up to the token budget where the spec names none."""
    return spec.prompt_buckets or powers_of_two(LEAST_BUCKET, spec.max_num_batched_tokens)


def batch_buckets(spec: BackendSpec) -> Sequence[int]:
    """Compiled batches; powers of two up to max_num_seqs where the spec names none."""
    return spec.batch_buckets or powers_of_two(1, spec.max_num_seqs)


def powers_of_two(least: int, most: int) -> Sequence[int]:
    """least, 2 least, ... below `most`, and `most`."""
    buckets: list[int] = []
    size = least
    while size < most:
        buckets.append(size)
        size *= 2
    return (*buckets, most)


def check_buckets(spec: BackendSpec) -> None:
    """Raise ConfigError unless buckets ascend and the largest batch has one."""
    for name, buckets in (("prompt_buckets", spec.prompt_buckets), ("batch_buckets", spec.batch_buckets)):
        if any(b < 1 for b in buckets) or list(buckets) != sorted(set(buckets)):
            raise ConfigError(
                f"{spec.id}: {name} must be whole numbers from 1 on, ascending; they are {list(buckets)}."
            )
    if spec.batch_buckets and spec.batch_buckets[-1] < spec.max_num_seqs:
        raise ConfigError(
            f"{spec.id}: the largest of batch_buckets is {spec.batch_buckets[-1]}, below max_num_seqs "
            f"{spec.max_num_seqs}; a full batch would have no program. Add a bucket, or lower max_num_seqs."
        )


def tokens_per_step(step: StepParameters, slots: int, most: int) -> int:
    """Prompt tokens that a static pipeline takes in during one step."""
    if step.per_prefill_token_s <= 0.0:
        return most
    return max(1, min(most, int(pipeline_s(step, slots) / step.per_prefill_token_s)))


def pipeline_s(step: StepParameters, slots: int) -> Seconds:
    """The constant step of a static pipeline: that of all its places, contexts aside."""
    return StepModel(step).decode_step_s(slots, 0)
