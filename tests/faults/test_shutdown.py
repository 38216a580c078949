"""The router as a process under load, told to stop: `polyphase serve` with workers in another process."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from polyphase.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2_grpc

from backends.shell.server import MockFleetServer
from tests.faults.client import Heard, eventually, request
from tests.faults.processes import Child, daemon, static
from tests.faults.staff import worker

pytestmark = pytest.mark.process
WORKERS = "p1 p2 d1 d2"
LOAD = 40
"""Requests at the same time."""
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Service:
    """A router's process, the workers, and clients of both listeners."""

    def __init__(self, child: Child, fleet: MockFleetServer, data: Any, admin: Any) -> None:
        self.child = child
        self.fleet = fleet
        self.inference = inference_pb2_grpc.InferenceServiceStub(data)
        self.health = health_pb2_grpc.HealthStub(admin)
        self._fleet_stub = fleet_pb2_grpc.FleetServiceStub(admin)

    async def ready(self) -> None:
        """Wait until all workers take work."""
        async with asyncio.timeout(30):
            while True:
                listed = await self._fleet_stub.ListBackends(fleet_pb2.ListBackendsRequest())
                if all(row.state == fleet_pb2.BACKEND_STATE_READY for row in listed.backends):
                    return
                await asyncio.sleep(0.05)

    async def load(self, tokens: int) -> list[Heard]:
        """Requests of which all have begun to answer."""
        heard = [Heard(self.inference, request(f"load{i}", tokens)) for i in range(LOAD)]
        for one in heard:
            await one.until(1)
        return heard

    async def status(self, watch: Any) -> int:
        """The next status of a health watch."""
        async with asyncio.timeout(20):
            return int((await watch.read()).status)

    def idle(self) -> bool:
        """Whether the workers hold nothing."""
        hosts = self.fleet.workers.values()
        return all(host.idle and not host.snapshot().kv_used_tokens for host in hosts)


@asynccontextmanager
async def service(folder: Path, config: str = "") -> AsyncIterator[Service]:
    """A router's process that has met its workers."""
    async with MockFleetServer([worker(word) for word in WORKERS.split()]) as fleet:
        with daemon(folder, config + static(fleet.address, WORKERS)) as child:
            await asyncio.to_thread(child.ready)
            async with grpc.aio.insecure_channel(child.at["data"]) as data:
                async with grpc.aio.insecure_channel(child.at["admin"]) as admin:
                    made = Service(child, fleet, data, admin)
                    await made.ready()
                    yield made


async def test_sigterm_under_load_cuts_nothing(tmp_path: Path) -> None:
    """Health turns before anything else, newcomers are sent away, forty answers end whole; exit code 0."""
    async with service(tmp_path) as on:
        watch = on.health.Watch(health_pb2.HealthCheckRequest())
        assert await on.status(watch) == SERVING
        heard = await on.load(1500)
        on.child.signal(signal.SIGTERM)
        assert await on.status(watch) == NOT_SERVING
        assert not any(one.reading.done() for one in heard)
        assert await Heard(on.inference, request("late")).failure() == (UNAVAILABLE, "DRAINING")
        for one in heard:
            await one.answer()
        assert await on.child.exit_code() == 0
        await eventually(on.idle, "a worker holds something")
        watch.cancel()


async def test_a_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    """The forty answers end typed, with right tokens so far; the workers hold nothing; exit code 0."""
    async with service(tmp_path) as on:
        heard = await on.load(90_000)
        on.child.signal(signal.SIGTERM)
        watch = on.health.Watch(health_pb2.HealthCheckRequest())
        assert await on.status(watch) == NOT_SERVING
        on.child.signal(signal.SIGINT)
        for one in heard:
            assert await one.failure() == (UNAVAILABLE, "DRAINING")
            assert one.next_index() == len(one.ids) > 0
        assert await on.child.exit_code(10) == 0
        await eventually(on.idle, "a worker holds something")
        watch.cancel()


async def test_a_killed_router_leaves_nothing_at_the_workers(tmp_path: Path) -> None:
    """SIGKILL leaves no time for goodbyes: the workers see their lanes break, and stop by themselves."""
    async with service(tmp_path) as on:
        heard = await on.load(90_000)
        on.child.kill()
        for one in heard:
            await one.end()
            assert one.error is not None and one.error.code() is UNAVAILABLE
        await eventually(on.idle, "a worker holds something")
