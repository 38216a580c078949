"""CPU and memory of the router's process alone, in front of a mock fleet in another process.

CPU is user and system time from /proc. A token's cost is the slope between answers of 1 and of 129 tokens at
the same request rate; a request's cost is an answer of one token. What a frame costs is shared by the tokens
in it, so the number of live streams is part of each result.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from polyphase.v1 import common_pb2, inference_pb2

from backends.catalogue import load_fleet
from router.cli.children import Child, child
from router.cli.dev import Setting
from router.load.requests import RequestOptions
from router.load.run import LoadPlan, LoadRun

MODEL = "llama-3.1-8b"
LONG, SHORT = 129, 1
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
SLOW_FLEET = Path(__file__).parent / "slow_fleet.toml"
GENERATE = "/polyphase.v1.InferenceService/Generate"


@dataclass(frozen=True, slots=True)
class Router:
    """The process under measurement."""

    process: Child

    @property
    def data(self) -> str:
        """Where it listens."""
        return str(self.process.ready["data"])

    def cpu_s(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    def rss_bytes(self) -> int:
        """Resident memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def router(
    fleet: str, policy: str = "predicted", extra: Mapping[str, str] | None = None
) -> AsyncIterator[Router]:
    """A daemon in front of a mock fleet, each a process of its own."""
    setting = Setting(load_fleet(fleet).backends, fleet, policy, 0, 1)
    async with child("mock fleet", setting.mock_arguments(), {}) as mock:
        env = {**setting.daemon_env(mock.ready["mock"]), **(extra or {})}
        async with child("daemon", ("serve", "--supervised"), env) as daemon:
            await asyncio.sleep(1.0)  # lanes come up
            yield Router(daemon)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run took in the router."""

    cpu_s: float
    requests: int
    tokens: int
    live: float
    """Mean number of live streams (Little's law)."""


async def run(to: Router, *, rate: float, tokens: int, per_call: bool, duration_s: float) -> Cost:
    """Offer requests of one size and read the router's CPU time before and after."""
    plan = LoadPlan(
        to.data,
        RequestOptions(MODEL),
        rate=rate,
        duration_s=duration_s,
        prompt_tokens=64,
        output_tokens=tokens,
        per_call=per_call,
    )
    load = LoadRun(plan)
    before = to.cpu_s()
    await load.run()
    cpu_s = to.cpu_s() - before
    report = load.tally.report()
    requests = report["requests"]["ok"]
    assert requests == report["requests"]["total"], report["requests"]
    return Cost(cpu_s, requests, requests * tokens, rate * report["e2e_s"]["mean"])


async def costs(fleet: str, rate: float, per_call: bool, duration_s: float) -> tuple[float, float, float]:
    """µs per request, µs per further token, and the mean number of live streams."""
    async with router(fleet) as under_test:
        await run(under_test, rate=rate, tokens=8, per_call=per_call, duration_s=2.0)  # warm up
        idle = under_test.cpu_s()
        await asyncio.sleep(2.0)
        idle_per_s = (under_test.cpu_s() - idle) / 2.0
        short = await run(under_test, rate=rate, tokens=SHORT, per_call=per_call, duration_s=duration_s)
        long = await run(under_test, rate=rate, tokens=LONG, per_call=per_call, duration_s=duration_s)
    a = (short.cpu_s - idle_per_s * duration_s) / short.requests
    b = (long.cpu_s - idle_per_s * duration_s) / long.requests
    return a * 1e6, (b - a) / (LONG - SHORT) * 1e6, long.live


async def memory_per_1000_streams() -> float:
    """MiB of resident memory that 1,000 open Generate streams add."""
    async with router(str(SLOW_FLEET)) as under_test:
        async with grpc.aio.insecure_channel(under_test.data) as channel:
            await _hold(channel, 10)
            before = under_test.rss_bytes()
            calls = await _hold(channel, 1000)
            after = under_test.rss_bytes()
            for call in calls:
                call.cancel()
    return (after - before) / 2**20


async def _hold(channel: grpc.aio.Channel, count: int) -> list[grpc.aio.UnaryStreamCall]:
    """Open streams and read a token of each, so that all are live."""
    method = channel.unary_stream(
        GENERATE, inference_pb2.GenerateRequest.SerializeToString, inference_pb2.GenerateResponse.FromString
    )
    request = inference_pb2.GenerateRequest(
        model=MODEL, tokens=common_pb2.TokenIds(ids=[1, 2]), max_new_tokens=4000
    )
    calls = [method(request) for _ in range(count)]
    for call in calls:
        await call.read()
    return calls


def rows() -> list[tuple[str, str]]:
    """Generate and Session at two numbers of live streams, and the memory of open streams."""
    table: list[tuple[str, str]] = []
    for fleet, rate in (("gpu-lpu", 100.0), ("homogeneous", 100.0)):
        for name, per_call in (("Generate", True), ("Session", False)):
            request, token, live = asyncio.run(costs(fleet, rate, per_call, 10.0))
            table.append((f"{name}, {fleet}, {live:.0f} live: a request", f"{request:.0f} µs CPU"))
            table.append((f"{name}, {fleet}, {live:.0f} live: a further token", f"{token:.1f} µs CPU"))
    table.append(("memory per 1,000 open streams", f"{asyncio.run(memory_per_1000_streams()):.1f} MiB"))
    return table
