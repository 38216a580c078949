"""Chooses the next token from logits: greedy, or drawn with temperature, top-k and top-p.

Every draw depends on the request's seed and the token's index alone, through a hash: so an answer is the
same whoever shares the batch, after a preemption, and when prefill and decode run on different workers. The
draw is a place on the sum of the tokens' chances; logits that differ in their last bits move the borders
between tokens by as little, and seldom change the choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

import torch  # pyright: ignore[reportMissingImports]

_SEED: Final = Struct("<QQ")
_DRAW: Final = Struct("<Q")
_MANTISSA: Final = 53
"""Bits of a draw, as many as a double holds."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request wants its tokens chosen."""

    temperature: float
    """From 0 (greedy) to 100."""
    top_p: float
    """Above 0, at most 1: the likeliest tokens that together reach it stay."""
    top_k: int
    """So many of the likeliest stay; 0 keeps all."""
    seed: int
    """64 bits."""
    stop_ids: frozenset[int]
    """Tokens that end the answer, and are its last."""
    min_new_tokens: int
    """No stop token is chosen before so many."""


def choose(logits: torch.Tensor, wants: Sequence[tuple[Sampling, int]]) -> list[int]:
    """A token for each row of (rows, vocabulary) logits in 32 bits; `wants` has its index too."""
    best: list[int] = logits.argmax(-1).tolist()
    for row, (sampling, index) in enumerate(wants):
        barred = _barred(sampling, index)
        if sampling.temperature > 0.0 or best[row] in barred:
            best[row] = _choose(logits[row], sampling, index, barred)
    return best


def draw(seed: int, index: int) -> float:
    """A number in [0, 1) for token `index` of an answer."""
    digest = hashlib.blake2b(_SEED.pack(seed, index), digest_size=8).digest()
    return float(_DRAW.unpack(digest)[0] >> (64 - _MANTISSA)) / float(1 << _MANTISSA)


def _barred(sampling: Sampling, index: int) -> frozenset[int]:
    return sampling.stop_ids if index < sampling.min_new_tokens else frozenset()


def _choose(logits: torch.Tensor, sampling: Sampling, index: int, barred: frozenset[int]) -> int:
    row = logits.to(device="cpu", dtype=torch.float64)
    if barred:
        row[sorted(barred)] = -torch.inf
    if sampling.temperature == 0.0:
        return int(row.argmax())
    filtered = sampling.top_k or sampling.top_p < 1.0
    # A stable order: equal logits keep the order of their ids. Sorting is most of the cost of a draw.
    row, ids = row.sort(descending=True, stable=True) if filtered else (row, None)
    row = row[: sampling.top_k or None]
    chances = torch.softmax(row / sampling.temperature, -1).cumsum(-1)
    kept = int((chances < sampling.top_p).sum()) + 1
    limit = float(chances[min(kept, len(chances)) - 1])
    place = int(torch.searchsorted(chances, draw(sampling.seed, index) * limit, right=True))
    place = min(place, len(row) - 1)
    return place if ids is None else int(ids[place])
