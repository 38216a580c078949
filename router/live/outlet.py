"""The two ends of one call: waking the coroutine that writes, and reading and writing under a time limit.

grpc.aio's sharp edges that concern a single call are handled here, once: a first message that never comes, a
reader that stops reading, and a client whose connection dies while a write waits.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc

from router.errors import CallerError, Reason, Violation
from router.model import Seconds


class ClientGoneError(Exception):
    """The client's connection died; nobody can be told anything."""


class Bell:
    """Wakes the one coroutine that waits. Ringing is cheap, and ringing twice wakes once."""

    __slots__ = ("_loop", "_rung", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._rung = False

    def ring(self) -> None:
        """Wake the waiter, now or when it comes to wait."""
        if self._rung:
            return
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Return once the bell has been rung since the last return."""
        if not self._rung:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._rung = False


class Writer:
    """Writes the messages of one call. Belongs to the task that created it, and is closed by it."""

    __slots__ = ("_context", "_expired", "_limit_s", "_loop", "_since", "_task", "_timer")

    def __init__(self, context: Any, limit_s: Seconds, loop: asyncio.AbstractEventLoop) -> None:
        """`limit_s` bounds each write: a client that does not read fills its flow-control window, and then
        every write waits for ever, with the request's slot and KV."""
        task = asyncio.current_task()
        assert task is not None, "a writer belongs to a task"
        self._context = context
        self._limit_s = limit_s
        self._loop = loop
        self._task = task
        self._since = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False

    async def write(self, message: bytes) -> None:
        """Send one message. Raises CallerError (SLOW_READER) when it takes too long, or ClientGoneError."""
        # One timer a call, moved on when it fires: a time-out of asyncio's for each write costs more than
        # everything else the router does with a token.
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_at(self._since + self._limit_s, self._check)
        try:
            await self._context.write(message)
        except asyncio.CancelledError:
            if self._expired and self._task.uncancel() <= 0:
                raise self._slow_reader() from None
            raise
        except (grpc.aio.InternalError, grpc.aio.UsageError):
            # The connection died during the write, or before it.
            raise ClientGoneError from None
        finally:
            self._since = math.inf

    def close(self) -> None:
        """Disarm the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def give_up(self) -> None:
        """Make the write under way end as if its time were over; without one, do nothing."""
        if self._since < math.inf and not self._expired:
            self._expired = True
            self._task.cancel()

    def _check(self) -> None:
        due = self._since + self._limit_s
        if due <= self._loop.time():
            self._timer = None
            self.give_up()
        else:
            when = due if due < math.inf else self._loop.time() + self._limit_s
            self._timer = self._loop.call_at(when, self._check)

    def _slow_reader(self) -> CallerError:
        return CallerError(
            Reason.SLOW_READER,
            f"the client took no message for {self._limit_s:g} s; its work was stopped; "
            "read the stream without pause and send the request again",
        )


async def first_message(context: Any, limit_s: Seconds) -> bytes:
    """The one message of a call. Raises CallerError when it is missing, truncated, or too slow to come.

    A unary handler of grpc.aio would wait for it without end and hold its slot meanwhile.
    """
    try:
        async with asyncio.timeout(limit_s):
            raw = await context.read()
    except TimeoutError:
        raise CallerError(
            Reason.REQUEST_TOO_SLOW,
            f"no request message came within {limit_s:g} s; the call was given up; send the message at once",
        ) from None
    if not isinstance(raw, bytes):  # the end of the stream
        raise CallerError(
            Reason.INVALID_REQUEST,
            "the call ended without a complete request message; nothing was started; send one message",
            violations=(Violation("message", "is missing or truncated"),),
        )
    return raw
