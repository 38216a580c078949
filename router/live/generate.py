"""One Generate call: the tokens of one request become messages, as few as the reader's pace allows.

Tokens that come while a write is under way share the next message; nothing is ever held back to fill one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from polyphase.v1 import inference_pb2

from router.core.messages import FailRequest
from router.errors import PolyphaseError
from router.live.outlet import Bell, Writer
from router.live.status import RequestFailedError
from router.live.wire import finished_to_proto
from router.model import Report

IDS_PER_MESSAGE: Final = 65_536
"""Bound of one message: at five bytes an id well below the 4 MiB that clients accept."""


class GenerateCall:
    """The sink of one request, and the loop that empties it into its call."""

    __slots__ = (
        "_bell",
        "_earlier",
        "_epoch",
        "_error",
        "_explain",
        "_first_index",
        "_ids",
        "_next_index",
        "_report",
        "_response",
        "ended",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, explain: bool) -> None:
        """`explain` puts the decision into the last message."""
        self._bell = Bell(loop)
        self._explain = explain
        self._response = inference_pb2.GenerateResponse()
        self._epoch = 0
        self._first_index = 0
        self._next_index = 0
        self._ids: list[int] = []
        self._earlier: deque[tuple[int, int, list[int]]] = deque()
        """Runs of attempts before the current one: a chunk names one epoch."""
        self._report: Report | None = None
        self._error: PolyphaseError | None = None
        self.ended = False
        """The core has said its last word on the request."""

    # --- sink ---

    def tokens(self, epoch: int, first_index: int, ids: Sequence[int]) -> None:
        """Keep tokens for the next message."""
        if epoch != self._epoch or not self._ids:
            self._begin_run(epoch, first_index)
        self._ids.extend(ids)
        self._next_index = first_index + len(ids)
        self._bell.ring()

    def finish(self, report: Report) -> None:
        """The account goes into the message of the last tokens."""
        self.ended = True
        self._report = report
        self._bell.ring()

    def fail(self, action: FailRequest) -> None:
        """The error follows the tokens that came before it."""
        self.ended = True
        self._error = RequestFailedError(action, self._next_index)
        self._bell.ring()

    def _begin_run(self, epoch: int, first_index: int) -> None:
        if self._ids:
            self._earlier.append((self._epoch, self._first_index, self._ids))
            self._ids = []
        self._epoch = epoch
        self._first_index = first_index

    # --- call ---

    async def pump(self, writer: Writer) -> None:
        """Write until the request has ended. Raises the error it ended with, or the writer's."""
        finished = False
        while not finished:
            await self._bell.wait()
            while not finished and (self._ids or self._earlier or self._report is not None):
                message, finished = self._take()
                await writer.write(message)
            if self._error is not None:
                raise self._error

    def _take(self) -> tuple[bytes, bool]:
        """The next message, and whether it is the last one."""
        response = self._response
        if self._ids or self._earlier:
            epoch, first_index, ids = self._take_run()
            chunk = response.tokens
            chunk.epoch = epoch
            chunk.first_index = first_index
            chunk.ids[:] = ids
        else:
            response.ClearField("tokens")
        is_last = self._report is not None and not self._ids and not self._earlier
        if is_last and self._report is not None:
            response.finished.CopyFrom(finished_to_proto(self._report, self._explain))
        return response.SerializeToString(), is_last

    def _take_run(self) -> tuple[int, int, list[int]]:
        if self._earlier:
            return self._earlier.popleft()
        run = (self._epoch, self._first_index, self._ids[:IDS_PER_MESSAGE])
        del self._ids[:IDS_PER_MESSAGE]
        self._first_index += len(run[2])
        return run
