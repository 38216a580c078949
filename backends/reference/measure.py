"""A first idea of how long steps and transfers take, measured at boot in a second or so.

It makes the router's first predictions sensible and warms the kernels up. It is no calibration: a profile
from `polyphase calibrate probe` is one, and takes its place. The router corrects either by what it observes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch  # pyright: ignore[reportMissingImports]

from backends.models.kvcache import blocks_for
from backends.reference.attention import Part
from backends.reference.kind import Kind
from backends.reference.precision import Precision
from backends.reference.runner import Runner, Step
from backends.reference.sampler import Sampling
from backends.reference.transfer import Cells, Inflow, Manifest, runs
from router.model import LinkParameters, Seconds, StepParameters

CONTEXT: Final = 16
"""Tokens of the sequences whose decode is timed."""
BATCH: Final = 8
PROMPT: Final = 256
REPEATS: Final = 3
GREEDY: Final = Sampling(0.0, 1.0, 0, 0, frozenset(), 0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step of the worker may hold, and its pages."""

    block_tokens: int
    blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int


class Measure:
    """Times steps of a runner that nobody else uses yet."""

    def __init__(self, runner: Runner, kind: Kind, limits: Limits) -> None:
        self._runner = runner
        self._kind = kind
        self._limits = limits

    def step(self) -> StepParameters:
        """Base, and what a decoding sequence and a prompt token add; the rest stays 0."""
        one_s, batch = self._decode_s(1), self._batch()
        more_s = (self._decode_s(batch) - one_s) / (batch - 1) if batch > 1 else 0.0
        per_sequence_s = min(max(more_s, 0.0), one_s)
        tokens = self._prompt()
        prompt_s = self._time(Step((self._part(0, tokens, 0),), ((GREEDY, 0),)))
        per_token_s = max((prompt_s - one_s) / tokens, 0.0)
        return StepParameters(
            base_s=max(one_s - per_sequence_s, 1e-6),
            per_sequence_s=per_sequence_s,
            per_prefill_token_s=per_token_s,
            prefill_base_s=max(prompt_s - per_token_s * tokens, 1e-6),
        )

    def link(self) -> tuple[LinkParameters, float]:
        """The rate at which KV can be read and written here, and how many times longer a conversion takes.

        The network between two workers is not in it: it can only be slower.
        """
        same = self._kind.precision
        other = Precision.FP16 if same is not Precision.FP16 else Precision.BF16
        plain_s, converted_s = self._transfer_s(same), self._transfer_s(other)
        token_bytes = 2 * self._kind.shape.kv_heads * self._kind.shape.head_dim * same.bytes
        return LinkParameters(0.0, token_bytes / plain_s), max(1.0, converted_s / plain_s)

    def _batch(self) -> int:
        pages = blocks_for(CONTEXT + 1, self._limits.block_tokens)
        return max(1, min(BATCH, self._limits.max_num_seqs, self._limits.blocks // pages))

    def _prompt(self) -> int:
        room = self._limits.blocks * self._limits.block_tokens
        return min(PROMPT, self._limits.max_num_batched_tokens, room, self._kind.shape.max_context)

    def _decode_s(self, batch: int) -> Seconds:
        parts = tuple(self._part(CONTEXT, 1, place) for place in range(batch))
        return self._time(Step(parts, ((GREEDY, 0),) * batch))

    def _part(self, start: int, tokens: int, place: int) -> Part:
        pages = blocks_for(start + tokens, self._limits.block_tokens)
        table = tuple(range(place * pages, (place + 1) * pages))
        return Part((0,) * tokens, start, table, start or tokens, True)

    def _time(self, step: Step) -> Seconds:
        return _typical(lambda: self._runner.step(step))

    def _transfer_s(self, precision: Precision) -> Seconds:
        """For a token of one layer: read, checked, converted and written."""
        shape = replace(self._kind.shape, layers=1)
        manifest = Manifest(precision, 1, shape.kv_heads, shape.head_dim, self._prompt(), ())
        _, start, end = next(iter(runs(manifest)))
        manifest = replace(manifest, tokens=end)
        table = self._part(0, end, 0).table
        size = (2, end, shape.kv_heads, shape.head_dim)
        chunk = Cells(0, start, torch.zeros(size, dtype=precision.torch)).pack()

        def transfer() -> None:
            self._runner.read(table, 0, start, end)
            inflow = Inflow(shape, end)
            inflow.take(manifest.pack())
            cells = inflow.take(chunk)
            assert cells is not None, "a chunk after the manifest holds cells"
            self._runner.write(table, cells)
            self._runner.settle()

        return _typical(transfer) / end


def _typical(work: Callable[[], object]) -> Seconds:
    """The median of a few times, after one that warms up."""
    work()
    times: list[Seconds] = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return max(statistics.median(times), 1e-9)
