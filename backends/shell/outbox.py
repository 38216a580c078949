"""What waits to go up a lane: frames under construction, filled while a write is in flight.

Within a frame, KVMoved and PrefillDone without a handle come before the tokens, all other events after
them; routers read it so. Bounded: a router that does not read makes the outbox full, and its lane ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from polyphase.v1 import common_pb2, worker_pb2

from router.model import Seconds

MAX_FRAME_TOKENS: Final = 32_768
"""At most 15 bytes a token (three varints of 32 bits): half a mebibyte, well under the message limit."""

MAX_FRAME_EVENTS: Final = 256
"""An event holds at most one handle or one message of a few hundred bytes."""

MAX_PENDING_TOKENS: Final = 1_000_000
"""Tokens and events that may wait. At 10,000 tokens a second a stalled router is cut off by the write
time-out first; this bounds memory when a fleet is much faster than that."""

LOAD_UNDER_WORK_S: Final[Seconds] = 0.05
"""Frames carry a load report at most this often."""

LOAD_HEARTBEAT_S: Final[Seconds] = 0.2
"""An idle lane sends its load after this long, when the fleet's next beat comes; routers take a lane that is
silent for seconds for lost."""


class Frame:
    """One LaneResponse under construction."""

    __slots__ = ("events", "indices", "seqs", "tokens")

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.tokens: list[int] = []
        self.indices: list[int] = []
        self.events: list[worker_pb2.PhaseEvent] = []

    @property
    def empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self.seqs and not self.events


class Outbox:
    """Frames of one lane, oldest first. `load` gives the worker's load when a frame is built."""

    def __init__(self, load: Callable[[Seconds], common_pb2.LoadReport]) -> None:
        self._load = load
        self._load_sent_at = float("-inf")
        self._frames: deque[Frame] = deque()
        self._last = Frame()
        self._pending = 0

    def token(self, seq: int, token: int, index: int) -> None:
        """Add one token."""
        frame = self._last
        if len(frame.seqs) >= MAX_FRAME_TOKENS:
            frame = self._next()
        frame.seqs.append(seq)
        frame.tokens.append(token)
        frame.indices.append(index)
        self._pending += 1

    def event(self, event: worker_pb2.PhaseEvent) -> None:
        """Add one event; no frame before those of the tokens added so far carries it."""
        if len(self._last.events) >= MAX_FRAME_EVENTS:
            self._next()
        self._last.events.append(event)
        self._pending += 1

    @property
    def pending(self) -> bool:
        """Whether a frame waits."""
        return self._pending > 0

    @property
    def full(self) -> bool:
        """Whether the router has fallen too far behind."""
        return self._pending > MAX_PENDING_TOKENS

    def take(self, now: Seconds) -> bytes | None:
        """The next frame, encoded; None when there is nothing to say and the load is not due either."""
        frame = self._frames.popleft() if self._frames else self._last
        if frame.empty and now - self._load_sent_at < LOAD_HEARTBEAT_S:
            return None
        if frame is self._last:
            self._last = Frame()
        self._pending -= len(frame.seqs) + len(frame.events)
        return self._encode(frame, now)

    def load_due(self, now: Seconds) -> bool:
        """Whether the lane has been without a load report for as long as it may be."""
        return now - self._load_sent_at >= LOAD_HEARTBEAT_S

    def _next(self) -> Frame:
        self._frames.append(self._last)
        self._last = Frame()
        return self._last

    def _encode(self, frame: Frame, now: Seconds) -> bytes:
        load = None
        if now - self._load_sent_at >= LOAD_UNDER_WORK_S:
            self._load_sent_at = now
            load = self._load(now)
        message = worker_pb2.LaneResponse(
            seqs=frame.seqs, tokens=frame.tokens, indices=frame.indices, events=frame.events, load=load
        )
        return message.SerializeToString()
