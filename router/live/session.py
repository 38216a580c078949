"""One Session: many requests on one stream, and their tokens in shared messages.

A price per message dominates what gRPC costs here; a session divides it by the number of requests that have
tokens. Each request has a stream, ends once, and fails alone; only an unreadable message ends the session.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from polyphase.v1 import inference_pb2

from router.core.messages import FailRequest
from router.errors import CallerError, CapacityError, PolyphaseError, Reason
from router.live.flow import Flow, Sink
from router.live.outlet import Bell, ClientGoneError, Writer
from router.live.parse import session_request, two_prompts
from router.live.runs import Run
from router.live.status import RequestFailedError, failure_to_proto
from router.live.wire import finished_to_proto
from router.model import Report, Seconds

Outcome = Report | PolyphaseError

_ENDS_PER_MESSAGE: Final = 256
"""An end with a full decision has a few KiB, and clients accept messages of 4 MiB."""
_STARTS_PER_TURN: Final = 16
"""Starts handled before other calls have their turn: each takes tens of microseconds."""
_COPIED_ABOVE_BYTES: Final = 65_536
"""A request keeps the whole message alive that brought it; out of a larger message it is copied."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds of one session."""

    streams: int = 1024
    """Live requests; what comes beyond ends with QUEUE_FULL."""
    entries_per_message: int = 4096
    """Starts, and cancels, in one message; more end the session, as they would block other calls."""
    unsent_ends: int = 1024
    """Ends that wait for a message. At this number nothing more is read: a client that sends bad requests and
    does not read their failures would fill the memory."""
    unsent_tokens: int = 262_144
    """Tokens that wait for a message, about 1.3 MB on the wire. Beyond it the session ends with SLOW_READER:
    they keep coming while a write waits."""
    retry_s: Seconds = 1.0
    """What a client is told to wait when the session is full or the router drains."""


class Host(Protocol):
    """What a session needs of the service."""

    def admit(self, payload: inference_pb2.GenerateRequest, sink: Sink, left_s: Seconds | None) -> Flow:
        """Validate and open a request. Raises PolyphaseError; afterwards the sink hears of its end."""
        ...

    def cancel(self, request_id: str, reason: Reason) -> None:
        """Nobody waits for a request any more."""
        ...

    def refused(self, error: PolyphaseError) -> None:
        """A request ended before the core saw it."""
        ...


class SessionStream:
    """The sink of one request of a session."""

    __slots__ = (
        "_next_index",
        "_run",
        "_session",
        "_turn",
        "ended",
        "explain",
        "number",
        "request_id",
    )

    def __init__(self, session: Session, number: int, explain: bool) -> None:
        self._session = session
        self._run = Run(0, 0, [])
        self._next_index = 0
        self._turn = -1
        self.number = number
        self.explain = explain
        self.request_id = ""
        self.ended = False

    def tokens(self, epoch: int, first_index: int, ids: Sequence[int]) -> None:
        """Keep tokens for the next message: in the run they continue, or in a new one."""
        run = self._run
        if self._turn == self._session.turn and epoch == run.epoch and not run.texts:
            run.ids.extend(ids)
        else:
            self._begin_run(Run(epoch, first_index, list(ids)))
        self._count(first_index, len(ids))

    def text(self, epoch: int, first_index: int, text: str, ids: Sequence[int], count: int) -> None:
        """Keep text for the next message: in the run it continues, or in a new one."""
        if self._turn != self._session.turn or not self._run.takes(epoch, ids, count):
            self._begin_run(Run(epoch, first_index, []))
        self._run.add(text, ids, count)
        self._count(first_index, count)

    def _begin_run(self, run: Run) -> None:
        self._turn = self._session.turn
        self._run = run
        self._session.begin_run(self.number, run)

    def _count(self, first_index: int, count: int) -> None:
        session = self._session
        self._next_index = first_index + count
        session.unsent_tokens += count
        if session.unsent_tokens > session.limits.unsent_tokens:
            session.overflow()

    def finish(self, report: Report) -> None:
        """The account follows the tokens."""
        self._session.end(self, report)

    def fail(self, action: FailRequest) -> None:
        """The failure follows the tokens that came before it."""
        self._session.end(self, RequestFailedError(action, self._next_index))


class Session:
    """One call of Session: a task that reads, the call's own that writes, and the streams between them."""

    def __init__(self, host: Host, context: Any, write_limit_s: Seconds, limits: SessionLimits) -> None:
        self.limits = limits
        self.turn = 0
        """Grows with each message; a run of an earlier turn is on its way already."""
        self.unsent_tokens = 0
        self._host = host
        self._context = context
        loop = asyncio.get_running_loop()
        self._bell = Bell(loop)
        self._room = Bell(loop)
        self._writer = Writer(context, write_limit_s, loop)
        self._streams: dict[int, SessionStream] = {}
        """In use: from the start until the end is in a message, so that a client can tell old from new."""
        self._runs: list[tuple[int, Run]] = []
        self._ends: deque[tuple[int, SessionStream | None, Outcome]] = deque()
        self._input_over = False
        self._draining = False
        self._error: PolyphaseError | None = None

    async def run(self) -> None:
        """Serve until the client has closed its side and every request has ended.

        Raises PolyphaseError when the session has to end before, ClientGoneError when nobody is there.
        """
        outcome: Exception | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read())
                outcome = await self._write()
                reading.cancel()
        finally:
            self._close(outcome)
        if outcome is not None:
            raise outcome

    def drain(self) -> None:
        """End the session as soon as no request is live; new ones are refused by the core."""
        self._draining = True
        self._bell.ring()

    def _close(self, outcome: Exception | None) -> None:
        self._writer.close()
        reason = outcome.reason if isinstance(outcome, PolyphaseError) else Reason.CANCELLED
        for stream in tuple(self._streams.values()):
            if not stream.ended:
                self._host.cancel(stream.request_id, reason)

    # --- for streams ---

    def begin_run(self, number: int, run: Run) -> None:
        """Put a run into the next message; it may grow until then."""
        if not self._runs:
            self._bell.ring()
        self._runs.append((number, run))

    def end(self, stream: SessionStream, outcome: Outcome) -> None:
        """Put an end into the next message."""
        stream.ended = True
        self._add_end(stream.number, stream, outcome)

    def overflow(self) -> None:
        """Tokens pile up behind a write that waits: the client does not read."""
        self._writer.give_up()

    def _add_end(self, number: int, stream: SessionStream | None, outcome: Outcome) -> None:
        self._ends.append((number, stream, outcome))
        self._bell.ring()

    # --- reading ---

    async def _read(self) -> None:
        try:
            while isinstance(raw := await self._context.read(), bytes):
                await self._take_in(raw)
        except PolyphaseError as error:
            self._error = error
        self._input_over = True
        self._bell.ring()

    async def _take_in(self, raw: bytes) -> None:
        message, conflicts = session_request(raw)
        if max(len(message.starts), len(message.cancels)) > self.limits.entries_per_message:
            raise CallerError(
                Reason.INVALID_REQUEST,
                f"a message has more than {self.limits.entries_per_message} starts or cancels; the session "
                "and its requests were ended; send them in several messages",
            )
        is_large = len(raw) > _COPIED_ABOVE_BYTES and len(message.starts) > 1
        for index, start in enumerate(message.starts):
            if index % _STARTS_PER_TURN == _STARTS_PER_TURN - 1:
                await asyncio.sleep(0)
            while len(self._ends) >= self.limits.unsent_ends:
                await self._room.wait()
            self._start(start.stream, _copy(start.request) if is_large else start.request, index in conflicts)
        for number in message.cancels:
            self._cancel(number)

    def _start(self, number: int, payload: inference_pb2.GenerateRequest, has_two_prompts: bool) -> None:
        try:
            self._check_start(number)
            if has_two_prompts:
                raise two_prompts()
            self._open(SessionStream(self, number, payload.explain), payload)
        except PolyphaseError as error:
            self._host.refused(error)
            self._add_end(number, None, error)

    def _check_start(self, number: int) -> None:
        if number in self._streams:
            raise CallerError(
                Reason.DUPLICATE_REQUEST,
                f"stream {number} is in use; the request was not accepted and the one on the stream goes on; "
                "use another number",
            )
        if len(self._streams) >= self.limits.streams:
            raise CapacityError(
                Reason.QUEUE_FULL,
                f"the session has {self.limits.streams} live requests, the most allowed; this one was not "
                "accepted; wait for an end, or open another session",
                retry_after_s=self.limits.retry_s,
            )

    def _open(self, stream: SessionStream, payload: inference_pb2.GenerateRequest) -> None:
        # The core may end the request before it returns: the stream has to be known by then.
        self._streams[stream.number] = stream
        try:
            stream.request_id = self._host.admit(payload, stream, self._context.time_remaining()).id
        except PolyphaseError:
            del self._streams[stream.number]
            raise

    def _cancel(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is not None and not stream.ended:
            self._host.cancel(stream.request_id, Reason.CANCELLED)

    # --- writing ---

    async def _write(self) -> Exception | None:
        try:
            while True:
                await self._bell.wait()
                while self._runs or self._ends:
                    await self._writer.write(self._take_out())
                if self._error is not None:
                    return self._error
                if not self._streams and self._input_over:
                    return None
                if not self._streams and self._draining:
                    return self._drained()
        except (PolyphaseError, ClientGoneError) as error:
            return error

    def _take_out(self) -> bytes:
        """The next message: every token there is, then ends; an end never overtakes its tokens."""
        runs, self._runs = self._runs, []
        self.turn += 1
        self.unsent_tokens = 0
        ids: list[int] = []
        for _, run in runs:
            ids += run.ids
        message = inference_pb2.SessionResponse(
            streams=[number for number, _ in runs],
            epochs=[run.epoch for _, run in runs],
            first_indices=[run.first_index for _, run in runs],
            counts=[len(run.ids) for _, run in runs],
            ids=ids,
        )
        if any(run.texts for _, run in runs):
            message.texts[:] = [run.text for _, run in runs]
            message.pieces[:] = [run.pieces for _, run in runs]
        if self._ends:
            self._take_ends(message)
        return message.SerializeToString()

    def _take_ends(self, message: inference_pb2.SessionResponse) -> None:
        for _ in range(min(len(self._ends), _ENDS_PER_MESSAGE)):
            number, stream, outcome = self._ends.popleft()
            end = message.ends.add(stream=number)
            if isinstance(outcome, PolyphaseError):
                end.failure.CopyFrom(failure_to_proto(outcome))
            else:
                explain = stream is not None and stream.explain
                end.finished.CopyFrom(finished_to_proto(outcome, explain))
            if stream is not None:
                self._streams.pop(number, None)
        self._room.ring()

    def _drained(self) -> CapacityError:
        return CapacityError(
            Reason.DRAINING,
            "the router shuts down and the session has no live request; it was ended; open one elsewhere",
            retry_after_s=self.limits.retry_s,
        )


def _copy(request: inference_pb2.GenerateRequest) -> inference_pb2.GenerateRequest:
    copy = inference_pb2.GenerateRequest()
    copy.CopyFrom(request)
    return copy
