"""Workers as a process: serve until told to stop, then drain."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeVar

from backends.shell.registration import Registration
from backends.shell.server import WorkerServer
from router.model import Seconds

log = logging.getLogger(__name__)

DRAIN_GRACE_S: Final[Seconds] = 30.0
"""For what runs when the signal comes; a second signal ends it at once."""

Server = TypeVar("Server", bound=WorkerServer)


async def run_workers(
    server: Server,
    register_at: str | None = None,
    grace_s: Seconds = DRAIN_GRACE_S,
    started: Callable[[Server], None] | None = None,
    stop: asyncio.Event | None = None,
    seed: int = 0,
) -> None:
    """Serve until SIGTERM, SIGINT or `stop`, then drain for up to `grace_s`.

    `register_at` is the host:port of a router's FleetService to announce the workers to. `started` is
    called once the workers listen. Raises ConfigError when a worker or an address cannot be used.
    """
    stopping = stop or asyncio.Event()
    hurry = asyncio.Event()
    async with server:
        with _signals(stopping, hurry):
            async with _registered(server, register_at, seed):
                if started is not None:
                    started(server)
                await stopping.wait()
            await _drain(server, grace_s, hurry)


async def _drain(server: WorkerServer, grace_s: Seconds, hurry: asyncio.Event) -> None:
    log.info("draining for up to %g s", grace_s)
    drained = asyncio.create_task(server.drained(grace_s))
    hurried = asyncio.create_task(hurry.wait())
    try:
        await asyncio.wait((drained, hurried), return_when=asyncio.FIRST_COMPLETED)
    finally:
        drained.cancel()
        hurried.cancel()
        await asyncio.gather(drained, hurried, return_exceptions=True)


@asynccontextmanager
async def _registered(server: WorkerServer, target: str | None, seed: int) -> AsyncIterator[None]:
    if target is None:
        yield
        return
    rng = random.Random(f"{seed}/registration")
    registration = Registration(target, tuple(server.workers), server.advertised, rng)
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
