"""Announces workers to a router. The open stream is the heartbeat; a router that is away is tried again.

Losing the router does not stop the workers: they serve the lanes they have.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio
from polyphase.v1 import fleet_pb2, fleet_pb2_grpc

from router.grpc_options import channel_options
from router.model import Seconds

log = logging.getLogger(__name__)

FIRST_BACKOFF_S: Final[Seconds] = 0.1
MAX_BACKOFF_S: Final[Seconds] = 5.0
ANSWER_TIMEOUT_S: Final[Seconds] = 10.0
"""For the router to answer a registration, and to take a heartbeat."""
_FIRST_HEARTBEAT_S: Final[Seconds] = 1.0
_MIN_HEARTBEAT_S: Final[Seconds] = 0.05
_MAX_HEARTBEAT_S: Final[Seconds] = 60.0
_GOODBYE_S: Final[Seconds] = 1.0


class Registration:
    """Keeps the workers at `address` registered with one router's FleetService; an owned task for each.

    `rng` jitters the pauses, so that a fleet does not come back in one instant after a router restart.
    """

    def __init__(self, target: str, backends: Sequence[str], address: str, rng: random.Random) -> None:
        self._target = target
        self._backends = tuple(backends)
        self._address = address
        self._rng = rng
        self._leaving = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._heartbeat_s = _FIRST_HEARTBEAT_S
        self.registered: set[str] = set()
        """Backends that the router has acknowledged on a stream that is open."""

    def start(self) -> None:
        """Begin to register."""
        self._channel = grpc.aio.insecure_channel(self._target, options=list(channel_options()))
        self._stub = fleet_pb2_grpc.FleetServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._tasks = [asyncio.create_task(self._keep(backend)) for backend in self._backends]

    async def leave(self) -> None:
        """Say goodbye for all workers, in bounded time, and disconnect."""
        self._leaving.set()
        _, stuck = await asyncio.wait(self._tasks, timeout=_GOODBYE_S) if self._tasks else (None, ())
        await self._end(list(stuck))

    async def close(self) -> None:
        """Disconnect without a goodbye, as a crash would."""
        await self._end(self._tasks)

    async def _end(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channel.close()

    async def _keep(self, backend: str) -> None:
        attempt = 0
        while not self._leaving.is_set():
            try:
                await self._register(backend)
            except (grpc.aio.AioRpcError, grpc.aio.BaseError, TimeoutError) as error:
                log.info("registration of %s at %s broke: %s", backend, self._target, _summary(error))
            attempt = 0 if backend in self.registered else attempt + 1
            self.registered.discard(backend)
            await self._pause(attempt)

    async def _register(self, backend: str) -> None:
        """One stream, until it breaks or the worker leaves."""
        call = self._stub.Register()
        hearing = asyncio.create_task(self._hear(call, backend))
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            answer_by = asyncio.get_running_loop().time() + ANSWER_TIMEOUT_S
            await self._send(call, fleet_pb2.RegisterRequest(backend=backend, address=self._address))
            while not await self._rest(hearing, leaving):
                self._check_answered(backend, answer_by)
                await self._send(call, fleet_pb2.RegisterRequest(backend=backend, address=self._address))
            await self._send(call, fleet_pb2.RegisterRequest(backend=backend, leaving=True))
            await call.done_writing()
            await hearing  # the router ends the stream once it has read the goodbye
        finally:
            hearing.cancel()
            leaving.cancel()
            # A call that is dropped without cancel() stays open at the router until the channel closes.
            call.cancel()
            await asyncio.gather(hearing, leaving, return_exceptions=True)

    async def _hear(self, call: Any, backend: str) -> None:
        """Read answers until the stream ends; unread ones would fill its window and stall the router."""
        async for answer in call:
            self._heartbeat_s = min(max(answer.heartbeat_s, _MIN_HEARTBEAT_S), _MAX_HEARTBEAT_S)
            self.registered.add(backend)

    async def _rest(self, hearing: asyncio.Task[None], leaving: asyncio.Task[Any]) -> bool:
        """Pause until the next heartbeat; True when the worker leaves. Raises what broke the stream."""
        # Half of what is asked for: one late wake-up must not look like a dead worker.
        timeout_s = self._heartbeat_s / 2
        await asyncio.wait((hearing, leaving), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if hearing.done():
            hearing.result()
            raise TimeoutError("the router ended the stream")
        return leaving.done()

    def _check_answered(self, backend: str, answer_by: Seconds) -> None:
        if backend not in self.registered and asyncio.get_running_loop().time() >= answer_by:
            raise TimeoutError(f"no answer within {ANSWER_TIMEOUT_S:g} s")

    @staticmethod
    async def _send(call: Any, message: fleet_pb2.RegisterRequest) -> None:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await call.write(message)

    async def _pause(self, attempt: int) -> None:
        limit_s = min(FIRST_BACKOFF_S * 2 ** min(attempt, 16), MAX_BACKOFF_S)
        try:
            async with asyncio.timeout(limit_s * self._rng.uniform(0.5, 1.0)):
                await self._leaving.wait()
        except TimeoutError:
            return


def _summary(error: BaseException) -> str:
    """One line without a stack: a router that is away is no surprise."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
