"""The handoff between processes, and what the death of one means to the other."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from polyphase.v1 import worker_pb2

from tests.shell import rig
from tests.shell.rig import lane

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def process(*workers: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A fleet process and its address; killed at the end if it still runs."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "protos")))
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.shell.fleet_process",
        *workers,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert child.stdout is not None
        line = await asyncio.wait_for(child.stdout.readline(), 60)
        yield child, line.decode().strip()
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def failed(end: rig.LaneEnd) -> worker_pb2.PhaseFailed:
    """The first failure on a lane."""

    def found() -> worker_pb2.PhaseFailed | None:
        return next((event.failed for event in end.events if event.HasField("failed")), None)

    got: worker_pb2.PhaseFailed = await end.until(found)
    return got


async def test_split_over_two_processes() -> None:
    """Prefill in one process, decode in another: KV goes over TCP between them, every token is right."""
    made = rig.request("far", 100)
    async with process("p") as (_, there), process("d") as (_, here):
        async with lane(there, "p") as p, lane(here, "d") as d:
            await p.send(rig.prefill(1, made))
            done = await p.event(1, "prefill_done")
            assert done.kv.source == there != here
            await d.send(rig.decode(1, made, done.kv))
            await d.event(1, "decode_done")
            assert d.answer(1) == rig.answer(made, 100)


async def test_killed_producer() -> None:
    """KV of a producer that was killed cannot be pulled; the decode fails typed and soon."""
    made = rig.request("killed", 100)
    async with process("p") as (child, there), process("d") as (_, here):
        async with lane(there, "p") as p, lane(here, "d") as d:
            await p.send(rig.prefill(1, made))
            done = await p.event(1, "prefill_done")
            child.kill()
            await child.wait()
            await d.send(rig.decode(1, made, done.kv))
            assert (await failed(d)).reason == worker_pb2.PhaseFailed.REASON_KV_TRANSFER
            assert 1 not in d.tokens


async def test_sigterm_drains() -> None:
    """On SIGTERM what runs is finished, new work is refused, and the process exits with 0."""
    made = rig.request("drained", 1000)
    async with process("p") as (child, there):
        async with lane(there, "p") as p:
            await p.send(rig.prefill(1, made, decode_here=True))
            await p.until(lambda: p.tokens.get(1))
            child.send_signal(signal.SIGTERM)
            for seq in range(2, 400):
                await p.send(rig.prefill(seq, rig.request(f"late{seq}", 1)))
                await asyncio.sleep(0.005)
                if any(event.HasField("failed") for event in p.events):
                    break
            assert (await failed(p)).reason == worker_pb2.PhaseFailed.REASON_DRAINING
            await p.send(*(rig.stop(seq) for seq in range(2, 400)))
            await p.event(1, "decode_done")
            assert p.answer(1) == rig.answer(made, 1000)
        assert await asyncio.wait_for(child.wait(), 30) == 0


async def test_second_sigterm_hurries() -> None:
    """A second signal ends a drain that would take long, still with 0."""
    async with process("p") as (child, there):
        async with lane(there, "p") as p:
            await p.send(rig.prefill(1, rig.request("endless", 90_000), decode_here=True))
            await p.until(lambda: p.tokens.get(1))
            child.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            assert child.returncode is None
            child.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(child.wait(), 20) == 0
