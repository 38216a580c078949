"""Routers beside each other, requests that are alike, and routers that die."""

from __future__ import annotations

from typing import Final

from polyphase.v1 import common_pb2

from backends.conformance import commands, pulls, relay
from backends.conformance.bench import Bench, Need
from backends.conformance.check import Check
from backends.conformance.verdicts import GUIDE, expect

ANSWER: Final = 64
APART: Final = f"{GUIDE}, duty 11"
BREAK: Final = f"{GUIDE}, duty 12"


async def two_routers(bench: Bench) -> str:
    """The same seq, request id and epoch on two lanes, for different prompts; one of the routers dies."""
    subject = bench.prefiller
    one, other = bench.request(), bench.request()
    other.request_id = one.request_id
    async with bench.lane(subject, "router-a") as a:
        async with bench.lane(subject, "router-b") as b:
            await b.send(commands.prefill(1, other))
            await a.send(commands.prefill(1, one))
            theirs, ours = (await b.prefill_done(1)).kv, (await a.prefill_done(1)).kv
        await _refused(bench, theirs)
        await _whole(bench, ours)
        await bench.reports.freed(subject, why="after two routers")
    return f"both had {one.request_id} as seq 1; the end of one lane took its own KV only"


async def alike(bench: Bench) -> str:
    """One router asks twice for the same, under two seqs."""
    subject, made = bench.prefiller, bench.request()
    async with bench.lane(subject) as lane:
        await lane.send(commands.prefill(1, made), commands.prefill(2, made))
        first, second = (await lane.prefill_done(1)).kv, (await lane.prefill_done(2)).kv
        await _whole(bench, first)
        await _whole(bench, second)
        await bench.reports.freed(subject, why="after two requests that are alike")
    return "two handles, each with KV of its own"


async def _whole(bench: Bench, kv: common_pb2.KVHandle) -> None:
    try:
        pulled = await pulls.pull(bench.source(kv), kv, bench.settings.patience_s)
    except pulls.PullRefusedError as refused:
        expect(False, f"the handle of seq 1 was refused after something else ended: {refused}")
        return
    expect(pulled.final.fingerprint == kv.prefix_hash, "a handle was answered with the KV of another")


async def _refused(bench: Bench, kv: common_pb2.KVHandle) -> None:
    refused = await pulls.refusal(bench.source(kv), kv, bench.settings.patience_s)
    expect(refused is not None, "KV outlived the lane that asked for it")


async def beside(bench: Bench) -> str:
    """Two routers decode on one worker; one of them dies."""
    subject = bench.here
    async with bench.lane(subject, "router-a") as a:
        async with bench.lane(subject, "router-b") as b:
            await b.send(commands.prefill(1, bench.long_answer(subject), decode_here=True))
            await a.send(commands.prefill(1, bench.request(ANSWER), decode_here=True))
            await b.tokens(1, 2)
        done = await a.decode_done(1)
        await bench.reports.freed(subject, why="after the end of a lane and an answer")
    return f"an answer of {done.output_tokens} tokens ended well beside a lane that broke"


async def broken(bench: Bench) -> str:
    """A router dies while it holds a handle, and within a prefill."""
    subject = bench.prefiller
    async with bench.lane(subject) as lane:
        kv = await bench.minted(lane, 1, bench.request())
        await lane.send(commands.prefill(2, bench.long_prompt(subject)))
    await bench.reports.freed(subject, why="after its lane broke")
    await _refused(bench, kv)
    return "KV that was held is free, and its handle stale"


async def broken_decode(bench: Bench) -> str:
    """A router dies within a decode and within a transfer."""
    made, waiting = bench.long_answer(*bench.pair), bench.request()
    async with bench.lanes() as (p, d):
        kv = await bench.minted(p, 1, made)
        await d.send(commands.decode(2, made, kv, bench.first_index))
        await d.tokens(2, 2)
        led, expected = await bench.led(p, 3, waiting, relay.held_up)
        await d.send(commands.decode(4, waiting, led, bench.first_index))
        await bench.reached(expected, d, 4)
    await bench.reports.freed(*bench.pair, why="after their lanes broke")
    return "a decode and a transfer in progress are free"


CHECKS: Final = (
    Check(
        "lane.two-routers",
        "A sequence is named by its lane and its seq; seqs and request ids of another router are others",
        APART,
        two_routers,
        (Need.PREFILL,),
    ),
    Check(
        "lane.alike",
        "Two sequences of the same request have KV and ends of their own",
        APART,
        alike,
        (Need.PREFILL,),
    ),
    Check(
        "lane.beside",
        "The end of one lane leaves the work of the others alone",
        APART,
        beside,
        (Need.HERE,),
    ),
    Check(
        "lane.broken",
        "When a lane breaks, what it started stops and its KV is free, without waiting for leases",
        BREAK,
        broken,
        (Need.PREFILL,),
    ),
    Check(
        "lane.broken-decode",
        "When a lane breaks, its decodes stop and its transfers end",
        BREAK,
        broken_decode,
        (Need.SPLIT,),
    ),
)
