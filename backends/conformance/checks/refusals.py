"""What a worker says to commands that make no sense, and that it goes on afterwards."""

from __future__ import annotations

from typing import Final

from polyphase.v1 import common_pb2, inference_pb2, worker_pb2

from backends.conformance import commands
from backends.conformance.bench import Bench, Need
from backends.conformance.check import Check
from backends.conformance.lane import Lane, described
from backends.conformance.subject import Subject
from backends.conformance.verdicts import GUIDE, expect
from router.model import Phase

OVERSIZE: Final = 5 << 20
"""Bytes; gRPC takes messages of 4 MiB unless told otherwise."""
LONGEST_SENT: Final = 100_000
"""Tokens of a prompt that is too long; where the limit is above, a prefill worker is not asked."""


def _impossible(bench: Bench, subject: Subject) -> dict[str, inference_pb2.GenerateRequest]:
    """Requests that no worker like this can ever run."""
    context = subject.spec.max_context_tokens
    made = {
        name: bench.request() for name in ("an unknown model", "no prompt", "an empty prompt", "no answer")
    }
    made["an unknown model"].model = "no-such-model"
    made["no prompt"].ClearField("prompt")
    made["an empty prompt"].tokens.ClearField("ids")
    made["no answer"].max_new_tokens = 0
    if subject.offers(Phase.DECODE):
        made["a context too long"] = bench.request(min(context, 2**32 - 1))
    elif context < LONGEST_SENT:
        made["a context too long"] = bench.request(prompt=context + 1)
    return made


async def request(bench: Bench) -> str:
    """Impossible requests, and a good one after them."""
    names: dict[str, None] = {}
    for subject in bench.subjects:
        if subject.offers(Phase.PREFILL):
            names |= dict.fromkeys(await _refuses(bench, subject))
    return f"{', '.join(names)}: INVALID, and the lane goes on"


async def _refuses(bench: Bench, subject: Subject) -> list[str]:
    impossible = _impossible(bench, subject)
    async with bench.lane(subject) as lane:
        for seq, (name, made) in enumerate(impossible.items(), start=1):
            await lane.send(commands.prefill(seq, made, decode_here=subject.offers(Phase.DECODE)))
            failed = await lane.failed(seq)
            invalid = failed.reason == worker_pb2.PhaseFailed.REASON_INVALID
            expect(invalid, f"{subject} failed {name} as {described(failed)}, not as INVALID")
        await _goes_on(bench, lane)
        await bench.reports.freed(subject, why="after refused requests")
    return list(impossible)


async def _goes_on(bench: Bench, lane: Lane, seq: int = 99) -> None:
    """A lane that still works, by a prefill that is released."""
    await lane.send(commands.prefill(seq, bench.request()))
    done = await lane.prefill_done(seq)
    await lane.send(commands.release(done.kv))


async def unknown(bench: Bench) -> str:
    """Ends and stops cross; so do leases and releases."""
    for subject in bench.subjects:
        async with bench.lane(subject) as lane:
            gone = common_pb2.KVHandle(
                producer=subject.target.backend, incarnation=subject.incarnation, connector=b"gone"
            )
            await lane.send(commands.stop(12345), commands.release(gone))
            if subject.offers(Phase.PREFILL):
                await _goes_on(bench, lane)
                await bench.reports.freed(subject, why="after a release")
            await lane.until_reports(2)
    return "StopPhase of an unknown seq, ReleaseKV of KV that is not there: ignored"


def _malformed(bench: Bench, subject: Subject) -> dict[str, bytes]:
    again = commands.prefill(7, bench.request())
    lease = commands.release(common_pb2.KVHandle(producer=subject.target.backend, lease_s=-1.0))
    return {
        "garbage": b"\xff\xff\xff",
        "an empty command": _raw(worker_pb2.Command()),
        "a seq in use": _raw(again),
        "a negative lease": _raw(lease),
    }


def _raw(command: worker_pb2.Command) -> bytes:
    return worker_pb2.LaneRequest(commands=(command,)).SerializeToString()


async def malformed(bench: Bench) -> str:
    """Each on a lane that has work, beside a lane that must not notice."""
    seen: list[str] = []
    for name, message in _malformed(bench, bench.prefiller).items():
        end = await _survives(bench, bench.prefiller, name, message)
        expect(end in ("", "INVALID_ARGUMENT"), f"{name} ended the lane with {end}")
        seen.append(f"{name}: {_outcome(end)}")
    return "; ".join(seen)


async def oversize(bench: Bench) -> str:
    """A message beyond gRPC's limit. Which side breaks the stream, and with what status, is the transport's
    business."""
    return _outcome(await _survives(bench, bench.prefiller, "a message of 5 MiB", b"\0" * OVERSIZE))


async def _survives(bench: Bench, subject: Subject, name: str, message: bytes) -> str:
    """With what status a lane with work takes a message, empty when it goes on. Its neighbour must go on."""
    async with bench.lane(subject, "neighbour") as neighbour:
        async with bench.lane(subject, "hostile") as lane:
            await bench.minted(lane, 7, bench.request())
            lane.sequences[7].stopped = True  # what comes of it from now on is anybody's guess
            await lane.send_raw(message)
            before = lane.reports
            await lane.until(lambda: lane.ended or lane.reports >= before + 2, "a report, or its end")
            if not lane.ended:
                await lane.send(commands.prefill(8, bench.request()))
                await lane.until(lambda: lane.ended or lane.sequences[8].ended, f"an answer after {name}")
        await _goes_on(bench, neighbour)
        await bench.reports.freed(subject, why=f"after a lane with {name}")
    return lane.code


def _outcome(code: str) -> str:
    return f"the lane ends with {code}" if code else "the lane goes on"


async def bad_handle(bench: Bench) -> str:
    """A StartDecode without any handle."""
    subject = bench.decoder
    async with bench.lane(subject) as lane:
        await lane.send(commands.decode(1, bench.request(), common_pb2.KVHandle()))
        failed = await lane.failed(1)
        await lane.until_reports(1)
        expect(not lane.ended, f"the lane ended with {lane.end}")
        await bench.reports.freed(subject, why="after a refused decode")
    return described(failed)


CHECKS: Final = (
    Check(
        "refuse.request",
        "A request that can never run fails as INVALID; the lane goes on",
        f"{GUIDE}, Commands and what they lead to",
        request,
        (Need.PREFILL,),
    ),
    Check(
        "refuse.bad-handle",
        "A decode without a usable handle fails; the lane goes on",
        f"{GUIDE}, Commands and what they lead to",
        bad_handle,
        (Need.DECODE,),
    ),
    Check(
        "refuse.unknown",
        "Stops of unknown sequences and releases of unknown KV are ignored",
        f"{GUIDE}, duty 1",
        unknown,
    ),
    Check(
        "refuse.malformed",
        "A malformed message ends at most its own lane, with INVALID_ARGUMENT, and its work",
        f"{GUIDE}, Statuses",
        malformed,
        (Need.PREFILL,),
    ),
    Check(
        "refuse.oversize",
        "A message that is too large ends at most its own lane, and its work",
        f"{GUIDE}, Statuses",
        oversize,
        (Need.PREFILL,),
    ),
)
