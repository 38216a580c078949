"""Handles and KV that are not what they should be, at the consumer: a typed failure, no token."""

from __future__ import annotations

from typing import Final

from polyphase.v1 import worker_pb2

from backends.conformance import commands, relay
from backends.conformance.bench import Bench, Need
from backends.conformance.check import Check
from backends.conformance.lane import Lane, described
from backends.conformance.verdicts import GUIDE, NotCheckedError, expect

ONCE: Final = f"{GUIDE}, duty 4"
BROKEN: Final = f"{GUIDE}, duty 7"
CAME: Final = f"{GUIDE}, duty 8"
STALE: Final = worker_pb2.PhaseFailed.REASON_KV_STALE
TRANSFER: Final = worker_pb2.PhaseFailed.REASON_KV_TRANSFER


async def _fails(lane: Lane, seq: int, *reasons: worker_pb2.PhaseFailed.Reason) -> worker_pb2.PhaseFailed:
    """The failure of a decode that must fail for one of these reasons, without a token."""
    failed = await lane.failed(seq)
    wanted = " or ".join(worker_pb2.PhaseFailed.Reason.Name(one).removeprefix("REASON_") for one in reasons)
    expect(failed.reason in reasons, f"it failed as {described(failed)}, not as {wanted}")
    came = len(lane.sequences[seq].tokens)
    expect(not came, f"{came} tokens came from KV that is not the request's")
    return failed


async def replayed(bench: Bench) -> str:
    """A second StartDecode with a handle that was used."""
    made = bench.request()
    async with bench.lanes() as (p, d):
        kv = await bench.minted(p, 1, made)
        await d.send(commands.decode(2, made, kv, bench.first_index))
        await d.decode_done(2)
        await d.send(commands.decode(3, made, kv, bench.first_index))
        failed = await _fails(d, 3, STALE)
        await bench.reports.freed(*bench.pair, why="after a replayed handle")
    return described(failed)


async def layout(bench: Bench) -> str:
    """KV of a layout that the consumer does not take; it must not even ask for it."""
    made = bench.request()
    async with bench.lanes() as (p, d):
        kv, expected = await bench.led(p, 1, made, relay.refused)
        kv.layout = "a-layout-that-nobody-has"
        await d.send(commands.decode(2, made, kv, bench.first_index))
        failed = await _fails(d, 2, worker_pb2.PhaseFailed.REASON_KV_LAYOUT)
        expect(not expected.reached.is_set(), "KV of an unknown layout was asked for before it was refused")
        await p.send(commands.release(expected.kv))
        await bench.reports.freed(*bench.pair, why="after a refused layout")
    return described(failed)


async def foreign(bench: Bench) -> str:
    """A valid handle, of another request."""
    made, other = bench.request(), bench.request()
    async with bench.lanes() as (p, d):
        kv = await bench.minted(p, 1, other)
        await d.send(commands.decode(2, made, kv, bench.first_index))
        failed = await _fails(d, 2, STALE)
        await p.send(commands.release(kv))
        await bench.reports.freed(*bench.pair, why="after a foreign handle")
    return described(failed)


async def _relayed(
    bench: Bench, script: relay.Script, *reasons: worker_pb2.PhaseFailed.Reason
) -> tuple[worker_pb2.PhaseFailed, relay.Pass]:
    """A handoff through the relay that must fail; both sides are free afterwards."""
    made = bench.request()
    async with bench.lanes() as (p, d):
        kv, expected = await bench.led(p, 1, made, script)
        await d.send(commands.decode(2, made, kv, bench.first_index))
        await bench.reached(expected, d, 2)
        await d.until(lambda: d.sequences[2].ended, "the end of a decode")
        if script is relay.corrupted and not expected.chunks:
            raise NotCheckedError("the KV came without chunks: there is nothing to corrupt")
        failed = await _fails(d, 2, *reasons)
        await p.send(commands.release(expected.kv))
        await bench.reports.freed(*bench.pair, why="after a transfer that went wrong")
    return failed, expected


async def fingerprint(bench: Bench) -> str:
    """The producer says in the end that this is another cache."""
    failed, _ = await _relayed(bench, relay.relabelled, STALE)
    return described(failed)


async def corrupted(bench: Bench) -> str:
    """One bit of the last chunk is another one."""
    failed, expected = await _relayed(bench, relay.corrupted, TRANSFER, STALE)
    return f"the last of {expected.chunks} chunks: {described(failed)}"


async def refused(bench: Bench) -> str:
    """The producer says KV_STALE."""
    failed, _ = await _relayed(bench, relay.refused, STALE)
    return described(failed)


async def broken_off(bench: Bench) -> str:
    """The producer goes away."""
    failed, _ = await _relayed(bench, relay.broken_off, TRANSFER)
    return described(failed)


CHECKS: Final = (
    Check(
        "handle.replayed",
        "A decode with a handle that was used fails as KV_STALE, without a token",
        ONCE,
        replayed,
        (Need.SPLIT,),
    ),
    Check(
        "handle.layout",
        "KV of a layout that the consumer does not take is refused as KV_LAYOUT before anything moves",
        CAME,
        layout,
        (Need.SPLIT,),
    ),
    Check(
        "handle.foreign",
        "A decode with the handle of another request fails as KV_STALE",
        CAME,
        foreign,
        (Need.SPLIT,),
    ),
    Check(
        "handle.fingerprint",
        "KV with another fingerprint than the handle's fails as KV_STALE",
        CAME,
        fingerprint,
        (Need.SPLIT,),
    ),
    Check(
        "handle.corrupted",
        "KV that was altered on its way is never decoded",
        CAME,
        corrupted,
        (Need.SPLIT,),
    ),
    Check(
        "handle.refused",
        "A decode whose pull is refused fails with the producer's reason",
        BROKEN,
        refused,
        (Need.SPLIT,),
    ),
    Check(
        "handle.broken-off",
        "A decode whose pull breaks off fails as KV_TRANSFER",
        BROKEN,
        broken_off,
        (Need.SPLIT,),
    ),
)
