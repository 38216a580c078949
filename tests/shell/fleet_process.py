"""A mock fleet in its own process: `python -m tests.shell.fleet_process WORKER...`; prints its address."""

import asyncio
import sys

from backends.shell.mock import run_mock
from backends.shell.server import MockFleetServer
from tests.shell.rig import spec


def started(fleet: MockFleetServer) -> None:
    """Tell the parent where we are."""
    print(fleet.address, flush=True)


if __name__ == "__main__":
    asyncio.run(run_mock([spec(name) for name in sys.argv[1:]], "127.0.0.1:0", started=started))
