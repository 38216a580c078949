"""The KV cache: pages on the device, and which of them are free.

A page holds `block_tokens` tokens of every layer. A sequence owns a list of pages; token i of it lies in page
i // block_tokens. So its room grows a page at a time and never has to be contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch  # pyright: ignore[reportMissingImports]

from backends.models.kvcache import blocks_for
from backends.models.shape import ModelShape


class FreeBlocks:
    """Pages that nobody owns. Belongs to the loop: no tensor is touched here."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.capacity = blocks
        self.block_tokens = block_tokens
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def used(self) -> int:
        """Pages that are owned."""
        return self.capacity - len(self._free)

    def extend(self, table: list[int], tokens: int) -> bool:
        """Let a table hold `tokens` tokens; False, and nothing taken, when there is no room."""
        wanted = blocks_for(tokens, self.block_tokens) - len(table)
        if wanted > len(self._free):
            return False
        table.extend(self._free.pop() for _ in range(wanted))
        return True

    def give_back(self, table: list[int]) -> None:
        """Empty a table."""
        self._free.extend(reversed(table))
        table.clear()


class KVCache:
    """Keys and values on the device; touched by the device's threads only."""

    def __init__(
        self, shape: ModelShape, blocks: int, block_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.block_tokens = block_tokens
        size = (shape.layers, 2, blocks * block_tokens, shape.kv_heads, shape.head_dim)
        # Zeros rather than whatever was in memory: a page that is read too early then shows as such.
        self.data = torch.zeros(size, device=device, dtype=dtype)
        self._within = torch.arange(block_tokens)

    def slots(self, table: Sequence[int], start: int, end: int) -> torch.Tensor:
        """Where tokens start to end - 1 of a sequence lie in the third dimension of `data`; on the CPU."""
        first, last = start // self.block_tokens, blocks_for(end, self.block_tokens)
        pages = torch.tensor(table[first:last], dtype=torch.long)
        every = (pages[:, None] * self.block_tokens + self._within).flatten()
        return every[start - first * self.block_tokens : end - first * self.block_tokens]
