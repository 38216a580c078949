"""Child processes of `polyphase dev`: the daemon and the mock fleet run apart from the load generator.

A child runs in a session of its own, so that Ctrl-C reaches the parent alone, which then stops the
children in order. Its standard input is a pipe from the parent: when it ends, however the parent died, the
child stops by itself. Its first line on standard output is JSON and says where it listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import IO, Any, Final

from router.cli.trouble import BAD_CONFIG, UNUSABLE, Trouble
from router.model import Seconds

READY_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0
_TAIL_BYTES: Final = 4000
_DEATH_S: Final = 0.5
"""Between a connection that breaks and the news that the process has ended."""

# --- the child's side ------------------------------------------------------------------------------


def announce(addresses: Mapping[str, str]) -> None:
    """Tell the parent where this process listens."""
    print(json.dumps(dict(addresses)), flush=True)


async def stop_with_parent() -> None:
    """Wait until the parent's end of standard input closes, then behave as at SIGTERM."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while await reader.read(1024):
            pass
    finally:
        transport.close()
    os.kill(os.getpid(), signal.SIGTERM)


# --- the parent's side -----------------------------------------------------------------------------


class Child:
    """A polyphase command in a process of its own."""

    def __init__(self, name: str, process: Process, errors: IO[bytes], ready: Mapping[str, Any]) -> None:
        self.name = name
        self.ready = ready
        """Where it listens, by name."""
        self._process = process
        self._errors = errors

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def died(self) -> Trouble:
        """Wait for an end that nobody asked for, and say what is known about it."""
        code = await self._process.wait()
        return _trouble(self.name, code, self._errors)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL if it takes too long."""
        await _stop(self._process)


@asynccontextmanager
async def child(name: str, arguments: Sequence[str], env: Mapping[str, str]) -> AsyncIterator[Child]:
    """Run `polyphase ARGUMENTS`, ready, for the length of the block; Trouble when it does not start."""
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "router.cli.main", *arguments),
            stdin=PIPE,
            stdout=PIPE,
            stderr=errors,
            env={**os.environ, **env},
            start_new_session=True,
        )
        try:
            ready = await _first_line(name, process)
            yield Child(name, process, errors, ready)
        except Exception:
            # When a child dies, calls to it fail first; its own words say more than theirs.
            if await _has_died(process):
                raise _trouble(name, process.returncode or 0, errors) from None
            raise
        finally:
            await _stop(process)


async def _first_line(name: str, process: Process) -> Mapping[str, Any]:
    """What the child announces. Raises ValueError when it ends without a word, Trouble when it takes long."""
    if process.stdout is None:
        raise ValueError("no pipe")
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            ready: Mapping[str, Any] = json.loads(await process.stdout.readline())
    except TimeoutError:
        raise Trouble(
            f"The {name} did not get ready within {READY_TIMEOUT_S:g} s. No request was sent. "
            "Is the machine overloaded? Try again."
        ) from None
    return ready


async def _has_died(process: Process) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DEATH_S):
            await process.wait()
    return process.returncode is not None


async def _stop(process: Process, timeout_s: Seconds = STOP_TIMEOUT_S) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _trouble(name: str, code: int, errors: IO[bytes]) -> Trouble:
    """The last words of a child; a message it made for users is passed on as it is."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(size - _TAIL_BYTES, 0))
    said = errors.read().decode(errors="replace").strip()
    if code in (UNUSABLE, BAD_CONFIG) and "Traceback" not in said:
        return Trouble(said.removeprefix("polyphase: "), code)
    ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return Trouble(f"The {name} {ended}. The run cannot go on. Its last words:\n{said or '(none)'}")
