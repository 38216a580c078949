"""Transports against a scripted router over real gRPC: all is counted, faults are found."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.errors import CapacityError
from router.load.report import Tally
from router.load.requests import RequestOptions
from router.load.run import LoadPlan, LoadRun
from tests.load.scripted import Script, ScriptedRouter, serving

TRANSPORTS = pytest.mark.parametrize("per_call", [False, True], ids=["session", "generate"])


def plan(target: str, **changes: Any) -> LoadPlan:
    """Some 40 requests within 0.2 s."""
    values: dict[str, Any] = {
        "rate": 200.0,
        "duration_s": 0.2,
        "prompt_tokens": 50,
        "output_tokens": 20,
        "timeout_s": 20.0,
        "seed": 3,
    }
    return LoadPlan(target, RequestOptions("m"), **(values | changes))


async def offered(script: Script, **changes: Any) -> tuple[Tally, ScriptedRouter]:
    """One run against a script."""
    async with serving(script) as (router, target):
        return await LoadRun(plan(target, **changes)).run(), router


@TRANSPORTS
async def test_a_good_router_gives_a_clean_run(per_call: bool) -> None:
    """Every request arrives once, every token is right, latencies are there."""
    tally, router = await offered(Script(), per_call=per_call)
    assert tally.clean
    assert tally.ok == len(router.requests) == len({request.request_id for request in router.requests}) > 10
    assert tally.tokens == 20 * tally.ok
    assert len(tally.ttft) == len(tally.e2e) == tally.ok
    assert tally.report()["pairs"] == [{"prefill": "gpu", "decode": "lpu", "requests": tally.ok}]


@TRANSPORTS
@pytest.mark.parametrize(
    ("script", "fault", "each"),
    [
        (Script(drop_index=9), "lost", 1),
        (Script(cut_after=15), "lost", 5),
        (Script(repeat_index=4), "duplicated", 1),
        (Script(corrupt_index=7), "mismatched", 1),
    ],
    ids=["dropped", "cut", "repeated", "corrupted"],
)
async def test_injected_faults_are_found(script: Script, fault: str, each: int, per_call: bool) -> None:
    """Exactly as many as were injected, of that kind and no other."""
    tally, _ = await offered(script, per_call=per_call)
    expected = {"lost": 0, "duplicated": 0, "mismatched": 0, fault: each * tally.ok}
    assert tally.ok > 10
    assert tally.report()["integrity"] == expected
    assert not tally.clean


@TRANSPORTS
async def test_failures_are_counted_by_their_reason(per_call: bool) -> None:
    """ErrorInfo of a call and Failure of a session mean the same."""
    tally, _ = await offered(Script(fail_reason="QUEUE_FULL"), per_call=per_call)
    assert tally.failures == {"QUEUE_FULL": tally.offered}
    assert tally.codes == {"RESOURCE_EXHAUSTED": tally.offered}
    assert tally.ok == 0 < tally.offered


@TRANSPORTS
async def test_a_router_that_hangs_costs_the_timeout_only(per_call: bool) -> None:
    """Each request is given up."""
    tally, _ = await offered(Script(hang=True), per_call=per_call, timeout_s=0.3)
    assert tally.failures == {"CLIENT_TIMEOUT": tally.offered}


async def test_a_session_tells_the_router_what_it_gave_up() -> None:
    """While a session lives, a request given up on is cancelled by its stream's number."""
    async with serving(Script(hang=True)) as (router, target):
        run = LoadRun(plan(target, duration_s=60.0, rate=20.0, timeout_s=0.2))
        running = asyncio.create_task(run.run())
        async with asyncio.timeout(30.0):
            while not router.cancels:
                await asyncio.sleep(0.01)
        run.stop()
        await running
    assert router.cancels[0] == 1


@TRANSPORTS
async def test_beyond_the_bound_requests_count_as_not_sent(per_call: bool) -> None:
    """Nothing is dropped in silence."""
    tally, router = await offered(Script(hang=True), per_call=per_call, timeout_s=0.5, max_in_flight=5)
    assert tally.sent_count == len(router.requests) == 5
    assert tally.not_sent_count == tally.offered - 5 > 5


@TRANSPORTS
async def test_stopping_ends_a_run_in_order(per_call: bool) -> None:
    """What is under way counts as cancelled, not as failed."""
    async with serving(Script(step_s=0.2)) as (_, target):
        run = LoadRun(plan(target, per_call=per_call, duration_s=60.0))
        asyncio.get_running_loop().call_later(0.3, run.stop)
        tally = await run.run()
    assert tally.cancelled > 0
    assert tally.failed == tally.integrity.violations == 0
    assert tally.offered == tally.ok + tally.cancelled


@TRANSPORTS
async def test_a_router_that_dies_fails_what_was_under_way(per_call: bool) -> None:
    """Every request ends; none is left waiting for a connection that is gone."""
    async with serving(Script(step_s=0.2)) as (_, target):
        run = LoadRun(plan(target, per_call=per_call, duration_s=0.6, timeout_s=5.0))
        running = asyncio.create_task(run.run())
        await asyncio.sleep(0.3)
    tally = await running
    assert tally.failed > 0
    assert tally.offered == tally.ok + tally.failed


async def test_nobody_listening_is_said_before_anything_is_sent() -> None:
    """A refused connection ends the wait at once."""
    with pytest.raises(CapacityError, match="No router answers"):
        await LoadRun(plan("127.0.0.1:1")).run()
