"""What a phase leads to when all goes well, and what a worker that does not offer it says."""

from __future__ import annotations

from typing import Final

from polyphase.v1 import common_pb2, inference_pb2, worker_pb2

from backends.conformance import commands
from backends.conformance.bench import PROMPT, Bench, Need
from backends.conformance.check import Check
from backends.conformance.lane import described
from backends.conformance.subject import Subject
from backends.conformance.verdicts import GUIDE, PROTO, NotCheckedError, expect
from router.model import Phase

ANSWER: Final = 24
CROWD: Final = 12
TABLE: Final = f"{GUIDE}, Commands and what they lead to"
LENGTH: Final = common_pb2.FINISH_REASON_LENGTH
STOP: Final = common_pb2.FINISH_REASON_STOP


async def here(bench: Bench) -> str:
    """Both phases on one worker."""
    subject = bench.here
    async with bench.lane(subject) as lane:
        await lane.send(commands.prefill(1, bench.request(ANSWER), decode_here=True))
        await lane.prefill_done(1)
        done = await lane.decode_done(1)
        expect(lane.sequences[1].tokens, "DecodeDone came without any token")
        await bench.reports.freed(subject, why="after an answer")
    return f"PrefillDone without a handle, {done.output_tokens} tokens, DecodeDone"


async def limit(bench: Bench) -> str:
    """An answer ends at its limit, whether or not the model would have ended it before."""
    if bench.lacks(Need.HERE) and bench.lacks(Need.SPLIT):
        raise NotCheckedError(f"it takes {Need.HERE}, or {Need.SPLIT}")
    seen: list[str] = []
    for count in (1, 2, ANSWER):
        for way in bench.ways:
            done, tokens = await bench.answered(bench.request(count), way)
            came = max(len(tokens), done.output_tokens)
            expect(came <= count, f"{came} tokens came, {way}, where max_new_tokens is {count}")
            expect(done.reason == LENGTH, f"an answer to its limit ended as {_reason(done)}, {way}")
            seen.append(f"{came} of {count}")
    return f"{', '.join(seen)} tokens; one free to stop ended as {await _free_to_stop(bench)}"


async def _free_to_stop(bench: Bench) -> str:
    made = bench.request(4 * ANSWER)
    made.sampling.ignore_eos = False
    done, _ = await bench.answered(made, bench.ways[0])
    expect(done.reason in (LENGTH, STOP), f"an answer ended as {_reason(done)}")
    early = done.output_tokens < 4 * ANSWER
    expect(done.reason == STOP or not early, f"LENGTH after {done.output_tokens} of {4 * ANSWER} tokens")
    return f"{_reason(done)} after {done.output_tokens}"


def _reason(done: worker_pb2.DecodeDone) -> str:
    known = common_pb2.FinishReason.DESCRIPTOR.values_by_number.get(done.reason)
    return str(done.reason) if known is None else str(known.name).removeprefix("FINISH_REASON_")


async def prefill(bench: Bench) -> str:
    """A prefill for a peer gives a handle that says what it is."""
    subject = bench.prefiller
    made = bench.request()
    async with bench.lane(subject) as lane:
        await lane.send(commands.prefill(1, made))
        done = await lane.prefill_done(1)
        expect(done.HasField("kv"), "PrefillDone holds no handle")
        _minted(subject, made, done.kv)
        await lane.send(commands.release(done.kv))
        tokens = len(lane.sequences[1].tokens)
        await bench.reports.freed(subject, why="after ReleaseKV")
    return f"a handle of {done.kv.tokens} tokens, leased for {done.kv.lease_s:.3g} s, {tokens} tokens before"


def _minted(subject: Subject, made: inference_pb2.GenerateRequest, kv: common_pb2.KVHandle) -> None:
    wanted = {
        "producer": subject.target.backend,
        "incarnation": subject.incarnation,
        "request_id": made.request_id,
        "epoch": 1,
        "layout": subject.spec.kv_layout,
        "tokens": PROMPT,
    }
    wrong = [
        f"{name} {getattr(kv, name)!r} instead of {value!r}"
        for name, value in wanted.items()
        if getattr(kv, name) != value
    ]
    expect(not wrong, f"the handle says {', '.join(wrong)}")
    expect(kv.lease_s > 0, f"the handle's lease is {kv.lease_s} s")


async def split(bench: Bench) -> str:
    """Prefill, hand over, decode."""
    made, first = bench.request(ANSWER), bench.first_index
    async with bench.lanes() as (p, d):
        kv = await bench.minted(p, 1, made)
        await d.send(commands.decode(2, made, kv, first))
        moved = await d.kv_moved(2)
        done = await d.decode_done(2)
        expect(d.sequences[2].tokens, "DecodeDone came without any token")
        if bench.prefiller.spec.kv_bytes_per_token:
            expect(moved.bytes > 0, "KVMoved moved 0 bytes")
        await bench.reports.freed(*bench.pair, why="after a handoff and its answer")
    return f"{moved.bytes} bytes in {moved.transfer_s:.3g} s, tokens from {first} to {done.output_tokens - 1}"


async def one_token(bench: Bench) -> str:
    """The shortest answer: nothing is left to decode where prefill gave its token."""
    made, first = bench.request(1), bench.first_index
    async with bench.lanes() as (p, d):
        kv = await bench.minted(p, 1, made)
        await d.send(commands.decode(2, made, kv, first))
        done = await d.decode_done(2)
        expect(done.output_tokens == 1, f"decode_done counts {done.output_tokens} tokens")
        came = len(d.sequences[2].tokens)
        await bench.reports.freed(*bench.pair, why="after an answer of one token")
    return f"first_index {first}, {came} tokens decoded, DecodeDone of 1"


async def crowd(bench: Bench) -> str:
    """Many sequences at once, each with its own end."""
    count = min(CROWD, max(bench.decoder.spec.max_num_seqs, 2))
    requests = {seq: bench.request(ANSWER, PROMPT + 5 * seq) for seq in range(1, count + 1)}
    first = bench.first_index
    async with bench.lanes() as (p, d):
        await p.send(*(commands.prefill(seq, made) for seq, made in requests.items()))
        for seq, made in requests.items():
            kv = (await p.prefill_done(seq)).kv
            kv.source = bench.source(kv)
            await d.send(commands.decode(seq + 100, made, kv, first))
        for seq in requests:
            await d.decode_done(seq + 100)
        await bench.reports.freed(*bench.pair, why="after all answers")
    return f"{count} prompts of {PROMPT + 5} to {PROMPT + 5 * count} tokens, split, at once"


async def not_offered(bench: Bench) -> str:
    """A phase that the spec does not name is refused for good."""
    seen: list[str] = []
    for subject in bench.subjects:
        for name, command in _unoffered(bench, subject).items():
            async with bench.lane(subject) as lane:
                await lane.send(command)
                failed = await lane.failed(1)
                invalid = failed.reason == worker_pb2.PhaseFailed.REASON_INVALID
                expect(invalid, f"{subject} refused {name} as {described(failed)}, not as INVALID")
                seen.append(f"{subject}: {name} is INVALID")
    if not seen:
        raise NotCheckedError("all workers offer both phases")
    return "; ".join(seen)


def _unoffered(bench: Bench, subject: Subject) -> dict[str, worker_pb2.Command]:
    made = bench.request()
    kv = common_pb2.KVHandle(
        producer="nobody",
        layout=subject.spec.kv_layout,
        tokens=PROMPT,
        lease_s=10,
        source=bench.relay.address,
    )
    kv.request_id, kv.epoch = made.request_id, 1
    commands_of = {
        "prefill": (commands.prefill(1, made), {Phase.PREFILL}),
        "prefill with decode_here": (commands.prefill(1, made, decode_here=True), set(Phase)),
        "decode": (commands.decode(1, made, kv), {Phase.DECODE}),
    }
    return {name: one for name, (one, wants) in commands_of.items() if not subject.spec.phases >= wants}


CHECKS: Final = (
    Check(
        "phase.here",
        "With decode_here: PrefillDone without a handle, tokens from 0 on, DecodeDone",
        TABLE,
        here,
        (Need.HERE,),
    ),
    Check(
        "phase.limit",
        "max_new_tokens is never passed; LENGTH says that it was reached, STOP that the model ended before",
        f"{PROTO}, DecodeDone",
        limit,
    ),
    Check(
        "phase.prefill",
        "A prefill for a peer ends with a handle of this boot, this request, this epoch, with a lease",
        TABLE,
        prefill,
        (Need.PREFILL,),
    ),
    Check(
        "phase.split",
        "StartDecode pulls the KV, then KVMoved, tokens from first_index on, DecodeDone; both sides are free",
        TABLE,
        split,
        (Need.SPLIT,),
    ),
    Check(
        "phase.one-token",
        "An answer of one token that prefill produced ends without another one",
        TABLE,
        one_token,
        (Need.SPLIT,),
    ),
    Check(
        "phase.crowd",
        "Sequences run beside each other; each ends exactly once",
        f"{GUIDE}, duty 1",
        crowd,
        (Need.SPLIT,),
    ),
    Check(
        "phase.not-offered",
        "A phase that the spec does not offer is refused as INVALID",
        f"{GUIDE}, Commands and what they lead to",
        not_offered,
    ),
)
