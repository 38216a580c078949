"""A mock fleet as a process: serves until it is told to stop, then drains."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from backends.shell.registration import Registration
from backends.shell.server import LOOPBACK, MockFleetServer
from router.address import IPNetwork
from router.model import BackendSpec, Seconds

log = logging.getLogger(__name__)

DRAIN_GRACE_S: Final[Seconds] = 30.0
"""For what runs when the signal comes; a second signal ends it at once."""


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
    """Serve the fleet until SIGTERM, SIGINT or `stop`, then drain for up to `grace_s`.

    `register_at` is the host:port of a router's FleetService to announce the workers to. `started` is
    called once the fleet listens. Raises ConfigError when the fleet or an address cannot be used.
    """
    stopping = stop or asyncio.Event()
    hurry = asyncio.Event()
    async with MockFleetServer(specs, listen, seed, advertise, allowed_networks) as fleet:
        with _signals(stopping, hurry):
            async with _registered(fleet, register_at, seed):
                if started is not None:
                    started(fleet)
                await stopping.wait()
            await _drain(fleet, grace_s, hurry)


async def _drain(fleet: MockFleetServer, grace_s: Seconds, hurry: asyncio.Event) -> None:
    log.info("draining for up to %g s", grace_s)
    drained = asyncio.create_task(fleet.drained(grace_s))
    hurried = asyncio.create_task(hurry.wait())
    try:
        await asyncio.wait((drained, hurried), return_when=asyncio.FIRST_COMPLETED)
    finally:
        drained.cancel()
        hurried.cancel()
        await asyncio.gather(drained, hurried, return_exceptions=True)


@asynccontextmanager
async def _registered(fleet: MockFleetServer, target: str | None, seed: int) -> AsyncIterator[None]:
    if target is None:
        yield
        return
    rng = random.Random(f"{seed}/registration")
    registration = Registration(target, tuple(fleet.workers), fleet.advertised, rng)
    registration.start()
    try:
        yield
    finally:
        await registration.leave()


@contextmanager
def _signals(stopping: asyncio.Event, hurry: asyncio.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT stops, the second hurries."""
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        (hurry if stopping.is_set() else stopping).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
