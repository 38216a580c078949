"""Mock workers in a process of their own: `python -m tests.faults.fleet_process LISTEN WORKER...`."""

import asyncio
import json
import logging
import sys

from backends.shell.mock import run_mock
from backends.shell.server import MockFleetServer
from tests.faults.staff import worker


def started(fleet: MockFleetServer) -> None:
    """Tell the parent where we are."""
    print(json.dumps({"mock": fleet.address}), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG)
    asyncio.run(run_mock([worker(text) for text in sys.argv[2:]], sys.argv[1], started=started))
