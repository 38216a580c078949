"""One lane: a router's stream to one worker. Commands come down, frames go up.

Two coroutines and no more: one reads commands, one writes frames. Requests have no tasks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from polyphase.v1 import common_pb2, worker_pb2

from backends.shell.outbox import Outbox
from backends.shell.status import CallFailedError
from router.errors import Code, Reason
from router.model import KVHandle, Seconds

log = logging.getLogger(__name__)

WRITE_TIMEOUT_S: Final[Seconds] = 30.0
"""A router that does not take a frame for this long is cut off: its lane would pin KV for ever."""


Custody = tuple[str, bytes, str, int]
"""What names held KV: incarnation, the worker's own mark, request id, epoch."""


def custody_of(kv: KVHandle) -> Custody:
    """The KV that a handle names."""
    return kv.incarnation, kv.connector, kv.request_id, kv.epoch


@dataclass(slots=True, eq=False)
class Sequence:
    """One phase of one request on this worker, from its command until its KV is gone."""

    key: int
    lane: Lane
    seq: int
    held: Custody | None = None
    """KV that waits for a peer."""
    held_until: Seconds = 0.0


class Commands(Protocol):
    """Takes a lane's commands."""

    def take(self, lane: Lane, commands: Any) -> None:
        """Commands of one message, in order. Raises CallFailedError when the router breaks the protocol."""
        ...


class Lane:
    """A stream of commands and frames; `serve` runs it until either side ends it."""

    def __init__(
        self,
        load: Callable[[Seconds], common_pb2.LoadReport],
        write_timeout_s: Seconds,
    ) -> None:
        self.outbox = Outbox(load)
        self.sequences: dict[int, Sequence] = {}
        """By seq; what this lane started and what has not left the worker yet."""
        self._write_timeout_s = write_timeout_s
        self._wake = asyncio.Event()
        self._failure: CallFailedError | None = None
        self._finishing = False

    def wake(self) -> None:
        """Let the writer look at the outbox."""
        self._wake.set()

    def fail(self, failure: CallFailedError) -> None:
        """End the lane with a status; what waits in the outbox is dropped."""
        self._failure = self._failure or failure
        self._wake.set()

    def finish(self) -> None:
        """End the lane with OK once the outbox is empty."""
        self._finishing = True
        self._wake.set()

    async def serve(
        self, context: grpc.aio.ServicerContext, welcome: worker_pb2.LaneResponse, commands: Commands
    ) -> None:
        """Run until the router half-closes or leaves, the lane finishes, or CallFailedError."""
        reader = asyncio.create_task(self._read(context, commands))
        try:
            await self._write(context, welcome.SerializeToString())
            await self._write_frames(context)
        except grpc.aio.BaseError:
            return  # the connection broke while a frame was on its way: nobody is left to tell
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, context: grpc.aio.ServicerContext, commands: Commands) -> None:
        try:
            while (message := await context.read()) is not grpc.aio.EOF:  # pyright: ignore[reportAttributeAccessIssue]
                commands.take(self, _parse(message).commands)
        except CallFailedError as failure:
            self.fail(failure)
        except grpc.aio.BaseError:
            self.fail(CallFailedError(Code.UNAVAILABLE, Reason.BACKEND_LOST, "the connection broke"))
        except Exception as error:  # a supervision point: one lane's fault stays in that lane
            log.exception("a command failed")
            self.fail(
                CallFailedError(
                    Code.INTERNAL, Reason.INTERNAL, f"a command failed with {type(error).__name__}"
                )
            )
        else:
            self.finish()

    async def _write_frames(self, context: grpc.aio.ServicerContext) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._failure is None and (frame := self.outbox.take(loop.time())) is not None:
                await self._write(context, frame)
            if self._failure is not None:
                raise self._failure
            if self._finishing:
                return

    async def _write(self, context: grpc.aio.ServicerContext, frame: bytes) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await context.write(frame)
        except TimeoutError:
            raise CallFailedError(
                Code.ABORTED,
                Reason.SLOW_READER,
                f"The router took no frame for {self._write_timeout_s:g} s. What the lane started was "
                "stopped. Open a new lane and read it.",
            ) from None


def _parse(message: bytes) -> worker_pb2.LaneRequest:
    try:
        return worker_pb2.LaneRequest.FromString(message)
    except DecodeError as error:
        raise CallFailedError(
            Code.INVALID_ARGUMENT,
            Reason.INVALID_REQUEST,
            "A message on the lane is no LaneRequest. The lane ends. Check the router's protocol version.",
        ) from error
