"""A mock fleet as a process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from backends.shell.run import DRAIN_GRACE_S, run_workers
from backends.shell.server import LOOPBACK, MockFleetServer
from router.address import IPNetwork
from router.model import BackendSpec, Seconds


async def run_mock(
    specs: Sequence[BackendSpec],
    listen: str = "127.0.0.1:7610",
    seed: int = 0,
    advertise: str | None = None,
    allowed_networks: Sequence[IPNetwork] = LOOPBACK,
    register_at: str | None = None,
    grace_s: Seconds = DRAIN_GRACE_S,
    started: Callable[[MockFleetServer], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve the fleet as `run_workers` does. Raises ConfigError when the fleet or an address is unusable."""
    fleet = MockFleetServer(specs, listen, seed, advertise, allowed_networks)
    await run_workers(fleet, register_at, grace_s, started, stop, seed)
