"""A stop at every point of a request's life, and what is free afterwards by the worker's own report."""

from __future__ import annotations

import asyncio
from typing import Final

from polyphase.v1 import common_pb2

from backends.conformance import commands, pulls, relay
from backends.conformance.bench import Bench, Need
from backends.conformance.check import Check
from backends.conformance.lane import Lane
from backends.conformance.verdicts import GUIDE, NotCheckedError, expect
from router.model import Phase, Seconds

SHARES: Final = (0.05, 0.2, 0.4, 0.6)
"""Of the time that a prefill takes, after which it is stopped."""
TRIES: Final = 3
STOPS: Final = f"{GUIDE}, duty 3"


async def queued(bench: Bench) -> str:
    """Start and stop in one message: nothing can have begun."""
    for subject in bench.subjects:
        if not subject.offers(Phase.PREFILL):
            continue
        async with bench.lane(subject) as lane:
            here = subject.offers(Phase.DECODE)
            for seq in range(1, 9):
                made = bench.long_answer(subject) if here else bench.request()
                await lane.send(commands.prefill(seq, made, decode_here=here), commands.stop(seq))
            await bench.reports.freed(subject, why="after starts that were stopped in the same message")
            await _silence(lane, *range(1, 9))
    return "8 starts, each with its stop in the same message"


async def prefill(bench: Bench) -> str:
    """Stops at several points of a long prefill."""
    subject, caught = bench.prefiller, 0
    async with bench.lane(subject) as lane:
        took_s = await _prefill_s(bench, lane)
        for seq, share in enumerate(SHARES, start=2):
            await lane.send(commands.prefill(seq, bench.long_prompt(subject)))
            await asyncio.sleep(took_s * share)
            caught += lane.sequences[seq].prefill_done is None
            await lane.send(commands.stop(seq))
        await bench.reports.freed(subject, why="after stops within prefills")
        await _silence(lane, *range(2, 2 + len(SHARES)))
    if not caught:
        raise NotCheckedError(f"every prefill of {took_s * 1e3:.3g} ms was over when its stop was sent")
    return f"{caught} of {len(SHARES)} prefills of {took_s * 1e3:.3g} ms were stopped before their end"


async def _prefill_s(bench: Bench, lane: Lane) -> Seconds:
    """How long a long prefill takes."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    kv = await bench.minted(lane, 1, bench.long_prompt(bench.prefiller))
    took_s = loop.time() - began
    await lane.send(commands.release(kv))
    return took_s


async def held(bench: Bench) -> str:
    """A stop that crosses PrefillDone: the handle is out, nobody will pull."""
    subject = bench.prefiller
    async with bench.lane(subject) as lane:
        kv = await bench.minted(lane, 1, bench.request())
        await lane.send(commands.stop(1))
        await bench.reports.freed(subject, why="after the stop of a prefill that was done")
        return await _stale(bench, kv, "after its prefill was stopped")


async def released(bench: Bench) -> str:
    """The router gives KV back."""
    subject = bench.prefiller
    async with bench.lane(subject) as lane:
        kv = await bench.minted(lane, 1, bench.request())
        await lane.send(commands.release(kv), commands.release(kv))
        await bench.reports.freed(subject, why="after ReleaseKV")
        return await _stale(bench, kv, "after ReleaseKV")


async def _stale(bench: Bench, kv: common_pb2.KVHandle, when: str) -> str:
    refused = await pulls.refusal(bench.source(kv), kv, bench.settings.patience_s)
    expect(refused is not None, f"KV was handed out {when}")
    assert refused is not None
    expect(refused.reason == "KV_STALE", f"a pull {when} ended with {refused} instead of KV_STALE")
    return f"free, and a pull is refused as {refused.reason}"


async def transfer(bench: Bench) -> str:
    """A stop while the consumer waits for KV that does not come."""
    made = bench.request()
    async with bench.lanes() as (p, d):
        kv, expected = await bench.led(p, 1, made, relay.held_up)
        await d.send(commands.decode(2, made, kv, bench.first_index))
        await bench.reached(expected, d, 2)
        await d.send(commands.stop(2))
        await _left(bench, expected)
        await p.send(commands.release(expected.kv))
        await bench.reports.freed(*bench.pair, why="after a stop within a transfer")
        await _silence(d, 2)
    return "the pull was given up, and the reservation is free"


async def _left(bench: Bench, expected: relay.Pass) -> None:
    """The consumer gives its pull up well before the producer would."""
    try:
        async with asyncio.timeout(bench.settings.patience_s / 2):
            await expected.left.wait()
    except TimeoutError:
        expect(False, "the consumer goes on with a pull whose sequence was stopped")


async def decode(bench: Bench) -> str:
    """A stop in the middle of an answer."""
    made = bench.long_answer(*bench.pair)
    async with bench.lanes() as (p, d):
        kv = await bench.minted(p, 1, made)
        await d.send(commands.decode(2, made, kv, bench.first_index))
        await d.tokens(2, 3)
        await d.send(commands.stop(2))
        sequence = d.sequences[2]
        before, left = len(sequence.tokens), made.max_new_tokens - len(sequence.tokens)
        if sequence.ended:
            raise NotCheckedError(f"an answer of {made.max_new_tokens} tokens was over before its stop")
        await bench.reports.freed(*bench.pair, why="after a stop within a decode")
        await _silence(d, 2)
        after = len(sequence.tokens) - before
        # A short rest may have been on its way; half of a long answer was not.
        expect(after < max(left / 2, 2), f"a stopped answer went on for {after} of {left} tokens")
    return f"stopped at token {before} of {made.max_new_tokens}; {after} more were on their way"


async def gone_consumer(bench: Bench) -> str:
    """Two pulls at once: when one is refused, the other has claimed the KV, and is given up."""
    subject = bench.prefiller
    async with bench.lane(subject) as lane:
        for seq in range(1, 1 + TRIES):
            kv = await bench.minted(lane, seq, bench.long_prompt(subject))
            claimed = await _given_up(bench, kv)
            await bench.reports.freed(subject, why="after a consumer went away within its pull")
            if claimed:
                return f"{kv.tokens} tokens of KV were claimed by a pull that was given up; free"
    raise NotCheckedError(f"the KV was there before its pull could be given up, {TRIES} times")


async def _given_up(bench: Bench, kv: common_pb2.KVHandle) -> bool:
    """Whether a pull was given up that had claimed the KV, and not brought it yet."""
    within_s = bench.settings.patience_s
    pulling = [asyncio.create_task(pulls.refusal(bench.source(kv), kv, within_s)) for _ in range(2)]
    try:
        done, _ = await asyncio.wait(pulling, return_when=asyncio.FIRST_COMPLETED)
        return all(task.result() is not None for task in done)
    finally:
        for task in pulling:
            task.cancel()
        await asyncio.gather(*pulling, return_exceptions=True)


async def _silence(lane: Lane, *seqs: int) -> None:
    """Nothing more comes for sequences that were stopped and are free."""
    before = [len(lane.sequences[seq].tokens) for seq in seqs]
    await lane.until_reports(2)
    late = [seq for seq, count in zip(seqs, before, strict=True) if len(lane.sequences[seq].tokens) > count]
    expect(not late, f"tokens still came for {late} after they were stopped and free")


CHECKS: Final = (
    Check("cancel.queued", "A stop frees what waits", STOPS, queued, (Need.PREFILL,)),
    Check("cancel.prefill", "A stop frees a prefill in progress", STOPS, prefill, (Need.PREFILL,)),
    Check("cancel.held", "A stop frees KV that waits for a peer", STOPS, held, (Need.PREFILL,)),
    Check("cancel.release", "ReleaseKV frees KV that nobody will pull", STOPS, released, (Need.PREFILL,)),
    Check(
        "cancel.transfer",
        "A stop within a transfer ends the pull and frees the reservation",
        STOPS,
        transfer,
        (Need.SPLIT,),
    ),
    Check(
        "cancel.decode", "A stop within a decode frees it, and its tokens end", STOPS, decode, (Need.SPLIT,)
    ),
    Check(
        "cancel.consumer",
        "A consumer that goes away within its pull frees the producer's copy",
        f"{GUIDE}, duty 7",
        gone_consumer,
        (Need.PREFILL,),
    ),
)
