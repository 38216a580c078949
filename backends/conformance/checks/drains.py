"""The end of a worker's life: it takes nothing new, and ends what runs. Comes last: it need not come back."""

from __future__ import annotations

import asyncio
from typing import Final

from polyphase.v1 import common_pb2, inference_pb2, worker_pb2

from backends.conformance import commands, pulls
from backends.conformance.bench import PROMPT, Bench, Need
from backends.conformance.check import Check
from backends.conformance.lane import Lane, described
from backends.conformance.subject import Subject
from backends.conformance.verdicts import GUIDE, NotCheckedError, ViolationError, expect
from router.model import Phase, Seconds

RUNS_S: Final[Seconds] = 2.0
"""About how long the answer takes that runs during the drain."""
SCOUT: Final = 16
RUNNING: Final = 1
"""Its seq."""
POLL_S: Final[Seconds] = 0.05


async def drain(bench: Bench) -> str:
    """One worker after the other; the producer last, because the others need its KV."""
    if bench.lacks(Need.HERE) and not bench.lacks(Need.DECODE) and bench.lacks(Need.SPLIT):
        raise NotCheckedError(f"it takes {Need.SPLIT}")
    seen: list[str] = []
    for subject in sorted(bench.subjects, key=lambda one: one is bench.prefiller):
        seen.append(f"{subject}: {await _drained(bench, subject)}")
    return "; ".join(seen)


async def _drained(bench: Bench, subject: Subject) -> str:
    control = bench.settings.drain
    assert control is not None
    async with bench.lane(subject) as lane, bench.lane(bench.prefiller) as producer:
        kv = await _begin(bench, subject, lane, producer)
        await control(subject.target.backend)
        tries = await _refuses(bench, subject, lane, producer)
        if kv is None:
            done = await lane.decode_done(RUNNING)
            return f"DRAINING at try {tries}; an answer of {done.output_tokens} tokens went on to its end"
        refused = await pulls.refusal(bench.source(kv), kv, bench.settings.patience_s)
        expect(refused is None, f"KV that was held when the drain began was refused: {refused}")
    return f"DRAINING at try {tries}; KV that was held could still be pulled"


async def _begin(bench: Bench, subject: Subject, lane: Lane, producer: Lane) -> common_pb2.KVHandle | None:
    """Let something run: an answer, or KV that is held where there is no decode; then its handle."""
    if not subject.offers(Phase.DECODE):
        return await bench.minted(lane, RUNNING, bench.request())
    await _start(bench, subject, lane, producer, RUNNING, await _lasting(bench, subject, lane, producer))
    await lane.tokens(RUNNING, 2)
    return None


async def _lasting(
    bench: Bench, subject: Subject, lane: Lane, producer: Lane
) -> inference_pb2.GenerateRequest:
    """An answer that takes about RUNS_S, by how long a short one takes."""
    loop, scout = asyncio.get_running_loop(), RUNNING + 1
    began = loop.time()
    await _start(bench, subject, lane, producer, scout, bench.request(SCOUT))
    await lane.decode_done(scout)
    longest = bench.long_answer(subject).max_new_tokens
    return bench.request(min(longest, max(SCOUT, round(RUNS_S * SCOUT / (loop.time() - began)))))


async def _start(
    bench: Bench,
    subject: Subject,
    lane: Lane,
    producer: Lane,
    seq: int,
    made: inference_pb2.GenerateRequest,
) -> None:
    """A decode, from a prefill here or elsewhere."""
    if subject.offers(Phase.PREFILL):
        await lane.send(commands.prefill(seq, made, decode_here=True))
        return
    kv = await bench.minted(producer, seq, made)
    await lane.send(commands.decode(seq, made, kv, bench.first_index))


async def _refuses(bench: Bench, subject: Subject, lane: Lane, producer: Lane) -> int:
    """New work until it is refused; how often that took. The drain may take a while to begin."""
    loop = asyncio.get_running_loop()
    until = loop.time() + bench.settings.patience_s
    for seq in range(100, 10_000):
        failed = await _refused(bench, subject, lane, producer, seq)
        if failed is not None and failed.reason == worker_pb2.PhaseFailed.REASON_DRAINING:
            return seq - 99
        if failed is not None:
            raise ViolationError(f"while it drains, new work failed as {described(failed)}")
        expect(loop.time() < until, f"{subject} still takes new work after its drain")
        await asyncio.sleep(POLL_S)
    raise ViolationError(f"{subject} still takes new work after its drain")


async def _refused(
    bench: Bench, subject: Subject, lane: Lane, producer: Lane, seq: int
) -> worker_pb2.PhaseFailed | None:
    """How new work is refused; None when it began, and was stopped."""
    made = bench.request(1, PROMPT)
    if subject.offers(Phase.DECODE):
        await _start(bench, subject, lane, producer, seq, made)
    else:
        await lane.send(commands.prefill(seq, made))
    one = lane.sequences[seq]
    await lane.until(lambda: one.ended, "an answer to new work")
    if one.prefill_done is not None and one.prefill_done.HasField("kv"):
        await lane.send(commands.release(one.prefill_done.kv))
    return one.failed


CHECKS: Final = (
    Check(
        "drain",
        "A worker that drains refuses new work as DRAINING and ends what runs",
        f"{GUIDE}, duty 13",
        drain,
        (Need.PREFILL, Need.DRAIN),
    ),
)
