"""A real router in this process with real mock workers, here or in other processes, joined over gRPC.

When a stage closes, nothing may be left of any request: not in the router's books, not in the workers' KV.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from polyphase.v1 import inference_pb2, inference_pb2_grpc
from prometheus_client import generate_latest

from backends.shell.server import MockFleetServer
from router.core.messages import PolicyReplaced
from router.core.ports import Policy
from router.live.assembly import Parts
from router.live.daemon import Daemon
from router.model import IDLE, BackendState
from tests.faults.client import Heard, eventually, request
from tests.faults.policies import ByName
from tests.faults.processes import static
from tests.faults.staff import worker
from tests.live_south.daemons import daemon

FAST = "[lanes]\nbackoff_max_s = 0.3\nsilence_s = 20.0\n"
"""Lanes come back soon; silence is a matter of the tests that ask for it."""


class Stage:
    """A router, the workers that live in this process, and a client."""

    def __init__(self, router: Daemon, fleet: MockFleetServer, stub: Any) -> None:
        assert router.parts is not None and router.addresses is not None
        self.router = router
        self.parts: Parts = router.parts
        self.fleet = fleet
        self.stub = stub
        self.port = int(router.addresses.data.rpartition(":")[2])
        self._heard: list[Heard] = []

    def ask(self, name: str, tokens: int = 8, stub: Any = None, **options: Any) -> Heard:
        """Send a request whose prompt is its own; `options` are those of the call."""
        return self.send(request(name, tokens), stub, **options)

    def send(self, made: inference_pb2.GenerateRequest, stub: Any = None, **options: Any) -> Heard:
        """Send a request."""
        heard = Heard(stub or self.stub, made, **options)
        self._heard.append(heard)
        return heard

    def replace(self, policy: Policy) -> None:
        """Let another policy decide, as after a reload."""
        self.parts.driver.tell(PolicyReplaced(policy))

    def metric(self, line: str) -> float:
        """The value of a series by name and labels, as exposed; 0 while it does not exist."""
        for found in generate_latest(self.parts.exposition).decode().splitlines():
            name, _, value = found.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0

    def state(self, backend: str) -> BackendState | None:
        """A backend's state in the core."""
        view = self.parts.core.fleet.get(backend)
        return None if view is None else view.state

    async def ready(self, *backends: str) -> None:
        """Wait until workers take work."""
        for backend in backends:
            await eventually(lambda b=backend: self.state(b) is BackendState.READY, f"{backend} is away")

    def kv_tokens(self, backend: str) -> int:
        """KV that a worker holds: now for one in this process, as last reported for others."""
        if backend in self.fleet.workers:
            return self.fleet.workers[backend].snapshot().kv_used_tokens
        view = self.parts.core.fleet.get(backend)
        return 0 if view is None or view.snapshot is None else view.snapshot.kv_used_tokens

    def left(self) -> dict[str, Any]:
        """What is left of requests anywhere; empty when all books are closed."""
        core, kv = self.parts.core, self.parts.core.relay.kv
        found: dict[str, Any] = {
            "live requests": core.live_requests,
            "flows": len(self.parts.driver.flows),
            "open calls": self.parts.service.calls,
            "held handles": kv.held,
            "KV not accounted for": kv.total_tokens - kv.moved_tokens - kv.released_tokens,
        }
        for member in self.parts.registry:
            view, work = core.fleet.get(member.id), member.lane.work
            if view is not None and view.in_flight != IDLE:
                found[f"ledger of {member.id}"] = view.in_flight
            found[f"phases on the lane to {member.id}"] = 0 if work is None else len(work)
            found[f"KV at {member.id}"] = self.kv_tokens(member.id)
        for name, host in self.fleet.workers.items():
            found[f"work at {name}"] = not host.idle
        return {name: value for name, value in found.items() if value}

    async def quiet(self) -> float:
        """Wait until nothing is left; gives the seconds it took."""
        try:
            return await eventually(lambda: not self.left(), "")
        except AssertionError:
            raise AssertionError(f"left behind: {self.left()}") from None

    async def close(self) -> None:
        """Let the clients end; then nothing may be left."""
        for heard in self._heard:
            heard.call.cancel()
            await heard.end()
        await self.quiet()


@asynccontextmanager
async def stage(
    workers: str = "",
    *,
    elsewhere: Sequence[tuple[str, str]] = (),
    config: str = "",
    lanes: str = FAST,
) -> AsyncIterator[Stage]:
    """`workers` live in this process; `elsewhere` are (address, workers) of others. All are ready, and
    requests go to the first of each role by name until the test says otherwise."""
    async with AsyncExitStack() as stack:
        # A fleet of nobody cannot listen; an idle worker that no router knows does no harm.
        fleet = MockFleetServer([worker(word) for word in (workers or "b0").split()])
        await stack.enter_async_context(fleet)
        backends = static(fleet.address, workers) + "".join(static(*group) for group in elsewhere)
        router = await stack.enter_async_context(daemon(config + backends, lanes))
        assert router.addresses is not None
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(router.addresses.data))
        on = Stage(router, fleet, inference_pb2_grpc.InferenceServiceStub(channel))
        words = [word for group in (workers, *(group for _, group in elsewhere)) for word in group.split()]
        await on.ready(*(word.split(",")[0] for word in words))
        on.replace(ByName())
        yield on
        await on.close()
