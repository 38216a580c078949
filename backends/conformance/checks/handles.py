"""Handles that are not what they should be, at the producer: refused as stale, and never KV."""

from __future__ import annotations

import asyncio
from typing import Final

from polyphase.v1 import common_pb2

from backends.conformance import pulls
from backends.conformance.bench import Bench, Need
from backends.conformance.check import Check
from backends.conformance.verdicts import GUIDE, NotCheckedError, ViolationError, expect

ONCE: Final = f"{GUIDE}, duty 4"


def _stale(refused: pulls.PullRefusedError | None, what: str) -> None:
    expect(refused is not None, f"KV was handed out for {what}")
    assert refused is not None
    expect(refused.reason == "KV_STALE", f"{what} ended with {refused} instead of KV_STALE")


async def once(bench: Bench) -> str:
    """The suite pulls twice."""
    subject, within_s = bench.prefiller, bench.settings.patience_s
    async with bench.lane(subject) as lane:
        kv = await bench.minted(lane, 1, bench.request())
        source = bench.source(kv)
        try:
            pulled = await pulls.pull(source, kv, within_s)
        except pulls.PullRefusedError as refused:
            raise ViolationError(f"a fresh handle was refused: {refused}") from refused
        same = pulled.final.fingerprint == kv.prefix_hash
        expect(same, "the fingerprint of the KV is not the handle's prefix_hash")
        sized = pulled.final.bytes > 0 or not subject.spec.kv_bytes_per_token
        expect(sized, "the last message of a pull says 0 bytes")
        _stale(await pulls.refusal(source, kv, within_s), "a handle that was used")
        await bench.reports.freed(subject, why="after its KV was pulled")
    return f"{pulled.final.bytes} bytes in {pulled.chunks} chunks; the second pull is KV_STALE"


async def race(bench: Bench) -> str:
    """Two pulls at the same time."""
    subject = bench.prefiller
    async with bench.lane(subject) as lane:
        kv = await bench.minted(lane, 1, bench.long_prompt(subject))
        ends = await pulls.both(bench.source(kv), kv, bench.settings.patience_s)
        refused = [end for end in ends if end is not None]
        expect(len(refused) == 1, f"{len(refused)} of 2 pulls of a handle were refused; it must be 1")
        _stale(refused[0], "the second of two pulls")
        await bench.reports.freed(subject, why="after two pulls")
    return "one of two pulls at the same time is KV_STALE"


FORGED: Final[dict[str, object]] = {
    "producer": "somebody-else",
    "incarnation": "another-boot",
    "request_id": "another-request",
    "epoch": 77,
    "layout": "another-layout",
    "tokens": 1,
    "prefix_hash": 1,
    "connector": b"\xff another",
}


async def fields(bench: Bench) -> str:
    """One field after the other is not what was minted; then the handle as it was minted."""
    subject, taken = bench.prefiller, []
    async with bench.lane(subject) as lane:
        kv = await bench.minted(lane, 1, bench.request())
        for seq, (name, value) in enumerate(FORGED.items(), start=2):
            refused = await _forged(bench, kv, name, value)
            if refused is None:
                taken.append(name)
                kv = await bench.minted(lane, seq, bench.request())
            else:
                _stale(refused, f"a forged {name}")
        expect(not taken, f"KV was handed out for handles with another {', '.join(taken)}")
        honest = await pulls.refusal(bench.source(kv), kv, bench.settings.patience_s)
        expect(honest is None, f"after forged pulls the handle itself was refused: {honest}")
        await bench.reports.freed(subject, why="after its KV was pulled")
    return f"another {', '.join(FORGED)}: KV_STALE; the handle itself still serves"


async def _forged(
    bench: Bench, kv: common_pb2.KVHandle, name: str, value: object
) -> pulls.PullRefusedError | None:
    forged = common_pb2.KVHandle()
    forged.CopyFrom(kv)
    setattr(forged, name, value)
    return await pulls.refusal(bench.source(kv), forged, bench.settings.patience_s)


async def lease(bench: Bench) -> str:
    """Nobody pulls until the lease is over."""
    subject, longest_s = bench.prefiller, bench.settings.longest_lease_s
    async with bench.lane(subject) as lane:
        kv = await bench.minted(lane, 1, bench.request())
        if kv.lease_s > longest_s:
            raise NotCheckedError(f"leases last {kv.lease_s:.3g} s, and {longest_s:g} s are waited for")
        await asyncio.sleep(kv.lease_s)
        await bench.reports.freed(subject, why="after their lease")
        _stale(await pulls.refusal(bench.source(kv), kv, bench.settings.patience_s), "a lease that is over")
    return f"free after {kv.lease_s:.3g} s, and KV_STALE"


async def restart(bench: Bench) -> str:
    """A handle of the boot before."""
    subject, control = bench.prefiller, bench.settings.restart
    assert control is not None
    before = subject.incarnation
    made = bench.request()
    async with bench.lane(subject) as lane:
        kv = await bench.minted(lane, 1, made)
        await control(subject.target.backend)
        await lane.until_end()
    try:
        await bench.reports.reborn(subject)
    except TimeoutError:
        raise ViolationError(f"{subject} did not come back within {bench.settings.patience_s:g} s") from None
    expect(subject.incarnation != before, "a restarted worker has the incarnation that it had before")
    subject.level = subject.stuck = 0
    _stale(
        await pulls.refusal(bench.source(kv), kv, bench.settings.patience_s), "a handle of the boot before"
    )
    await bench.reports.freed(subject, why="after a restart")
    return f"boot {before[:8]} is now {subject.incarnation[:8]}; its handle is KV_STALE"


CHECKS: Final = (
    Check("handle.once", "A handle serves one pull; then it is stale", ONCE, once, (Need.PREFILL,)),
    Check(
        "handle.race",
        "Of two pulls of a handle at the same time one gets the KV",
        ONCE,
        race,
        (Need.PREFILL,),
    ),
    Check(
        "handle.fields",
        "A handle is compared field by field with what was minted; a forged one takes nothing away",
        f"{GUIDE}, duties 4 and 5",
        fields,
        (Need.PREFILL,),
    ),
    Check(
        "handle.lease",
        "KV that nobody pulls is free when its lease is over, and its handle stale",
        f"{GUIDE}, duty 6",
        lease,
        (Need.PREFILL,),
    ),
    Check(
        "handle.restart",
        "After a restart the boot id is another, and every handle of the old boot is stale",
        f"{GUIDE}, duty 5",
        restart,
        (Need.PREFILL, Need.RESTART),
    ),
)
