"""Carries requests to InferenceService: over a few long sessions, or with one call per request.

A transport owns its calls. `run` lives as long as the transport is used; `submit` never waits, because an
open loop must not be slowed by the service it measures. How many requests are under way is bounded by the
open loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from polyphase.v1 import inference_pb2, inference_pb2_grpc

from router.errors import Code
from router.grpc_options import channel_options
from router.load.flight import CLIENT_TIMEOUT, CONNECTION_LOST, STOPPED, Failed, Flight
from router.model import Seconds

Clock = Callable[[], Seconds]

WRITE_TIMEOUT_S: Final = 30.0
REOPEN_AFTER_S: Final = 0.25
"""Pause before a broken session is opened again."""
MAX_STARTS_PER_MESSAGE: Final = 32
MAX_BYTES_PER_MESSAGE: Final = 1 << 20
"""Starts that are due together share a message up to this size; the router takes 4 MiB."""
_DETAILS: Final = "grpc-status-details-bin"


class Transport(Protocol):
    """A way to send requests."""

    async def run(self) -> None:
        """Serve submitted requests until cancelled."""
        ...

    def submit(self, request: inference_pb2.GenerateRequest, flight: Flight) -> None:
        """Send a request as soon as possible."""
        ...

    def abandon(self, flight: Flight, failed: Failed) -> None:
        """Cancel a request at the router and end its flight."""
        ...


def open_channel(target: str) -> grpc.aio.Channel:
    """A connection of its own to the router."""
    return grpc.aio.insecure_channel(target, options=list(channel_options()))


class SessionTransport:
    """A bidirectional stream shared by many requests."""

    def __init__(self, channel: grpc.aio.Channel, clock: Clock) -> None:
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        self._clock = clock
        self._flights: dict[int, Flight] = {}
        self._streams: dict[Flight, int] = {}
        self._next_stream = 1
        self._starts: deque[inference_pb2.SessionRequest.Start] = deque()
        self._cancels: list[int] = []
        self._wake = asyncio.Event()

    def submit(self, request: inference_pb2.GenerateRequest, flight: Flight) -> None:
        """Queue a start for the writer."""
        stream = self._next_stream
        self._next_stream = stream + 1
        self._flights[stream] = flight
        self._streams[flight] = stream
        self._starts.append(inference_pb2.SessionRequest.Start(stream=stream, request=request))
        self._wake.set()

    def abandon(self, flight: Flight, failed: Failed) -> None:
        """Queue a cancel, end the flight."""
        stream = self._streams.get(flight)
        if stream is not None:
            self._cancels.append(stream)
            self._wake.set()
            self._end(stream, failed)

    async def run(self) -> None:
        """Keep one session open; requests on a session that breaks fail."""
        while True:
            failed = await self._one_session()
            for stream in list(self._flights):
                self._end(stream, failed)
            self._starts.clear()
            self._cancels.clear()
            await asyncio.sleep(REOPEN_AFTER_S)

    async def _one_session(self) -> Failed:
        call = self._stub.Session()
        failed = Failed(CONNECTION_LOST, Code.UNAVAILABLE, "The router ended the session.")
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write(call))
                await self._read(call)
                writer.cancel()
        except* (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as errors:
            failed = _broken(errors)
        finally:
            call.cancel()
        return failed

    async def _write(self, call: Any) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._starts or self._cancels:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await call.write(self._next_message())

    def _next_message(self) -> inference_pb2.SessionRequest:
        message = inference_pb2.SessionRequest(cancels=self._cancels)
        self._cancels = []
        size = 0
        while self._starts and len(message.starts) < MAX_STARTS_PER_MESSAGE and size < MAX_BYTES_PER_MESSAGE:
            start = self._starts.popleft()
            # A varint of a token id takes at most 3 bytes below 2 million.
            size += 3 * len(start.request.tokens.ids)
            message.starts.append(start)
        return message

    async def _read(self, call: Any) -> None:
        try:
            while (response := await call.read()) is not grpc.aio.EOF:  # pyright: ignore[reportAttributeAccessIssue]
                self._take(response, self._clock())
        except asyncio.CancelledError:
            # grpc.aio raises it for a stream that the router ended with CANCELLED, too: that is no
            # cancellation of ours, and taking it for one would end this transport without a word.
            if _is_cancelled():
                raise

    def _take(self, response: inference_pb2.SessionResponse, now: Seconds) -> None:
        """Hand out a message: its runs of tokens, then the requests that ended with it."""
        ids = response.ids[:]
        at = 0
        flights = self._flights
        for stream, first, count in zip(
            response.streams, response.first_indices, response.counts, strict=False
        ):
            flight = flights.get(stream)
            if flight is not None:
                flight.tokens(first, ids[at : at + count], now)
            at += count
        for end in response.ends:
            finished = end.WhichOneof("outcome") == "finished"
            self._end(end.stream, end.finished if finished else _of_failure(end.failure))

    def _end(self, stream: int, outcome: inference_pb2.Finished | Failed) -> None:
        flight = self._flights.pop(stream, None)
        if flight is not None:
            del self._streams[flight]
            flight.end(outcome, self._clock())


class GenerateTransport:
    """One server-streaming call for each request."""

    def __init__(self, channel: grpc.aio.Channel, clock: Clock) -> None:
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        self._clock = clock
        self._group: asyncio.TaskGroup | None = None
        self._waiting: list[tuple[inference_pb2.GenerateRequest, Flight]] = []
        self._tasks: dict[Flight, asyncio.Task[None]] = {}

    def submit(self, request: inference_pb2.GenerateRequest, flight: Flight) -> None:
        """Start a call; before `run` has begun, keep it for then."""
        if self._group is None:
            self._waiting.append((request, flight))
            return
        task = self._group.create_task(self._call(request, flight))
        self._tasks[flight] = task
        task.add_done_callback(lambda _: self._tasks.pop(flight, None))

    def abandon(self, flight: Flight, failed: Failed) -> None:
        """Cancel the call, end the flight."""
        task = self._tasks.get(flight)
        if task is not None:
            flight.end(failed, self._clock())
            task.cancel()

    async def run(self) -> None:
        """Own the calls until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._group:
                for request, flight in self._waiting:
                    self.submit(request, flight)
                self._waiting.clear()
                await asyncio.get_running_loop().create_future()
        finally:
            self._group = None

    async def _call(self, request: inference_pb2.GenerateRequest, flight: Flight) -> None:
        call: Any = self._stub.Generate(request)
        try:
            finished = await self._read(call, flight)
        except grpc.aio.AioRpcError as error:
            flight.end(failed_of(error), self._clock())
        except asyncio.CancelledError:
            # Also what grpc.aio raises when the router answers CANCELLED.
            flight.end(Failed("CANCELLED", Code.CANCELLED), self._clock())
            raise
        else:
            lost = Failed(CONNECTION_LOST, Code.UNAVAILABLE, "The stream ended without `finished`.")
            flight.end(finished or lost, self._clock())
        finally:
            call.cancel()

    async def _read(self, call: Any, flight: Flight) -> inference_pb2.Finished | None:
        finished: inference_pb2.Finished | None = None
        while (response := await call.read()) is not grpc.aio.EOF:  # pyright: ignore[reportAttributeAccessIssue]
            if ids := response.tokens.ids:
                flight.tokens(response.tokens.first_index, ids[:], self._clock())
            if response.HasField("finished"):
                finished = response.finished
        return finished


class Spread:
    """Several transports in turn."""

    def __init__(self, transports: list[SessionTransport] | list[GenerateTransport]) -> None:
        self._transports: tuple[Transport, ...] = tuple(transports)
        self._turn = 0

    async def run(self) -> None:
        """Run all of them until cancelled."""
        async with asyncio.TaskGroup() as group:
            for transport in self._transports:
                group.create_task(transport.run())

    def submit(self, request: inference_pb2.GenerateRequest, flight: Flight) -> None:
        """Use the next one."""
        self._turn = (self._turn + 1) % len(self._transports)
        self._transports[self._turn].submit(request, flight)

    def abandon(self, flight: Flight, failed: Failed) -> None:
        """Tell all: those that do not know the flight ignore it."""
        for transport in self._transports:
            transport.abandon(flight, failed)


def failed_of(error: grpc.aio.AioRpcError) -> Failed:
    """A gRPC error as a failure: its ErrorInfo reason when it has one, else the name of the code."""
    code = error.code()
    reason = code.name
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS:
            reason = _reason_in(value) or reason
    return Failed(reason, code.value[0], error.details() or "")


def _reason_in(details: str | bytes) -> str:
    info = error_details_pb2.ErrorInfo()
    with contextlib.suppress(DecodeError):
        status = status_pb2.Status.FromString(details if isinstance(details, bytes) else details.encode())
        for detail in status.details:
            if detail.TypeName() == info.DESCRIPTOR.full_name and detail.Unpack(info):
                return str(info.reason)
    return ""


def _of_failure(failure: inference_pb2.Failure) -> Failed:
    return Failed(failure.reason or str(failure.code), failure.code, failure.message, failure.next_index)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _broken(errors: BaseExceptionGroup[BaseException]) -> Failed:
    for error in errors.exceptions:
        if isinstance(error, grpc.aio.AioRpcError):
            return failed_of(error)
        if isinstance(error, BaseExceptionGroup):
            return _broken(error)
    return Failed(CONNECTION_LOST, Code.UNAVAILABLE, "The session to the router broke.")


def timed_out(after_s: Seconds) -> Failed:
    """The client gave up."""
    return Failed(CLIENT_TIMEOUT, Code.DEADLINE_EXCEEDED, f"No end of the answer within {after_s:g} s.")


def stopped() -> Failed:
    """The run was interrupted."""
    return Failed(STOPPED, Code.CANCELLED, "The run was stopped before the answer was complete.")
