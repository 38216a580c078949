"""The router under attack, as seen from outside, and what it must still be like afterwards."""

from __future__ import annotations

import asyncio
import signal
import socket
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from polyphase.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2_grpc

from tests.faults.client import PATIENCE_S, Heard, request
from tests.faults.processes import Child
from tests.hostile.raw import START
from tests.live.wires import PREFACE

GROWTH_BYTES = 160 << 20
"""What the router may have gained by the end of a file. The buffers of gRPC and the arenas of Python are kept
for later, and gRPC loses about half a kilobyte with each call that is reset; beyond that, nothing stays."""
WORKERS = ("p1", "d1")
FIRST_WORDS = {
    "nothing": b"",
    "half a preface": PREFACE[:10],
    "a preface": PREFACE,
    "settings, unacknowledged": START,
}


class Victim:
    """A router's process. Every question is asked through its listeners."""

    def __init__(self, child: Child, workers: Child, folder: Path) -> None:
        self.child = child
        self.workers_at = workers.at["mock"]
        self.folder = folder
        self.squatters = {
            (listener, said): _squat(child.at[listener], first)
            for listener in ("data", "admin")
            for said, first in FIRST_WORDS.items()
        }
        """Connections that say something and fall silent, by listener."""
        self._rss = 0
        self._asked = 0

    @property
    def port(self) -> int:
        """Of the data listener."""
        return int(self.child.at["data"].rpartition(":")[2])

    @property
    def admin_port(self) -> int:
        """Of the admin listener."""
        return int(self.child.at["admin"].rpartition(":")[2])

    @property
    def metrics_port(self) -> int:
        """Of the metrics listener."""
        return int(self.child.at["metrics"].rpartition(":")[2])

    def data(self) -> grpc.aio.Channel:
        """A channel to the data listener."""
        return grpc.aio.insecure_channel(self.child.at["data"], _OWN_CONNECTION)

    def admin(self) -> grpc.aio.Channel:
        """A channel to the admin listener."""
        return grpc.aio.insecure_channel(self.child.at["admin"], _OWN_CONNECTION)

    def log(self) -> str:
        """Everything the router has logged so far."""
        return (self.folder / "log").read_text(errors="replace")

    def workers_log(self) -> str:
        """Everything the workers have logged so far."""
        return (self.folder / "workers.log").read_text(errors="replace")

    def threads(self) -> int:
        """Of the router's process; 0 where the system does not say it in /proc."""
        tasks = Path(f"/proc/{self.child.pid}/task")
        return len(list(tasks.iterdir())) if tasks.exists() else 0

    def reload(self) -> None:
        """Have the policy file read again."""
        self.child.signal(signal.SIGHUP)

    async def until(self, ask: Callable[[], Awaitable[object]], wanted: object) -> None:
        """Ask until the answer is the wanted one."""
        async with asyncio.timeout(PATIENCE_S):
            while await ask() != wanted:
                await asyncio.sleep(0.02)

    async def scrape(self) -> str:
        """All metrics."""
        return await asyncio.to_thread(_scrape, f"http://{self.child.at['metrics']}/metrics")

    async def metric(self, line: str) -> float:
        """A series as exposed; 0 while it does not exist."""
        for found in (await self.scrape()).splitlines():
            name, _, value = found.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0

    async def rows(self) -> list[Any]:
        """The fleet as an operator sees it."""
        async with self.admin() as channel:
            stub = fleet_pb2_grpc.FleetServiceStub(channel)  # type: ignore[no-untyped-call]
            return list((await stub.ListBackends(fleet_pb2.ListBackendsRequest(), timeout=20)).backends)

    # --- before and after ---

    async def prepare(self) -> None:
        """Wait until the workers are there, and note how large the router is."""
        async with asyncio.timeout(PATIENCE_S):
            while [row.state for row in await self.rows()] != [fleet_pb2.BACKEND_STATE_READY] * len(WORKERS):
                await asyncio.sleep(0.05)
        await self.serves()
        self._rss = self.child.rss_bytes()

    async def unharmed(self) -> None:
        """After every attack: it lives, answers a good request rightly, and its ledger is zero."""
        assert self.child.running
        await self.serves()
        await self.until(self.booked, {})

    async def clean(self) -> None:
        """After some attacks: the workers hold nothing, and the router is not much larger than before."""
        await self.until(self.held, {})
        grown = self.child.rss_bytes() - self._rss
        assert grown < GROWTH_BYTES, f"grew by {grown >> 20} MiB"
        assert "Traceback" not in self.log()

    def close(self) -> None:
        """Let go of what was held on purpose; then a drain ends at once, because no call is left open."""
        for squatter in self.squatters.values():
            squatter.close()
        self.reload()
        self.child.signal(signal.SIGTERM)
        assert self.child.wait(10) == 0

    async def serves(self) -> None:
        """A good request on a new connection gets its right answer."""
        self._asked += 1
        async with self.data() as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            await Heard(stub, request(f"good{self._asked}")).answer()

    async def booked(self) -> dict[str, Any]:
        """What the router's ledger has in flight by backend; empty when nothing is."""
        booked = {
            row.spec.id: (row.prefills_in_flight, row.decodes_in_flight, row.kv_tokens_booked)
            for row in await self.rows()
        }
        return {backend: what for backend, what in booked.items() if any(what)}

    async def held(self) -> dict[str, Any]:
        """KV that the workers hold by their last reports; empty when they hold none."""
        return {row.spec.id: used for row in await self.rows() if (used := row.load.kv_used_tokens)}


_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


def _squat(address: str, first: bytes) -> socket.socket:
    host, _, port = address.rpartition(":")
    made = socket.create_connection((host, int(port)))
    made.sendall(first)
    return made


def _scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as response:  # noqa: S310  (our own listener)
        return str(response.read().decode())
