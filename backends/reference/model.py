"""The forward pass of a Llama, over the new tokens of many sequences at once.

Everything but attention (attention.py) runs on all tokens together, row by row. So what a sequence computes
does not depend on who shares the step, as far as the matrix kernels give a row the same numbers in batches
of any size (docs/guides/worker.md says where they do). The order of operations and the places where numbers
are rounded to the model's precision are those of transformers' LlamaForCausalLM, so that greedy answers
agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor  # pyright: ignore[reportMissingImports]
from torch.nn import functional as ops  # pyright: ignore[reportMissingImports]

from backends.reference.attention import Part, View, attend, view_of
from backends.reference.cache import KVCache
from backends.reference.config import ModelConfig, Stretch
from backends.reference.weights import Layer, Weights


class Llama:
    """A model on one device. Pure apart from the cache it is given."""

    def __init__(
        self, config: ModelConfig, weights: Weights, max_tokens: int, *, batched: bool = False
    ) -> None:
        """`max_tokens` is the longest context that may come; `batched` as attention.py says."""
        self._batched = batched
        self._shape = config.shape
        self._epsilon = config.norm_epsilon
        self._weights = weights
        table = weights.embedding
        self._cos, self._sin = rotations(config, max_tokens, table.device, table.dtype)

    def forward(self, parts: Sequence[Part], cache: KVCache) -> Tensor:
        """Compute the parts' KV into the cache; gives a row of logits, in 32 bits, for each that chooses."""
        device = self._weights.embedding.device
        tokens = torch.tensor([token for part in parts for token in part.tokens], device=device)
        positions = torch.cat([torch.arange(part.start, part.end) for part in parts]).to(device)
        turns = self._cos[positions, None], self._sin[positions, None]
        view = view_of(parts, cache, self._batched)
        hidden = ops.embedding(tokens, self._weights.embedding)
        for number, layer in enumerate(self._weights.layers):
            normed = self._norm(hidden, layer.input_norm)
            hidden = hidden + self._attend(normed, layer, turns, view, cache.data[number])
            normed = self._norm(hidden, layer.ffn_norm)
            hidden = hidden + _feed_forward(normed, layer)
        last = torch.tensor(_last_rows(parts), dtype=torch.long, device=device)
        return ops.linear(self._norm(hidden[last], self._weights.norm), self._weights.head).float()

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm in 32 bits, rounded before the weight is applied."""
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._epsilon)
        return weight * wide.to(hidden.dtype)

    def _attend(
        self, hidden: Tensor, layer: Layer, turns: tuple[Tensor, Tensor], view: View, kv: Tensor
    ) -> Tensor:
        shape, count = self._shape, len(hidden)
        query = ops.linear(hidden, layer.query).view(count, shape.heads, shape.head_dim)
        key = ops.linear(hidden, layer.key).view(count, shape.kv_heads, shape.head_dim)
        value = ops.linear(hidden, layer.value).view(count, shape.kv_heads, shape.head_dim)
        kv[0].index_copy_(0, view.new, _turned(key, turns))
        kv[1].index_copy_(0, view.new, value)
        mixed = attend(_turned(query, turns), kv, view)
        return ops.linear(mixed.reshape(count, -1), layer.output)


def rotations(
    config: ModelConfig, count: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding for `count` positions: (position, head_dim) each.

    Worked out in 32 bits and then rounded, as transformers does.
    """
    size = config.shape.head_dim
    frequencies = 1.0 / (config.rope_theta ** (torch.arange(0, size, 2).float() / size))
    if config.stretch is not None:
        frequencies = _stretched(frequencies, config.stretch)
    angles = torch.arange(count).float()[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def _stretched(frequencies: Tensor, stretch: Stretch) -> Tensor:
    """Llama 3.1's long contexts: slow rotations become slower by the factor, fast ones stay, between them the
    two are blended (transformers, modeling_rope_utils, rope_type "llama3")."""
    waves = 2 * math.pi / frequencies
    slow, fast = (stretch.trained_context / part for part in (stretch.low_factor, stretch.high_factor))
    blend = (stretch.trained_context / waves - stretch.low_factor) / (
        stretch.high_factor - stretch.low_factor
    )
    between = (1 - blend) * frequencies / stretch.factor + blend * frequencies
    result = torch.where(waves > slow, frequencies / stretch.factor, frequencies)
    return torch.where((waves <= slow) & (waves >= fast), between, result)


def _turned(heads: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turns
    front, back = heads.chunk(2, dim=-1)
    return (heads * cos) + (torch.cat((-back, front), dim=-1) * sin)


def _feed_forward(hidden: Tensor, layer: Layer) -> Tensor:
    gated = ops.silu(ops.linear(hidden, layer.gate)) * ops.linear(hidden, layer.up)
    return ops.linear(gated, layer.down)


def _last_rows(parts: Sequence[Part]) -> list[int]:
    """Of the parts that choose, among all new tokens."""
    ends = accumulate(len(part.tokens) for part in parts)
    return [end - 1 for part, end in zip(parts, ends, strict=True) if part.chooses]
