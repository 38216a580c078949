"""Room for KV in blocks, with a prefix cache. Pure bookkeeping: no tensors.

A block is private (counted only) or cached (named by the chained hash of the prompt up to its end, counted by
reference). Cached blocks that nobody refers to stay until room is needed; the least recently used goes first,
and of one sequence the last block first, since the blocks before it are worth more. Allocation is all or
nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // block_tokens)


class BlockPool:
    """The blocks of one backend."""

    __slots__ = ("_changed", "_idle", "_private", "_references", "capacity")

    def __init__(self, capacity: int) -> None:
        """`capacity` is in blocks, at least 1."""
        if capacity < 1:
            raise ValueError(
                f"a pool of {capacity} blocks holds nothing; give kv_capacity_tokens at least one block"
            )
        self.capacity = capacity
        self._private = 0
        self._references: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Cached blocks without references, least recently used first."""
        self._changed: dict[int, bool] | None = None
        """Blocks cached (True) or evicted since somebody asked; None while nobody does."""

    @property
    def used(self) -> int:
        """Blocks that somebody needs; cached blocks without references are not among them."""
        return self._private + len(self._references) - len(self._idle)

    @property
    def available(self) -> int:
        """Blocks that an allocation could get, by eviction if need be."""
        return self.capacity - self.used

    @property
    def cached(self) -> int:
        """Blocks in the prefix cache, referred to or not."""
        return len(self._references)

    def allocate(self, blocks: int) -> bool:
        """Take private blocks, all or none; evicts cached blocks that nobody refers to."""
        taken = self._private + len(self._references)
        if blocks > self.capacity - taken + len(self._idle):
            return False
        self._private += blocks
        if taken + blocks <= self.capacity:
            return True
        while self._private + len(self._references) > self.capacity:
            evicted, _ = self._idle.popitem(last=False)
            del self._references[evicted]
            if self._changed is not None:
                self._changed[evicted] = False
        return True

    def free(self, blocks: int) -> None:
        """Give private blocks back."""
        if not 0 <= blocks <= self._private:
            raise ValueError(f"freeing {blocks} private blocks of {self._private}: somebody freed twice")
        self._private -= blocks

    def match(self, hashes: Sequence[int], limit: int) -> int:
        """Leading hashes that are cached, at most `limit`."""
        hits = 0
        while hits < min(limit, len(hashes)) and hashes[hits] in self._references:
            hits += 1
        return hits

    def idle_among(self, hashes: Sequence[int]) -> int:
        """How many of these cached blocks nobody refers to: acquiring them takes them from `available`."""
        return sum(1 for one in hashes if one in self._idle)

    def acquire(self, hashes: Sequence[int]) -> None:
        """Refer to cached blocks."""
        for one in hashes:
            self._references[one] += 1
            self._idle.pop(one, None)

    def publish(self, one: int) -> bool:
        """Turn a private block into a cached one with a reference; False when the hash is cached already.

        As in vLLM V1 a duplicate stays private: two sequences that computed the same block keep one each.
        """
        if one in self._references:
            return False
        self.free(1)
        self._references[one] = 1
        if self._changed is not None:
            self._changed[one] = True
        return True

    def take_changes(self) -> tuple[list[int], list[int]]:
        """Blocks cached and blocks evicted since the last call; at the first, all that are cached."""
        seen = dict.fromkeys(self._references, True) if self._changed is None else self._changed
        self._changed = {}
        evicted = [one for one, there in seen.items() if not there]
        return [one for one, there in seen.items() if there], evicted

    def release(self, hashes: Sequence[int]) -> None:
        """Drop references; blocks without any stay cached until room is needed."""
        for one in reversed(hashes):
            self._references[one] -= 1
            if self._references[one] == 0:
                self._idle[one] = None
