"""The consumer's end of a handoff: pulls KV as a decode worker would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from polyphase.v1 import common_pb2, worker_pb2

from backends.conformance.channels import connected
from backends.conformance.verdicts import ViolationError, expect
from backends.shell.status import reason_of
from router.model import Seconds

METHOD: Final = "/polyphase.v1.WorkerService/PullKV"


@dataclass(frozen=True, slots=True)
class Pulled:
    """KV that came, complete."""

    chunks: int
    chunk_bytes: int
    final: worker_pb2.PullKVResponse


class PullRefusedError(Exception):
    """The producer did not give the KV; `reason` is that of its ErrorInfo, empty without one."""

    def __init__(self, code: str, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason} ({message})")
        self.code = code
        self.reason = reason


@asynccontextmanager
async def open_pull(
    address: str, kv: common_pb2.KVHandle, within_s: Seconds, consumer: str = "conformance"
) -> AsyncIterator[Any]:
    """A pull under way; leaving ends it."""
    async with connected(address) as channel:
        method = channel.unary_stream(
            METHOD,
            request_serializer=worker_pb2.PullKVRequest.SerializeToString,
            response_deserializer=worker_pb2.PullKVResponse.FromString,
        )
        call = method(worker_pb2.PullKVRequest(kv=kv, consumer=consumer), timeout=within_s)
        try:
            yield call
        finally:
            call.cancel()


async def messages(
    address: str, kv: common_pb2.KVHandle, within_s: Seconds
) -> AsyncGenerator[worker_pb2.PullKVResponse, None]:
    """What a pull brings, as it comes. Raises PullRefusedError."""
    async with open_pull(address, kv, within_s) as call:
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            raise PullRefusedError(error.code().name, reason_of(error), details) from error


async def pull(address: str, kv: common_pb2.KVHandle, within_s: Seconds) -> Pulled:
    """Take the KV and drop it. Raises PullRefusedError, and ViolationError when the stream is no KV."""
    chunks, chunk_bytes, final = 0, 0, None
    async with aclosing(messages(address, kv, within_s)) as stream:
        async for message in stream:
            expect(final is None, "a pull went on after its last message")
            if message.chunk:
                chunks, chunk_bytes = chunks + 1, chunk_bytes + len(message.chunk)
            else:
                final = message
    if final is None:
        raise ViolationError("a pull ended well without a last message, which holds fingerprint and size")
    return Pulled(chunks, chunk_bytes, final)


async def refusal(address: str, kv: common_pb2.KVHandle, within_s: Seconds) -> PullRefusedError | None:
    """How a pull is refused; None when the KV came."""
    try:
        await pull(address, kv, within_s)
    except PullRefusedError as refused:
        return refused
    return None


async def both(address: str, kv: common_pb2.KVHandle, within_s: Seconds) -> list[PullRefusedError | None]:
    """Two pulls of one handle at the same time."""
    return list(await asyncio.gather(*(refusal(address, kv, within_s) for _ in range(2))))
