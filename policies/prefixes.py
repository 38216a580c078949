"""What each backend is believed to hold of prompts seen before: block hashes, least recently used first out.

For rules that ask one backend after the other (baselines); affinity.py finds the holders among all. Fed by
the router's own decisions: nothing here listens to an engine's KV events. A backend's share is bounded by its
KV capacity, which evicts in the order in which an engine does. What running sequences take from that
capacity, and blocks that are not computed yet, are not known, so that hits are overestimated while a backend
is full or a burst of equal prompts comes (approximation).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from policies.standing import Standing
from router.model import Request, Seconds

MAX_BLOCKS: Final = 1 << 20
"""Blocks per backend at most, whatever capacity it claims: memory is bounded."""


class PrefixIndex:
    """Block hashes by backend, with a capacity and, where the original has one, a time to live."""

    def __init__(self, ttl_s: Seconds = 0.0, capacity_blocks: int = MAX_BLOCKS) -> None:
        """`ttl_s` 0 keeps blocks until they are evicted; `capacity_blocks` is per backend."""
        self._ttl_s = ttl_s
        self._capacity = min(capacity_blocks, MAX_BLOCKS)
        self._held: dict[str, OrderedDict[int, Seconds]] = {}
        self._learns = True

    def __deepcopy__(self, memo: dict[int, object]) -> PrefixIndex:
        """For a dry run: sees the same blocks, and learns nothing. To copy them all would cost more than the
        decision."""
        other = PrefixIndex(self._ttl_s, self._capacity)
        other._held, other._learns = self._held, False
        return other

    def blocks(self, s: Standing, request: Request, now: Seconds) -> int:
        """Leading blocks of the prompt that a backend is believed to hold.

        Of a prompt the last block goes first, so that what is held is a beginning, and its end can be found
        by bisection.
        """
        held, hashes = self._held.get(s.id), request.prefix_hashes
        if not held or not hashes or not self._fresh(held.get(hashes[0]), now):
            return 0
        known, unknown = 1, len(hashes) + 1
        while unknown - known > 1:
            middle = (known + unknown) // 2
            if self._fresh(held.get(hashes[middle - 1]), now):
                known = middle
            else:
                unknown = middle
        return known

    def tokens(self, s: Standing, request: Request, now: Seconds) -> int:
        """The same in tokens, at most the prompt."""
        return min(request.prompt_tokens, self.blocks(s, request, now) * s.spec.block_tokens)

    def size(self, s: Standing) -> int:
        """Blocks believed to be held."""
        return len(self._held.get(s.id, ()))

    def store(self, s: Standing, hashes: Sequence[int], now: Seconds) -> None:
        """A backend gets these blocks, the last the first to go."""
        if not self._learns or not hashes:
            return
        held = self._held.setdefault(s.id, OrderedDict())
        for one in reversed(hashes):
            held[one] = now
            held.move_to_end(one)
        room = min(self._capacity, max(1, s.spec.kv_capacity_tokens // s.spec.block_tokens))
        while len(held) > room:
            held.popitem(last=False)

    def oldest(self, s: Standing, blocks: int) -> list[int]:
        """The blocks that would go first to make room for as many new ones."""
        held = self._held.get(s.id, OrderedDict[int, Seconds]())
        room = min(self._capacity, max(1, s.spec.kv_capacity_tokens // s.spec.block_tokens))
        excess = len(held) + blocks - room
        return [one for one, _ in zip(held, range(max(0, excess)), strict=False)]

    def forget(self, backend: str) -> None:
        """A backend left, or restarted empty."""
        if self._learns:
            self._held.pop(backend, None)

    def _fresh(self, stored: Seconds | None, now: Seconds) -> bool:
        return stored is not None and not (self._ttl_s and now - stored > self._ttl_s)
