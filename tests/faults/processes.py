"""The router and its workers as processes of their own, so that a test can kill, stop and watch them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
LISTEN = '[listen]\ndata = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\nmetrics = "127.0.0.1:0"\n'


class Child:
    """A process that announces its addresses as one line of JSON, and writes its log to a file."""

    def __init__(self, arguments: Sequence[str], log: IO[bytes] | None = None) -> None:
        path = os.pathsep.join((str(ROOT), str(ROOT / "protos")))
        self._process = subprocess.Popen(
            (sys.executable, "-m", *arguments),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        self.at: dict[str, str] = {}
        """Addresses by name, once it is ready."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def ready(self) -> Child:
        """Wait for the announcement."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process ended without a word"
        self.at = json.loads(line)
        return self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, and wait until its sockets are closed."""
        self._process.kill()
        self._process.wait(30)

    def wait(self, within_s: float) -> int:
        """Wait for its end; gives the exit code."""
        return self._process.wait(within_s)

    async def exit_code(self, within_s: float = 30.0) -> int:
        """Wait for its end without blocking the loop."""
        return await asyncio.to_thread(self.wait, within_s)

    def rss_bytes(self) -> int:
        """Resident memory; 0 where the system does not say it in /proc."""
        statm = Path(f"/proc/{self.pid}/statm")
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0

    def close(self) -> None:
        """Kill it if it still runs, and close the pipes."""
        if self.running:
            self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def fleets(*groups: str) -> Iterator[list[Child]]:
    """Processes with the workers of each group, words apart; they start at the same time."""
    children = [fleet(group) for group in groups]
    try:
        yield [child.ready() for child in children]
    finally:
        for child in children:
            child.close()


def fleet(group: str, listen: str = "127.0.0.1:0", log: IO[bytes] | None = None) -> Child:
    """A process with some workers; it is not ready yet."""
    return Child(("tests.faults.fleet_process", listen, *group.split()), log)


@contextmanager
def daemon(folder: Path, config: str, log: IO[bytes] | None = None) -> Iterator[Child]:
    """`polyphase serve` with a configuration, logging everything; it is not ready yet."""
    file = folder / "polyphase.toml"
    file.write_text(LISTEN + config)
    arguments = ("serve", "--config", str(file), "--log-level", "debug", "--supervised")
    child = Child(("router.cli.main", *arguments), log)
    try:
        yield child
    finally:
        child.close()


def static(address: str, *groups: str) -> str:
    """[[backend]] entries for the workers of some groups at one address."""
    words = [word for group in groups for word in group.split()]
    return "".join(f'[[backend]]\nid = "{word.split(",")[0]}"\naddress = "{address}"\n' for word in words)
