"""Workers announce themselves, keep the stream alive, come back after a router restart, say goodbye."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
from polyphase.v1 import fleet_pb2, fleet_pb2_grpc

from backends.shell.registration import Registration
from router.grpc_options import server_options
from tests.shell.rig import eventually


class Fleet(fleet_pb2_grpc.FleetServiceServicer):
    """A router's FleetService that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[fleet_pb2.RegisterRequest] = []
        self.open = 0
        self.silent = False

    async def Register(  # noqa: N802
        self,
        requests: AsyncIterator[fleet_pb2.RegisterRequest],
        context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
    ) -> AsyncIterator[fleet_pb2.RegisterResponse]:
        """Answer every message."""
        self.open += 1
        try:
            async for request in requests:
                self.heard.append(request)
                if request.leaving:
                    return
                if not self.silent:
                    yield fleet_pb2.RegisterResponse(heartbeat_s=0.1)
        finally:
            self.open -= 1

    def names(self, leaving: bool = False) -> set[str]:
        """Who spoke."""
        return {request.backend for request in self.heard if request.leaving is leaving}


@asynccontextmanager
async def router(address: str, fleet: Fleet) -> AsyncIterator[str]:
    """A router's admin listener."""
    server = grpc.aio.server(options=list(server_options()))
    fleet_pb2_grpc.add_FleetServiceServicer_to_server(fleet, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def test_registers_beats_and_leaves() -> None:
    """Every worker is announced with its address, its heartbeats go on, and its goodbye is heard."""
    fleet = Fleet()
    async with router("127.0.0.1:0", fleet) as target:
        registration = Registration(target, ("a", "b"), "127.0.0.1:7610", random.Random(0))
        registration.start()
        await eventually(lambda: registration.registered == {"a", "b"}, "not registered")
        await eventually(lambda: len(fleet.heard) >= 8, "no heartbeats")
        assert {request.address for request in fleet.heard} == {"127.0.0.1:7610"}
        await registration.leave()
        assert fleet.names(leaving=True) == {"a", "b"}
        await eventually(lambda: fleet.open == 0, "streams are left")


async def test_comes_back_after_a_router_restart() -> None:
    """A router that was away is found again, without a restart of the workers."""
    first, second = Fleet(), Fleet()
    async with router("127.0.0.1:0", first) as target:
        registration = Registration(target, ("a",), "127.0.0.1:7610", random.Random(0))
        registration.start()
        await eventually(lambda: registration.registered, "not registered")
    await eventually(lambda: not registration.registered, "the break was not noticed")
    async with router(target, second):
        await eventually(lambda: registration.registered and second.names(), "not registered again")
        await registration.close()
        assert second.names(leaving=True) == set()


async def test_a_router_that_is_away_is_tried_in_the_background() -> None:
    """Nothing listens: registration waits quietly, and its end is prompt."""
    registration = Registration("127.0.0.1:1", ("a", "b"), "127.0.0.1:7610", random.Random(0))
    registration.start()
    await asyncio.sleep(0.3)
    assert registration.registered == set()
    async with asyncio.timeout(10):
        await registration.leave()
