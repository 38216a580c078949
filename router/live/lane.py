"""One lane: the life of the stream to one worker, over any number of connections.

Connect, greet, serve, notice the end, wait, connect again. A lane is a supervision point: whatever a worker
does ends at most this connection. The core learns of a connection with BackendJoined and of its end with
BackendLost, each once; the worker frees the work of a broken lane by itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from polyphase.v1 import worker_pb2

from router import wire
from router.core.messages import BackendJoined, BackendLost, Fact
from router.errors import PolyphaseError
from router.grpc_options import channel_options
from router.live.flow import TokenCounts
from router.live.lane_work import BrokenFrameError, LaneHooks, LaneWork, NoHooks, Peer
from router.model import BackendSpec, Seconds

log = logging.getLogger(__name__)

METHOD: Final = "/polyphase.v1.WorkerService/Lane"
_MAX_WRITE_BYTES: Final = 1 << 20
"""Commands are joined up to here; one command may be larger."""
_MAX_INCARNATION: Final = 128
_UNFORESEEN: Final = "unforeseen"
_JITTER: Final = 0.2
"""gRFC A6: routers that lost a worker together must not come back together."""


class Call(Protocol):
    """A stream of raw messages, as grpc.aio has it."""

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF."""
        ...

    async def write(self, request: bytes) -> None:
        """Send one message; returns when the transport has taken it."""
        ...

    def cancel(self) -> bool:
        """End the call at both sides."""
        ...


@dataclass(frozen=True, slots=True)
class LaneTimes:
    """Durations of a lane, in seconds, and the bounds of what it queues."""

    connect_s: Seconds = 5.0
    backoff_min_s: Seconds = 0.05
    backoff_max_s: Seconds = 5.0
    silence_s: Seconds = 3.0
    write_s: Seconds = 10.0
    """A worker that takes no command for so long has stopped reading."""
    decode_stall_s: Seconds = 10.0
    """A decode without a token for so long has stalled, unless it waits at a worker that is busy."""
    max_queued_commands: int = 8192
    max_queued_bytes: int = 64 << 20

    def backoff_s(self, failures: int, rng: random.Random) -> Seconds:
        """The wait before the next attempt to connect: doubles with each failure in a row, with jitter."""
        base = self.backoff_min_s * 2.0 ** min(max(failures - 1, 0), 32)
        return min(base, self.backoff_max_s) * rng.uniform(1.0 - _JITTER, 1.0 + _JITTER)


def _anything(spec: BackendSpec) -> object:
    return spec


@dataclass(frozen=True, slots=True)
class LaneContext:
    """What all lanes of a router share."""

    tell: Callable[[Fact], None]
    rng: random.Random
    """Jitters reconnects."""
    times: LaneTimes = field(default_factory=LaneTimes)
    router: str = "router"
    """The name by which workers know us."""
    hooks: LaneHooks = field(default_factory=NoHooks)
    counts: TokenCounts = field(default_factory=TokenCounts)
    """Those of the flows."""
    vet: Callable[[BackendSpec], object] = _anything
    """Raises PolyphaseError for a spec that nothing can be predicted from: in the core it would fail every
    request of its models."""


class LaneBrokenError(Exception):
    """The connection cannot be used any more; the message says why."""


class Outbox:
    """Commands on their way to the worker, bounded in number and bytes. While one write is under way the next
    ones gather and go out together."""

    def __init__(self, max_commands: int, max_bytes: int) -> None:
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._max_commands = max_commands
        self._max_bytes = max_bytes
        self._wake = asyncio.Event()
        self._overflowed = asyncio.Event()

    def put(self, command: bytes) -> None:
        """Queue a command; never waits. One that does not fit is dropped, and with it the lane."""
        if len(self._waiting) >= self._max_commands or self._bytes + len(command) > self._max_bytes:
            self._overflowed.set()
            return
        self._waiting.append(command)
        self._bytes += len(command)
        self._wake.set()

    async def take(self) -> bytes:
        """Wait for commands and join them into one message."""
        await self._wake.wait()
        batch = [self._waiting.popleft()]
        size = len(batch[0])
        while self._waiting and size + len(self._waiting[0]) <= _MAX_WRITE_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1])
        self._bytes -= size
        if not self._waiting:
            self._wake.clear()
        return b"".join(batch)

    async def overflow(self) -> None:
        """Wait until a command did not fit, then raise LaneBrokenError. The write that does not end must not
        delay it."""
        await self._overflowed.wait()
        raise LaneBrokenError(f"the worker does not take its commands: {len(self._waiting)} wait")


class Lane:
    """The stream to one backend. `work` is None while it is down."""

    def __init__(self, backend: str, address: str, context: LaneContext) -> None:
        self.backend = backend
        self.address = address
        self.work: LaneWork | None = None
        self.down_since: Seconds | None = asyncio.get_running_loop().time()
        """Loop time since when there has been no connection; None while there is one."""
        self.trouble = ""
        """Why the last attempt to connect, or connection, ended."""
        self.closing = False
        """Set before the task of `run` is cancelled."""
        self._context = context
        self._times = context.times
        self._tell = context.tell
        self._now = asyncio.get_running_loop().time
        self._heard: Seconds = 0.0

    @property
    def connected(self) -> bool:
        """Whether the worker has greeted and the stream is up."""
        return self.work is not None

    async def run(self) -> None:
        """Serve until cancelled. Ends in no other way."""
        failures = 0
        while True:
            began = self._now()
            why = await self._serve_once()
            if self.closing:
                # A TaskGroup whose task fails in the moment of a cancellation raises that failure only (in
                # CPython before 3.13): the lane would come back to life with nobody left to end it.
                raise asyncio.CancelledError
            # A worker that greets and breaks at once must not be called every few milliseconds.
            failures = 0 if self._now() - began > self._times.backoff_max_s else failures + 1
            self._note(why)
            await asyncio.sleep(self._times.backoff_s(failures, self._context.rng))

    def _note(self, why: str) -> None:
        """Log a trouble when it is new: a worker that is away for an hour is one line, not thousands."""
        level = logging.DEBUG if why == self.trouble else logging.WARNING
        log.log(level, "lane to %s at %s is down: %s; trying again", self.backend, self.address, why)
        self.trouble = why

    async def _serve_once(self) -> str:
        """One connection from first to last. Returns why it ended."""
        try:
            async with grpc.aio.insecure_channel(self.address, channel_options()) as channel:
                await self._serve(channel)
        except Exception as error:  # supervision point: a worker ends at most its connection
            why = _why(error)
            if why.startswith(_UNFORESEEN):
                log.exception("lane to %s failed in an unforeseen way", self.backend)
            return why
        return "the worker ended the stream"

    async def _serve(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream(METHOD)()
        outbox = Outbox(self._times.max_queued_commands, self._times.max_queued_bytes)
        try:
            first = await self._greet(call)
            self._join(first, outbox)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(call, outbox), name=f"lane-write-{self.backend}")
                tasks.create_task(outbox.overflow(), name=f"lane-outbox-{self.backend}")
                tasks.create_task(self._watch(), name=f"lane-watch-{self.backend}")
                await self._read(call, first)
        except BaseException as error:
            self._lose(_why(error))
            raise
        finally:
            # A call that is dropped without cancel() is never cancelled: the worker would go on for ever.
            call.cancel()

    # --- greeting ---

    async def _greet(self, call: Call) -> worker_pb2.LaneResponse:
        hello = worker_pb2.Hello(backend=self.backend, router=self._context.router)
        async with asyncio.timeout(self._times.connect_s):
            await call.write(worker_pb2.LaneRequest(hello=hello).SerializeToString())
            frame = _parse(await call.read())
        if not frame.HasField("welcome"):
            raise LaneBrokenError("the worker's first message is no welcome")
        met = frame.welcome.spec.id
        if met != self.backend:
            raise LaneBrokenError(
                f"worker {met[:64]!r} answers where {self.backend!r} was expected; "
                "correct the address, or the worker's id"
            )
        return frame

    def _join(self, frame: worker_pb2.LaneResponse, outbox: Outbox) -> None:
        incarnation = frame.welcome.incarnation
        if not incarnation or len(incarnation) > _MAX_INCARNATION:
            raise LaneBrokenError("the worker's welcome names no incarnation, or an endless one")
        spec = wire.spec_from_proto(frame.welcome.spec)
        self._context.vet(spec)
        peer, context = Peer(self.backend, incarnation, self.address), self._context
        self.work = LaneWork(
            peer, self._tell, outbox.put, self._times.decode_stall_s, context.hooks, context.counts
        )
        self.down_since, self.trouble = None, ""
        log.info("lane to %s at %s is up", self.backend, self.address)
        self._tell(BackendJoined(spec, incarnation, self.address))

    def _lose(self, why: str) -> None:
        """The connection is over. The core hears of it once, when the table can no longer be asked."""
        if self.work is not None:
            self.work = None
            self.down_since = self._now()
            self._tell(BackendLost(self.backend, why))

    # --- serving ---

    async def _read(self, call: Call, first: worker_pb2.LaneResponse) -> None:
        frame = first
        work = self.work
        assert work is not None
        while True:
            self._heard = now = self._now()
            work.take(frame, now)
            frame = _parse(await call.read())

    async def _write(self, call: Call, outbox: Outbox) -> None:
        while True:
            commands = await outbox.take()
            async with asyncio.timeout(self._times.write_s):
                await call.write(commands)

    async def _watch(self) -> None:
        """Notice silence, and decodes that stall. gRPC's keepalive alone would take longer."""
        tick_s = min(1.0, self._times.silence_s / 4)
        while True:
            due = self._now() + tick_s
            await asyncio.sleep(tick_s)
            now = self._now()
            if now - due > tick_s:
                continue  # we were late ourselves: what the worker sent meanwhile has not been read yet
            if now - self._heard > self._times.silence_s:
                raise LaneBrokenError(f"the worker was silent for {now - self._heard:.1f} s")
            if self.work is not None:
                self.work.sweep(now)


def _parse(raw: Any) -> worker_pb2.LaneResponse:
    if raw is grpc.aio.EOF:  # pyright: ignore[reportAttributeAccessIssue]
        raise LaneBrokenError("the worker ended the stream")
    try:
        return worker_pb2.LaneResponse.FromString(raw)
    except DecodeError as error:
        raise LaneBrokenError("the worker sent a frame that cannot be parsed") from error


def _why(error: BaseException) -> str:
    """The end of a connection in words."""
    match error:
        case BaseExceptionGroup():
            return _why(error.exceptions[0])
        case LaneBrokenError() | BrokenFrameError() | PolyphaseError():
            return str(error)
        case TimeoutError():
            return "the worker did not answer in time"
        case grpc.aio.AioRpcError():
            return f"{error.code().name}: {error.details() or ''}"[:300]
        case asyncio.CancelledError():
            return "the router let go of the worker"
        case _:
            return f"{_UNFORESEEN} {type(error).__name__}"
