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
from router.live.runs import Run
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
        "_error",
        "_explain",
        "_next_index",
        "_report",
        "_response",
        "_run",
        "ended",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, explain: bool) -> None:
        """`explain` puts the decision into the last message."""
        self._bell = Bell(loop)
        self._explain = explain
        self._response = inference_pb2.GenerateResponse()
        self._next_index = 0
        self._run: Run | None = None
        """What the next message takes, once the earlier ones are out."""
        self._earlier: deque[Run] = deque()
        """Runs that the current one cannot go on: of attempts before it, and of another kind."""
        self._report: Report | None = None
        self._error: PolyphaseError | None = None
        self.ended = False
        """The core has said its last word on the request."""

    # --- sink ---

    def tokens(self, epoch: int, first_index: int, ids: Sequence[int]) -> None:
        """Keep tokens for the next message."""
        run = self._run
        if run is None or epoch != run.epoch or run.texts:
            self._begin_run(epoch, first_index).ids.extend(ids)
        else:
            run.ids.extend(ids)
        self._next_index = first_index + len(ids)
        self._bell.ring()

    def text(self, epoch: int, first_index: int, text: str, ids: Sequence[int], count: int) -> None:
        """Keep text for the next message."""
        run = self._run
        if run is None or not run.takes(epoch, ids, count):
            run = self._begin_run(epoch, first_index)
        run.add(text, ids, count)
        self._next_index = first_index + count
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

    def _begin_run(self, epoch: int, first_index: int) -> Run:
        if self._run is not None:
            self._earlier.append(self._run)
        self._run = Run(epoch, first_index, [])
        return self._run

    # --- call ---

    async def pump(self, writer: Writer) -> None:
        """Write until the request has ended. Raises the error it ended with, or the writer's."""
        finished = False
        while not finished:
            await self._bell.wait()
            while not finished and (self._run is not None or self._report is not None):
                message, finished = self._take()
                await writer.write(message)
            if self._error is not None:
                raise self._error

    def _take(self) -> tuple[bytes, bool]:
        """The next message, and whether it is the last one."""
        response = self._response
        if (run := self._take_run()) is not None:
            chunk = response.tokens
            chunk.epoch = run.epoch
            chunk.first_index = run.first_index
            chunk.ids[:] = run.ids
            chunk.text = run.text
            chunk.pieces = run.pieces
        else:
            response.ClearField("tokens")
        is_last = self._report is not None and self._run is None
        if is_last and self._report is not None:
            response.finished.CopyFrom(finished_to_proto(self._report, self._explain))
        return response.SerializeToString(), is_last

    def _take_run(self) -> Run | None:
        if self._earlier:
            return self._earlier.popleft()
        run, self._run = self._run, None
        if run is None or len(run.ids) <= IDS_PER_MESSAGE:
            return run
        rest = Run(run.epoch, run.first_index + IDS_PER_MESSAGE, run.ids[IDS_PER_MESSAGE:])
        del run.ids[IDS_PER_MESSAGE:]
        self._run = rest
        return run
