"""Much of everything on the data port of a real router: it stays up, stays small, and serves others."""

from __future__ import annotations

import asyncio
import struct

import grpc.aio
import hpack
import pytest

from tests.hostile.raw import (
    CONTINUATION,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    START,
    call_headers,
    connection,
    envelope,
)
from tests.hostile.victim import Victim
from tests.live.wires import END_HEADERS, frame
from tests.shell.rig import answer, request

pytestmark = pytest.mark.process

OK, LATE, EXHAUSTED = 0, 4, 8
BODY = envelope(request("raw", 4).SerializeToString())
CANCEL = struct.pack(">I", 8)


def opened(stream: int) -> bytes:
    """A call's HEADERS frame; it refers to no compression state."""
    block = hpack.Encoder().encode(call_headers(), huffman=False)
    return frame(HEADERS, END_HEADERS, stream, block)


async def test_rapid_resets(victim: Victim) -> None:
    """Five thousand calls, each reset at once: the connection's next call and everybody else are served."""
    async with connection(victim.port) as raw, connection(victim.port) as bystander:
        for stream in range(1, 10_001, 2):
            await raw.send(opened(stream) + frame(RST_STREAM, 0, stream, CANCEL))
        await bystander.call(1, BODY)
        assert (await bystander.outcome(1)).status == OK
        await raw.call(10_001, BODY)
        assert (await raw.outcome(10_001)).status == OK


async def test_rapid_resets_of_whole_requests(victim: Victim) -> None:
    """Requests that are complete reach the core, and are cancelled there: nothing of them is left."""
    async with connection(victim.port) as raw, connection(victim.port) as bystander:
        for stream in range(1, 4_001, 2):
            await raw.headers(stream, call_headers())
            await raw.message(stream, BODY)
            await raw.send(frame(RST_STREAM, 0, stream, CANCEL))
        await bystander.call(1, BODY)
        assert (await bystander.outcome(1)).status == OK


async def test_a_burst_of_good_calls(victim: Victim) -> None:
    """Two thousand calls at the same time are no attack: each gets its answer."""
    async with victim.data() as channel:
        generate = channel.unary_stream("/polyphase.v1.InferenceService/Generate")
        wanted = [request(f"burst{i}", 1) for i in range(2_000)]
        calls = [generate(one.SerializeToString()) for one in wanted]
        answers = await asyncio.gather(*(_all(call) for call in calls))
        assert all(answers)
    assert answer(wanted[0], 1)


async def _all(call: grpc.aio.UnaryStreamCall) -> bool:
    return len([message async for message in call]) > 0


async def test_a_flood_of_pings(victim: Victim) -> None:
    """Too many pings are answered with a goodbye."""
    async with connection(victim.port) as raw:
        for _ in range(1_000):
            await raw.send(frame(PING, 0, 0, b"12345678"))
        assert await raw.told_off()


async def test_a_flood_of_settings(victim: Victim) -> None:
    """Twenty thousand changes of mind."""
    async with connection(victim.port) as raw:
        change = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535))
        for _ in range(200):
            await raw.send(change * 100)
        await raw.call(1, BODY)
        outcome = await raw.outcome(1)
        assert outcome.status == OK or outcome.closed


async def test_a_flood_of_continuations(victim: Victim) -> None:
    """Headers that never end, empty ones and full ones: refused, and not kept."""
    for part, times in ((b"", 30_000), (b"\x00\x01x\x7f\x91\x4d" + b"a" * 10_000, 3_000)):
        async with connection(victim.port) as raw:
            block = hpack.Encoder().encode(call_headers(), huffman=False)
            await raw.send(frame(HEADERS, 0, 1, block))
            for _ in range(times // 100):
                await raw.send(frame(CONTINUATION, 0, 1, part) * 100)
            await raw.send(frame(CONTINUATION, END_HEADERS, 1, b""))
            outcome = await raw.outcome(1)
            assert outcome.status == EXHAUSTED or outcome.reset is not None or outcome.closed, outcome


async def test_thousands_of_idle_calls(victim: Victim) -> None:
    """Calls without a message each end when the time for it is over; meanwhile others are served."""
    async with connection(victim.port) as raw, connection(victim.port) as bystander:
        streams = range(1, 4_001, 2)
        for stream in streams:
            await raw.headers(stream, call_headers())
        await bystander.call(1, BODY)
        assert (await bystander.outcome(1)).status == OK
        assert {(await raw.outcome(stream, 30)).status for stream in streams} == {LATE}


async def test_hundreds_of_connections(victim: Victim) -> None:
    """Connections cost little, and each new one is served."""
    writers: list[asyncio.StreamWriter] = []
    try:
        for _ in range(500):
            _, writer = await asyncio.open_connection("127.0.0.1", victim.port)
            writer.write(START)
            writers.append(writer)
        await victim.serves()
    finally:
        for writer in writers:
            writer.transport.abort()
