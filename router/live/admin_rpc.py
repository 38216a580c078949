"""One call of the admin listener: from raw bytes to a message, a reply, and a status.

The services of the admin listener share it, so that each of their calls has time limits, a bound on how many
are open, and a typed status whatever goes wrong. It is their supervision point.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from router.errors import CallerError, CapacityError, PolyphaseError, Reason, Violation
from router.live.outlet import ClientGoneError, Writer, first_message
from router.live.status import abort
from router.model import Seconds

log = logging.getLogger(__name__)

Body = Callable[["AdminCall"], Awaitable[None]]
Proto = TypeVar("Proto", bound=Message)

_FAILED: Final = "the router failed on this call; its log has the cause; try again"


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Bounds of a service's calls; durations in seconds."""

    first_message_s: Seconds = 10.0
    write_s: Seconds = 30.0
    calls: int = 8192
    """Open at a time. Each service has its own bound: watchers of one must not lock out another."""


class AdminCall:
    """A call in the hands of its method."""

    def __init__(self, context: Any, limits: CallLimits) -> None:
        self._context = context
        self._limits = limits
        self._writer = Writer(context, limits.write_s, asyncio.get_running_loop())

    async def first(self, kind: type[Proto]) -> Proto:
        """The first message. Raises CallerError when it does not come in time, or cannot be read."""
        return parse(await first_message(self._context, self._limits.first_message_s), kind)

    async def first_raw(self) -> bytes:
        """The first message, unread. Raises CallerError when it does not come in time."""
        return await first_message(self._context, self._limits.first_message_s)

    async def read(self, kind: type[Proto]) -> Proto | None:
        """The next message; None when the caller has closed its side."""
        raw = await self._context.read()
        at_end = raw is grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]
        return None if at_end else parse(raw, kind)

    async def write(self, message: Message) -> None:
        """Send a message. Raises CallerError when the caller does not read."""
        await self._writer.write(message.SerializeToString())

    async def write_raw(self, message: bytes) -> None:
        """Send a message that is encoded already."""
        await self._writer.write(message)

    def close(self) -> None:
        """The method has returned."""
        self._writer.close()


class AdminService:
    """Registers the methods of one service by hand and supervises their calls."""

    def __init__(self, name: str, methods: Mapping[str, Body], limits: CallLimits) -> None:
        self._name = name
        self._methods = methods
        self._limits = limits
        self._open = 0

    def register(self, server: grpc.aio.Server) -> None:
        """Add the methods to a server. Call it for as many servers as needed."""
        handlers = {
            name: grpc.stream_stream_rpc_method_handler(self._supervised(name, body))
            for name, body in self._methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self._name, handlers),))

    def _supervised(self, name: str, body: Body) -> Callable[[Any, Any], Awaitable[None]]:
        async def handler(_requests: Any, context: Any) -> None:
            call = AdminCall(context, self._limits)
            self._open += 1
            try:
                self._check_room()
                await body(call)
            except PolyphaseError as error:
                await abort(context, error)
            except ClientGoneError:
                pass
            except Exception:
                log.exception("%s/%s failed", self._name, name)
                await abort(context, PolyphaseError(Reason.INTERNAL, _FAILED))
            finally:
                self._open -= 1
                call.close()

        return handler

    def _check_room(self) -> None:
        if self._open > self._limits.calls:
            raise CapacityError(
                Reason.SHED,
                f"{self._limits.calls} calls of {self._name} are open, the most allowed; retry later",
                retry_after_s=1.0,
            )


def parse(raw: bytes, kind: type[Proto]) -> Proto:
    """Bytes as a message. Raises CallerError when they are none."""
    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        name = kind.DESCRIPTOR.name
        raise CallerError(
            Reason.INVALID_REQUEST,
            f"the message is no {name}; nothing was changed; check the client's protocol version",
            violations=(Violation("message", f"cannot be parsed as {name}"),),
        ) from None
    return message
