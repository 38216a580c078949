"""What the device does for the worker: steps, and KV in and out of the cache. Called on its threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch  # pyright: ignore[reportMissingImports]

from backends.reference import sampler
from backends.reference.attention import Part
from backends.reference.cache import KVCache
from backends.reference.model import Llama
from backends.reference.sampler import Sampling
from backends.reference.transfer import Cells
from router.model import Seconds


@dataclass(frozen=True, slots=True)
class Step:
    """What a step computes."""

    parts: tuple[Part, ...]
    wants: tuple[tuple[Sampling, int], ...]
    """How the parts that choose do so, and the index of the token in its answer; in the parts' order."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """What came of it."""

    tokens: tuple[int, ...]
    """Of the parts that choose."""
    took_s: Seconds


class Runner:
    """A model and its cache on one device."""

    def __init__(self, model: Llama, cache: KVCache) -> None:
        self._model = model
        self._cache = cache

    def step(self, step: Step) -> Stepped:
        """Compute a step to its end."""
        began = time.perf_counter()
        with torch.inference_mode():
            logits = self._model.forward(step.parts, self._cache)
            # Reading the tokens waits for the device, so that the time is the whole step's.
            tokens = sampler.choose(logits, step.wants)
        if not tokens:
            self.settle()
        return Stepped(tuple(tokens), time.perf_counter() - began)

    def settle(self) -> None:
        """Wait until the device has done all it was given."""
        if self._cache.data.is_cuda:
            torch.cuda.synchronize(self._cache.data.device)

    def read(self, table: Sequence[int], layer: int, start: int, end: int) -> bytes:
        """A run of cells as a chunk."""
        with torch.inference_mode():
            data = self._cache.data[layer]
            slots = self._cache.slots(table, start, end).to(data.device)
            return Cells(layer, start, data.index_select(1, slots)).pack()

    def write(self, table: Sequence[int], cells: Cells) -> None:
        """Put cells where they belong, converted to the cache's precision."""
        with torch.inference_mode():
            data = self._cache.data[cells.layer]
            slots = self._cache.slots(table, cells.start, cells.end).to(data.device)
            data.index_copy_(1, slots, cells.values.to(device=data.device, dtype=data.dtype))
