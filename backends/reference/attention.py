"""Attention of new tokens over pages of KV, with torch's own kernels.

By default it runs sequence by sequence, so that nobody's numbers depend on who shares the step. With
`batched`, all sequences that decode are one call over contexts filled up to the longest: on a GPU the calls
of a large batch would take longer than the work in them. What is beyond a context is masked either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor  # pyright: ignore[reportMissingImports]
from torch.nn import functional as ops  # pyright: ignore[reportMissingImports]

from backends.reference.cache import KVCache

KEYS: Final = 512
ROWS: Final = 4
"""So that a prompt gives the same numbers wherever it is cut into chunks, a chunk attends to whole blocks of
KEYS keys (what is beyond is masked), or to the prompt's end if that comes before, and has a multiple of ROWS
rows. torch's attention kernel on CPU works through blocks of 512 keys, sums a part of a block in another
order than a whole one, and takes other kernels for fewer than four rows (seen with torch 2.13)."""


@dataclass(frozen=True, slots=True)
class Part:
    """New tokens of one sequence in one step."""

    tokens: tuple[int, ...]
    start: int
    """Position of the first of them: the tokens before have their KV in the cache."""
    table: tuple[int, ...]
    """The sequence's pages."""
    prompt: int
    """Tokens that are prefilled in all, in this step or others; from there on tokens come one by one."""
    chooses: bool
    """Whether the logits of its last token are wanted."""

    @property
    def end(self) -> int:
        """Tokens of the sequence that have KV after the step."""
        return self.start + len(self.tokens)

    @property
    def decodes(self) -> bool:
        """Whether it is one token after the prompt."""
        return self.start >= self.prompt


@dataclass(frozen=True, slots=True)
class _One:
    """A part on its own."""

    rows: slice
    """Among all new tokens."""
    context: Tensor
    """Where its tokens lie in the cache."""
    mask: Tensor | None
    """Of a chunk: what each row may see. It may have more columns and rows than there are tokens."""
    causal: bool


@dataclass(frozen=True, slots=True)
class _Crowd:
    """Parts of one token each."""

    rows: Tensor
    context: Tensor
    """(parts, longest context): where their tokens lie, and anywhere beyond."""
    beyond: Tensor
    """(parts, longest context): whether a place is beyond the context."""


@dataclass(frozen=True, slots=True)
class View:
    """What a step reads and writes of the cache; the same in every layer."""

    new: Tensor
    """Where the new tokens' KV goes."""
    ones: tuple[_One, ...]
    crowd: _Crowd | None


def view_of(parts: Sequence[Part], cache: KVCache, batched: bool) -> View:
    """The view of a step."""
    device = cache.data.device
    new = torch.cat([cache.slots(part.table, part.start, part.end) for part in parts]).to(device)
    ones: list[_One] = []
    together: list[tuple[int, Part]] = []
    row = 0
    for part in parts:
        rows = slice(row, row + len(part.tokens))
        row = rows.stop
        if batched and part.decodes:
            together.append((rows.start, part))
        else:
            ones.append(_one(part, rows, cache))
    return View(new, tuple(ones), _crowd(together, cache) if together else None)


def attend(query: Tensor, kv: Tensor, view: View) -> Tensor:
    """Attention in one layer: (tokens, heads, head_dim) in and out."""
    mixed = torch.empty_like(query)
    for one in view.ones:
        mixed[one.rows] = _alone(query[one.rows], kv, one)
    if view.crowd is not None:
        mixed[view.crowd.rows] = _together(query[view.crowd.rows], kv, view.crowd)
    return mixed


def _one(part: Part, rows: slice, cache: KVCache) -> _One:
    device = cache.data.device
    context = cache.slots(part.table, 0, part.end).to(device)
    in_one = part.decodes or (part.start, part.end) == (0, part.prompt)
    return _One(rows, context, None if in_one else _mask(part, device), in_one and len(part.tokens) > 1)


def _mask(part: Part, device: torch.device) -> Tensor:
    """What each token of a chunk may see: itself and what is before it."""
    rows = -(-len(part.tokens) // ROWS) * ROWS
    columns = min(-(-part.end // KEYS) * KEYS, part.prompt)
    return torch.ones(rows, columns, dtype=torch.bool, device=device).tril(part.start)


def _alone(query: Tensor, kv: Tensor, one: _One) -> Tensor:
    rows, columns = (len(query), len(one.context)) if one.mask is None else one.mask.shape
    keys, values = (_heads(kv[which].index_select(0, one.context), columns) for which in (0, 1))
    mixed = ops.scaled_dot_product_attention(
        _heads(query, rows),
        keys,
        values,
        attn_mask=one.mask,
        is_causal=one.causal,
        enable_gqa=True,
    )
    return mixed[0].transpose(0, 1)[: len(query)]


def _heads(tokens: Tensor, count: int) -> Tensor:
    """(tokens, heads, size) as (1, heads, count, size), filled up with zeros: whatever else lies in a page
    might be somebody else's NaN, which a weight of 0 does not make harmless."""
    if len(tokens) < count:
        tokens = ops.pad(tokens, (0, 0, 0, 0, 0, count - len(tokens)))
    return tokens.transpose(0, 1)[None]


def _crowd(together: Sequence[tuple[int, Part]], cache: KVCache) -> _Crowd:
    device = cache.data.device
    contexts = [cache.slots(part.table, 0, part.end) for _, part in together]
    padded = torch.nn.utils.rnn.pad_sequence(contexts, batch_first=True)
    lengths = torch.tensor([len(context) for context in contexts])
    beyond = torch.arange(padded.shape[1]) >= lengths[:, None]
    rows = torch.tensor([row for row, _ in together])
    return _Crowd(rows.to(device), padded.to(device), beyond.to(device))


def _together(query: Tensor, kv: Tensor, crowd: _Crowd) -> Tensor:
    """One call for all. The query heads that share a KV head are its rows, so that nothing is repeated."""
    count, heads, size = query.shape
    kv_heads = kv.shape[2]
    grouped = query.view(count, kv_heads, heads // kv_heads, size)
    hidden = crowd.beyond[:, :, None, None]
    keys, values = (kv[which][crowd.context].masked_fill(hidden, 0.0).transpose(1, 2) for which in (0, 1))
    mask = ~crowd.beyond[:, None, None, :]
    mixed = ops.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
    return mixed.reshape(count, heads, size)
