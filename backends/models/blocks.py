"""Which KV blocks each sequence holds: taken at admission, shared through the prefix cache, given back. Pure.

Blocks that a decoding sequence needs as it grows are counted by the batch (batch.py) for all members at once.
"""

from __future__ import annotations

from backends.models.kvcache import BlockPool, blocks_for
from backends.models.sequence import Sequence


class Blocks:
    """The blocks of one backend, and who holds how many."""

    __slots__ = ("_size", "pool")

    def __init__(self, capacity: int, block_tokens: int) -> None:
        """`capacity` is in blocks, at least 1."""
        self.pool = BlockPool(capacity)
        self._size = block_tokens

    def reserve(self, sequence: Sequence) -> bool:
        """Room for KV that is still at a peer."""
        blocks = blocks_for(sequence.computed, self._size)
        if not self.pool.allocate(blocks):
            return False
        sequence.private = blocks
        return True

    def complete(self, sequence: Sequence) -> bool:
        """Room for all known tokens of a sequence whose KV came from a peer."""
        blocks = blocks_for(sequence.known, self._size) - sequence.private
        if not self.pool.allocate(blocks):
            return False
        sequence.private += blocks
        return True

    def admit(self, sequence: Sequence) -> bool:
        """Room for all known tokens, less those found in the prefix cache."""
        # One token at least is computed, or there would be nothing to sample the next one from.
        hits = self.pool.match(sequence.hashes, (sequence.known - 1) // self._size) if sequence.hashes else 0
        cached = sequence.hashes[:hits]
        blocks = blocks_for(sequence.known, self._size) - hits
        if hits:
            if blocks + self.pool.idle_among(cached) > self.pool.available:
                return False
            self.pool.acquire(cached)
        if not self.pool.allocate(blocks):
            return False
        sequence.shared, sequence.private, sequence.published = list(cached), blocks, hits
        sequence.computed = hits * self._size
        if not sequence.was_preempted:
            sequence.cached_tokens = sequence.computed
        return True

    def publish(self, sequence: Sequence) -> None:
        """Full blocks of the prompt become part of the prefix cache."""
        full = min(len(sequence.hashes), sequence.computed // self._size)
        for one in sequence.hashes[sequence.published : full]:
            if self.pool.publish(one):
                sequence.private -= 1
                sequence.shared.append(one)
        sequence.published = max(sequence.published, full)

    def free(self, sequence: Sequence) -> None:
        """Give everything back; cached blocks stay until room is needed."""
        self.pool.free(sequence.private)
        if sequence.shared:
            self.pool.release(sequence.shared)
            sequence.shared = []
        sequence.private = sequence.published = 0
