"""One router and its workers in processes of their own, for all hostile inputs in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest
import pytest_asyncio

from tests.faults.processes import daemon, fleet, static
from tests.hostile.victim import Victim

WORKERS = "p1,step_s=0.0001 d1,step_s=0.00001"
CONFIG = """
[limits]
first_message_timeout_s = 1.0
write_timeout_s = 0.5
[lanes]
silence_s = 20.0
[policy]
file = "policy.toml"
"""


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A router with short patience, its log at DEBUG, and two fast workers."""
    folder = tmp_path_factory.mktemp("victim")
    (folder / "policy.toml").write_text('[policy]\nname = "round_robin"\n')
    with ExitStack() as stack:
        workers = fleet(WORKERS, log=stack.enter_context((folder / "workers.log").open("wb")))
        stack.callback(workers.close)
        backends = static(workers.ready().at["mock"], WORKERS)
        log = stack.enter_context((folder / "log").open("wb"))
        router = stack.enter_context(daemon(folder, CONFIG + backends, log)).ready()
        victim = Victim(router, workers, folder)
        asyncio.run(victim.prepare())
        yield victim
        victim.close()


@pytest.fixture(scope="module")
def survivor(processes: Victim) -> Iterator[Victim]:
    """The router; after all attacks of a file its workers hold nothing, and it has not grown much."""
    yield processes
    asyncio.run(processes.clean())


@pytest_asyncio.fixture
async def victim(survivor: Victim) -> AsyncIterator[Victim]:
    """The router; after each attack it serves and has nothing in flight."""
    yield survivor
    await survivor.unharmed()
