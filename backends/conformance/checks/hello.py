"""Who is there: the first messages of a lane."""

from __future__ import annotations

from typing import Final

from polyphase.v1 import worker_pb2

from backends.conformance.bench import Bench
from backends.conformance.check import Check
from backends.conformance.lane import Lane, open_lane
from backends.conformance.subject import Subject, checked_spec
from backends.conformance.verdicts import GUIDE, PROTO, Target, expect


async def welcome(bench: Bench) -> str:
    """Two lanes are told the same."""
    seen: list[str] = []
    for subject in bench.subjects:
        async with bench.lane(subject) as lane:
            assert lane.welcome is not None
            expect(checked_spec(subject.target, lane.welcome) == subject.spec, f"{subject} changed its spec")
            same = lane.welcome.incarnation == subject.incarnation
            expect(same, f"{subject} changed its incarnation between two lanes")
            phases = "+".join(sorted(subject.spec.phases))
            seen.append(f"{subject}: {subject.spec.kind} {phases}, boot {subject.incarnation[:8]}")
    return "; ".join(seen)


async def unknown_backend(bench: Bench) -> str:
    """Somebody else is called."""
    seen: list[str] = []
    for subject in bench.subjects:
        wrong = Target(f"{subject.target.backend}-that-is-not-here", subject.target.address)
        async with open_lane(wrong, bench.journal, bench.settings.patience_s) as lane:
            expect(lane.welcome is None, f"a hello for {wrong.backend!r} was welcomed")
            seen.append(_code(lane, "NOT_FOUND", "a hello for somebody else"))
    return "; ".join(seen)


BAD_FIRST: Final = {
    "no hello": worker_pb2.LaneRequest().SerializeToString(),
    "garbage": b"\xff\xff\xff",
}


async def first_message(bench: Bench) -> str:
    """Whatever comes first, the worker goes on."""
    for subject in bench.subjects:
        for name, message in BAD_FIRST.items():
            async with open_lane(
                subject.target, bench.journal, bench.settings.patience_s, first=message
            ) as lane:
                expect(lane.welcome is None, f"{subject} welcomed a lane that began with {name}")
                _code(lane, "INVALID_ARGUMENT", name)
        await _still_there(bench, subject)
    return f"{', '.join(BAD_FIRST)}: INVALID_ARGUMENT; the next lane is welcome"


async def _still_there(bench: Bench, subject: Subject) -> None:
    async with bench.lane(subject) as lane:
        assert lane.welcome is not None
        same = lane.welcome.incarnation == subject.incarnation
        expect(same, f"{subject} restarted")


def _code(lane: Lane, wanted: str, what: str) -> str:
    expect(lane.code == wanted, f"{what} ended with {lane.end} instead of {wanted}")
    return lane.end


CHECKS: Final = (
    Check(
        "hello.welcome",
        "A lane begins with Welcome: the spec of the worker that was named, and its boot id",
        f"{PROTO}, Hello and Welcome",
        welcome,
    ),
    Check(
        "hello.unknown-backend",
        "A hello for a worker that is not here ends with NOT_FOUND",
        f"{GUIDE}, Statuses",
        unknown_backend,
    ),
    Check(
        "hello.first-message",
        "A first message that is no hello ends its lane with INVALID_ARGUMENT, and nothing else",
        f"{GUIDE}, Statuses",
        first_message,
    ),
)
