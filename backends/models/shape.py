"""What a transformer weighs and costs, whatever device it runs on: parameters, bytes, FLOPs. Pure.

Counts leave out biases (below 0.1 % of every model checked) and heads for multi-token prediction. Origin of
the formulas: a matrix of n x m has n m parameters and costs 2 n m FLOPs per token; attention reads K and V of
every earlier token of a full layer, and of the last `window` tokens of a sliding one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Dtype(StrEnum):
    """Formats of weights."""

    BF16 = "bf16"
    """16 bits a weight; float16 counts as this."""
    FP8 = "fp8"
    INT8 = "int8"
    NVFP4 = "nvfp4"
    """4 bits, and an 8-bit scale for 16 of them."""
    MXFP4 = "mxfp4"
    """4 bits, and an 8-bit scale for 32 of them; the experts only, where a model has experts."""
    INT4 = "int4"
    """4 bits, and a 16-bit scale for 32 of them, as consumer engines quantise (4.5 bits in all)."""

    @property
    def is_quantised_activation(self) -> bool:
        """Whether matrices multiply in that format, so that each layer quantises its input first."""
        return self in {Dtype.FP8, Dtype.INT8, Dtype.NVFP4}


BYTES: Final[Mapping[Dtype, float]] = {
    Dtype.BF16: 2.0,
    Dtype.FP8: 1.0,
    Dtype.INT8: 1.0,
    Dtype.NVFP4: 0.5625,
    Dtype.MXFP4: 0.53125,
    Dtype.INT4: 0.5625,
}
"""Bytes a quantised weight takes, its share of the scales included."""

KV_BYTES: Final[Mapping[Dtype, float]] = {Dtype.BF16: 2.0, Dtype.FP8: 1.0, Dtype.INT8: 1.0}
"""Bytes an element of the KV cache takes, by the cache's own format."""


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention: one compressed vector a token instead of keys and values a head."""

    kv_rank: int
    query_rank: int
    """0: queries are not compressed."""
    nope_dim: int
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: each token runs `active` of `total` in each of `layers` layers."""

    total: int
    active: int
    intermediate: int
    layers: int
    shared_intermediate: int = 0
    """Width of what every token runs besides."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one decoder-only transformer."""

    name: str
    layers: int
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of a dense feed-forward layer; unused where every layer has experts."""
    native: Dtype = Dtype.BF16
    """Format of the published checkpoint."""
    sliding_layers: int = 0
    """Layers that attend to the last `window` tokens only."""
    window: int = 0
    latent: Latent | None = None
    experts: Experts | None = None
    tied: bool = False
    """The output head is the embedding table."""
    gated: bool = True
    """Three matrices in a feed-forward layer, not two."""
    query_key_norms: bool = False
    max_context: int = 1 << 17

    # --- parameters ----------------------------------------------------------------------------

    @property
    def attention_parameters(self) -> int:
        """Of all layers."""
        if (mla := self.latent) is None:
            return self.layers * 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        queries = self.heads * (mla.nope_dim + mla.rope_dim)
        rank = mla.query_rank
        into = self.hidden * rank + rank * queries if rank else self.hidden * queries
        keys = self.hidden * (mla.kv_rank + mla.rope_dim)
        up = mla.kv_rank * self.heads * (mla.nope_dim + mla.value_dim)
        return self.layers * (into + keys + up + self.heads * mla.value_dim * self.hidden)

    @property
    def dense_parameters(self) -> int:
        """Feed-forward layers, shared experts and routers: what every token runs, attention aside."""
        matrices = 3 if self.gated else 2
        moe = self.experts
        if moe is None:
            return self.layers * matrices * self.hidden * self.intermediate
        dense = (self.layers - moe.layers) * matrices * self.hidden * self.intermediate
        every = matrices * self.hidden * moe.shared_intermediate + self.hidden * moe.total
        return dense + moe.layers * every

    @property
    def expert_parameters(self) -> int:
        """All routed experts."""
        if (moe := self.experts) is None:
            return 0
        return moe.layers * moe.total * (3 if self.gated else 2) * self.hidden * moe.intermediate

    @property
    def embedding_parameters(self) -> int:
        """The table, or the head: one of them."""
        return self.vocab * self.hidden

    @property
    def norm_parameters(self) -> int:
        """Scales of the normalisations."""
        per_layer = 2 * self.hidden + (2 * self.head_dim if self.query_key_norms else 0)
        if self.latent is not None:
            per_layer += self.latent.kv_rank + self.latent.query_rank
        return self.layers * per_layer + self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        tables = self.embedding_parameters * (1 if self.tied else 2)
        matrices = self.attention_parameters + self.dense_parameters + self.expert_parameters
        return matrices + tables + self.norm_parameters

    @property
    def active_parameters(self) -> int:
        """What one token multiplies with: the head, but no row of the embedding table."""
        active = self.attention_parameters + self.dense_parameters + self.embedding_parameters
        if (moe := self.experts) is not None:
            active += self.expert_parameters * moe.active // moe.total
        return active

    # --- bytes ---------------------------------------------------------------------------------

    def weight_bytes(self, dtype: Dtype) -> float:
        """Bytes of the resident weights. Tables and norms stay in 16 bits, save for int4."""
        tables = self.embedding_parameters * (1 if self.tied else 2) + self.norm_parameters
        return self._matrix_bytes(dtype) + self.expert_bytes(dtype) + tables * _table_bytes(dtype)

    def dense_read_bytes(self, dtype: Dtype) -> float:
        """Bytes that every decode step reads: all but the routed experts and the embedding table."""
        head = self.embedding_parameters + self.norm_parameters
        return self._matrix_bytes(dtype) + head * _table_bytes(dtype)

    def expert_bytes(self, dtype: Dtype) -> float:
        """Bytes of all routed experts; a step of a large batch reads nearly all of them."""
        return self.expert_parameters * BYTES[dtype]

    def _matrix_bytes(self, dtype: Dtype) -> float:
        experts_only = dtype is Dtype.MXFP4 and self.experts is not None
        matrices = self.attention_parameters + self.dense_parameters
        return matrices * (BYTES[Dtype.BF16] if experts_only else BYTES[dtype])

    def kv_bytes_per_token(self, kv: Dtype = Dtype.BF16) -> float:
        """Bytes of KV cache one token leaves, in every layer."""
        return self.layers * self._kv_elements * KV_BYTES[kv]

    def kv_bytes_read_per_token(self, kv: Dtype = Dtype.BF16) -> float:
        """Bytes a decode step reads for each token of context beyond the sliding windows."""
        return (self.layers - self.sliding_layers) * self._kv_elements * KV_BYTES[kv]

    def window_bytes(self, kv: Dtype = Dtype.BF16) -> float:
        """Bytes a decode step reads for each sequence from its sliding windows, once these are full."""
        return self.sliding_layers * self.window * self._kv_elements * KV_BYTES[kv]

    @property
    def _kv_elements(self) -> int:
        """Of one token in one layer."""
        if self.latent is not None:
            return self.latent.kv_rank + self.latent.rope_dim
        return 2 * self.kv_heads * self.head_dim

    # --- FLOPs ---------------------------------------------------------------------------------

    @property
    def flop_per_token(self) -> float:
        """Of a forward pass, attention to earlier tokens aside."""
        return 2.0 * self.active_parameters

    @property
    def flop_per_pair(self) -> float:
        """Of one new token's attention to one earlier token, over the full layers."""
        if (mla := self.latent) is not None:
            each = 2.0 * self.heads * (mla.nope_dim + mla.rope_dim + mla.value_dim)
        else:
            each = 4.0 * self.heads * self.head_dim
        return each * (self.layers - self.sliding_layers)

    def flop_at(self, context_tokens: int) -> float:
        """Of one token after `context_tokens` others, attention included."""
        pairs = self.flop_per_pair * context_tokens
        if self.sliding_layers:
            near = 4.0 * self.heads * self.head_dim * self.sliding_layers
            pairs += near * min(context_tokens, self.window)
        return self.flop_per_token + pairs


def _table_bytes(dtype: Dtype) -> float:
    return BYTES[Dtype.INT4] if dtype is Dtype.INT4 else BYTES[Dtype.BF16]
