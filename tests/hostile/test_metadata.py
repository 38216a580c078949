"""Hostile paths, headers and time-outs on the data port of a real router."""

from __future__ import annotations

import pytest

from tests.hostile.raw import GENERATE, Headers, call_headers, connection, envelope
from tests.hostile.victim import Victim
from tests.shell.rig import request

pytestmark = pytest.mark.process

OK, LATE, EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 4, 8, 12, 13
BODY = envelope(request("raw", 4).SerializeToString())
SERVICE = "polyphase.v1.InferenceService"
PATHS = [
    GENERATE[1:],
    f"/{GENERATE}",
    f"{GENERATE}/",
    f"{GENERATE}?x=1",
    f"/{SERVICE}%2FGenerate",
    f"/{SERVICE}/%47enerate",
    f"/{SERVICE}/generate",
    f"/{SERVICE}/Nope",
    f"/{SERVICE}/../{SERVICE}/Generate",
    f"{GENERATE}\x00",
    "/",
    "",
    "*",
    "/polyphase.v1.FleetService/ListBackends",
    "/polyphase.v1.WorkerService/Lane",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]


@pytest.mark.parametrize("path", PATHS)
async def test_a_path_that_is_no_method(victim: Victim, path: str) -> None:
    """Paths are compared, never normalised; what belongs to other listeners is not here."""
    async with connection(victim.port) as raw:
        await raw.call(1, BODY, **{":path": path})
        assert (await raw.outcome(1)).status == UNIMPLEMENTED


HEADERS: list[tuple[str, Headers, set[int]]] = [
    ("9 kB", [("x", "a" * 9_000)], {OK, EXHAUSTED}),  # between its two limits gRPC refuses at random
    ("17 kB", [("x", "a" * 17_000)], {EXHAUSTED}),
    ("60 kB", [("x", "a" * 60_000)], {EXHAUSTED}),
    ("traceparent of 1 MB", [("traceparent", "0" * 1_000_000)], {EXHAUSTED}),
    ("1,000 small ones", [(f"x-{i}", "y") for i in range(1_000)], {EXHAUSTED}),
    ("traceparent that is not hex", [("traceparent", "00-zz-zz-zz")], {OK}),
    ("authorization twice", [("authorization", "Bearer a"), ("authorization", "Bearer b")], {OK}),
    ("reserved names", [("grpc-status", "0"), ("grpc-message", "hi"), ("grpc-anything", "x")], {OK}),
    ("bad base64", [("x-bin", "!!! not base64")], {INTERNAL}),
    ("line breaks in a value", [(b"x", b"a\r\nx-tenant: root")], {OK}),
    ("NUL in a value", [(b"x", b"a\x00b")], {OK}),
    ("bytes above 127", [(b"x", b"\xff\xfe\xfd")], {OK}),
    ("an upper-case name", [(b"X-Up", b"a")], {INTERNAL}),
    ("a line break in a name", [(b"x\n", b"a")], {INTERNAL}),
    ("a second path", [(":path", "/evil")], {UNIMPLEMENTED}),
    ("somebody else's rank", [("x-tenant", "root"), ("x-priority", "system")], {OK}),
]


@pytest.mark.parametrize(
    ("more", "statuses"), [each[1:] for each in HEADERS], ids=[each[0] for each in HEADERS]
)
async def test_hostile_headers(victim: Victim, more: Headers, statuses: set[int]) -> None:
    """Too much is refused; the rest is not read, so it can do nothing."""
    async with connection(victim.port) as raw:
        await raw.headers(1, call_headers(more=more))
        await raw.message(1, BODY)
        outcome = await raw.outcome(1)
        assert outcome.status in statuses, outcome


async def test_metadata_before_the_settings_are_agreed(victim: Victim) -> None:
    """gRPC's limit begins with the acknowledgement of its settings; a megabyte before that is served, and
    is not kept."""
    async with connection(victim.port, polite=False) as raw:
        await raw.headers(1, call_headers(more=[("x", "a" * 1_000_000)]))
        await raw.message(1, BODY)
        assert (await raw.outcome(1)).status in {OK, EXHAUSTED}


TIMEOUTS = [
    ("-1S", {INTERNAL}),
    ("abc", {INTERNAL}),
    ("0n", {LATE}),
    ("1n", {LATE}),
    ("99999999H", {OK}),
    ("99999999999S", {OK, INTERNAL}),
    ("", {OK, INTERNAL}),
]


@pytest.mark.parametrize(("timeout", "statuses"), TIMEOUTS)
async def test_hostile_timeouts(victim: Victim, timeout: str, statuses: set[int]) -> None:
    """Nonsense is refused, nothing is negative, and ten thousand years are cut to the cap."""
    async with connection(victim.port) as raw:
        await raw.call(1, BODY, grpc_timeout=timeout)
        outcome = await raw.outcome(1)
        assert outcome.status in statuses, outcome
