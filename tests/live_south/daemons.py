"""A daemon in this process, on free ports, and clients of its listeners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from polyphase.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2_grpc

from router.cli.plug_ins import plug_ins
from router.config import parse_config
from router.live.daemon import Daemon

LISTEN = '[listen]\ndata = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\nmetrics = "127.0.0.1:0"\n'
QUICK = "[lanes]\nbackoff_max_s = 0.3\nsilence_s = 20.0\n"


@asynccontextmanager
async def daemon(extra: str = "", lanes: str = QUICK) -> AsyncIterator[Daemon]:
    """A serving daemon; stopped in a hurry at the end if the test has not stopped it."""
    router = Daemon(parse_config(LISTEN + lanes + extra), plug_ins(), handle_signals=False)
    running = asyncio.create_task(router.run())
    serving = asyncio.create_task(router.serving.wait())
    try:
        async with asyncio.timeout(20):
            await asyncio.wait([running, serving], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        yield router
    finally:
        serving.cancel()
        router.stop()
        router.stop()
        await running


@asynccontextmanager
async def fleet_client(router: Daemon) -> AsyncIterator[Any]:
    """A FleetService stub."""
    assert router.addresses is not None
    async with grpc.aio.insecure_channel(router.addresses.admin) as channel:
        yield fleet_pb2_grpc.FleetServiceStub(channel)


@asynccontextmanager
async def inference_client(router: Daemon) -> AsyncIterator[Any]:
    """An InferenceService stub."""
    assert router.addresses is not None
    async with grpc.aio.insecure_channel(router.addresses.data) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


async def states(stub: Any) -> dict[str, int]:
    """State by backend."""
    listed = await stub.ListBackends(fleet_pb2.ListBackendsRequest(), timeout=10)
    return {backend.spec.id: backend.state for backend in listed.backends}


async def until_state(stub: Any, backend: str, state: int | None, within_s: float = 15.0) -> None:
    """Wait until a backend is in a state; None: until it is gone."""
    async with asyncio.timeout(within_s):
        while (await states(stub)).get(backend) != state:
            await asyncio.sleep(0.05)


async def code_of(call: Any) -> grpc.StatusCode:
    """The status of a unary call, or of a stream's first read."""
    try:
        if hasattr(call, "read"):
            await call.read()
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        call.cancel()
    return grpc.StatusCode.OK
