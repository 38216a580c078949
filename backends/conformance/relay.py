"""A producer of KV that does what it is told: stands between the two workers of a handoff.

A handle whose source is this address is pulled through here. The KV comes from the worker that minted it; on
the way it is held up, altered, broken off or refused. Only so can a check know that a transfer is under way,
whatever the speed of the link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio
from polyphase.v1 import common_pb2, worker_pb2

from backends.conformance import pulls
from backends.shell.status import CallFailedError, abort
from router.errors import Code, ConfigError
from router.grpc_options import server_options
from router.model import Seconds

SERVICE: Final = "polyphase.v1.WorkerService"


class Pass:
    """One pull that is expected here: where the KV really is, and how far its pull has come."""

    def __init__(self, kv: common_pb2.KVHandle, source: str) -> None:
        self.kv = kv
        """As the worker minted it."""
        self.source = source
        self.reached = asyncio.Event()
        """The decode worker asks for the KV."""
        self.left = asyncio.Event()
        """Its pull is over, in whatever way."""
        self.chunks = 0


Script = Callable[[Pass, Any, Seconds], Awaitable[None]]
"""Answers a pull by writing to its context; raises CallFailedError to refuse it."""


class Relay:
    """A server of PullKV; an async context manager. Raises ConfigError when it cannot listen."""

    def __init__(self, listen: str, patience_s: Seconds) -> None:
        self.address = ""
        self._listen = listen
        self._patience_s = patience_s
        self._expected: dict[tuple[str, bytes], tuple[Pass, Script]] = {}

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(options=list(server_options()))
        handler = grpc.unary_stream_rpc_method_handler(
            self._pull,
            request_deserializer=worker_pb2.PullKVRequest.FromString,
            response_serializer=worker_pb2.PullKVResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"PullKV": handler}),)
        )
        try:
            port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise ConfigError(
                f"The suite cannot listen on {self._listen!r}: {error}. Nothing was checked. Choose a free "
                "host:port of this machine."
            ) from error
        self.address = f"{self._listen.rpartition(':')[0]}:{port}"
        await self._server.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._server.stop(0.0)

    def through(
        self, kv: common_pb2.KVHandle, source: str, script: Script
    ) -> tuple[common_pb2.KVHandle, Pass]:
        """A handle like `kv` that is pulled through here, as the script says."""
        led = common_pb2.KVHandle()
        led.CopyFrom(kv)
        led.source = self.address
        expected = Pass(kv, source)
        self._expected[kv.request_id, kv.connector] = expected, script
        return led, expected

    async def _pull(self, request: worker_pb2.PullKVRequest, context: Any) -> None:
        found = self._expected.pop((request.kv.request_id, request.kv.connector), None)
        if found is None:
            await abort(context, CallFailedError(Code.FAILED_PRECONDITION, "KV_STALE", "it is not here"))
            return
        expected, script = found
        expected.reached.set()
        try:
            async with asyncio.timeout(self._patience_s):
                await script(expected, context, self._patience_s)
        except (CallFailedError, TimeoutError, pulls.PullRefusedError) as error:
            failure = error if isinstance(error, CallFailedError) else _broken_off(str(error))
            await abort(context, failure)
        finally:
            expected.left.set()


async def held_up(expected: Pass, context: Any, within_s: Seconds) -> None:
    """Send nothing until the other side goes away."""
    await asyncio.sleep(within_s)
    raise _broken_off("it was held up")


async def refused(expected: Pass, context: Any, within_s: Seconds) -> None:
    """Say that the KV is stale."""
    raise CallFailedError(Code.FAILED_PRECONDITION, "KV_STALE", "the conformance suite says so")


async def broken_off(expected: Pass, context: Any, within_s: Seconds) -> None:
    """Pass the first chunk on, if there is one, then break off."""
    async with aclosing(pulls.messages(expected.source, expected.kv, within_s)) as stream:
        async for message in stream:
            if message.chunk:
                await context.write(message)
                break
    raise _broken_off("the conformance suite says so")


async def relabelled(expected: Pass, context: Any, within_s: Seconds) -> None:
    """Pass everything on under another cache's fingerprint."""
    async with aclosing(pulls.messages(expected.source, expected.kv, within_s)) as stream:
        async for message in stream:
            if not message.chunk:
                message.fingerprint ^= 1 << 17
            await context.write(message)


async def corrupted(expected: Pass, context: Any, within_s: Seconds) -> None:
    """Pass everything on with a bit flipped at the end of the last chunk."""
    kept = b""
    async with aclosing(pulls.messages(expected.source, expected.kv, within_s)) as stream:
        async for message in stream:
            if kept:
                sound = kept if message.chunk else kept[:-1] + bytes((kept[-1] ^ 1,))
                await context.write(worker_pb2.PullKVResponse(chunk=sound))
            if not message.chunk:
                await context.write(message)
            kept = message.chunk
            expected.chunks += bool(kept)


def _broken_off(why: str) -> CallFailedError:
    return CallFailedError(Code.UNAVAILABLE, "", f"the transfer broke off: {why}")
