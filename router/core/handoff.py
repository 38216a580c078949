"""Who owns the KV of a request between prefill and decode.

A handle is born with PrefillDone, held at its producer, and ends in one of two ways: it moves to the decode
backend, or it is released. Nothing else may happen to it, so at all times

    tokens held so far = tokens moved + tokens released + tokens held at this time.
"""

from __future__ import annotations

from router.model import KVHandle, Seconds


class KVLedger:
    """Handles that are held at their producers."""

    def __init__(self) -> None:
        self._held: dict[str, KVHandle] = {}
        self.total_tokens = 0
        """Tokens of all handles that were ever held; grows."""
        self.moved_tokens = 0
        self.released_tokens = 0

    @property
    def held_tokens(self) -> int:
        """Tokens held at this time."""
        return sum(handle.tokens for handle in self._held.values())

    @property
    def held(self) -> int:
        """Handles held at this time."""
        return len(self._held)

    def hold(self, handle: KVHandle) -> None:
        """A prefill is done."""
        assert handle.request_id not in self._held, f"two handles for request {handle.request_id}"
        self._held[handle.request_id] = handle
        self.total_tokens += handle.tokens

    def moved(self, request_id: str) -> None:
        """The decode backend has the KV; the producer has let go of it."""
        self.moved_tokens += self._held.pop(request_id).tokens

    def release(self, request_id: str) -> KVHandle:
        """Nobody will pull this KV: the caller tells the producer, unless the producer is gone."""
        handle = self._held.pop(request_id)
        self.released_tokens += handle.tokens
        return handle


def outlives(handle: KVHandle, now: Seconds, needed_s: Seconds) -> bool:
    """Whether the lease lasts for a transfer that starts now and takes `needed_s`.

    Decode is never sent out with a handle that may expire on the way: an engine that reuses expired blocks
    answers with another prompt's KV.
    """
    return handle.expires_at - now > needed_s
