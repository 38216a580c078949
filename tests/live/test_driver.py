"""The driver: order of facts, one timer, and what a bug costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
from polyphase.v1 import inference_pb2

from router.core.messages import (
    Action,
    BackendRemoved,
    DecodeDone,
    DrainStarted,
    FailRequest,
    FirstToken,
    PhaseFailed,
    PrefillDone,
    RequestArrived,
    RequestCancelled,
)
from router.errors import Reason
from router.live.driver import Driver
from router.live.flow import Flow, Flows
from router.model import FinishReason, Phase, PhaseCost, Report, Request
from tests.live.rig import ScriptedCore, ScriptedLanes


class Ended:
    """A sink that notes how its request ended."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.reports: list[Report] = []
        self.failures: list[FailRequest] = []

    def tokens(self, epoch: int, first_index: int, ids: Sequence[int]) -> None:
        """Note tokens."""
        self.ids.extend(ids)

    def finish(self, report: Report) -> None:
        """Note the good end."""
        self.reports.append(report)

    def fail(self, action: FailRequest) -> None:
        """Note the bad end."""
        self.failures.append(action)


class Seen:
    """A tap that notes everything."""

    def __init__(self) -> None:
        self.seen_: list[tuple[Any, float, list[Any]]] = []

    def seen(self, fact: Any, now: float, actions: Sequence[Any]) -> None:
        """Note it."""
        self.seen_.append((fact, now, list(actions)))


class Bench:
    """A driver with a scripted core, scripted lanes and a tap."""

    def __init__(self, *extra_taps: Any) -> None:
        self.core, self.lanes, self.tap = ScriptedCore(), ScriptedLanes(), Seen()
        self.late: list[float] = []
        self.flows = Flows()
        self.driver = Driver(self.core, self.flows, taps=(*extra_taps, self.tap), on_late=self.late.append)
        self.driver.connect(self.lanes)

    def open(self, request_id: str = "r", deadline_in_s: float = 60.0) -> tuple[Flow, Ended]:
        """Bring a request in."""
        sink = Ended()
        request = Request(request_id, "m", 3, 10, deadline=self.driver.now() + deadline_in_s)
        flow = Flow(request, inference_pb2.GenerateRequest(), sink, self.driver.tell)
        assert self.driver.open(flow)
        return flow, sink


def done(request_id: str, tokens: int) -> DecodeDone:
    """A phase that ended."""
    return DecodeDone(request_id, 1, PhaseCost(), tokens, FinishReason.STOP)


async def test_a_request_goes_through() -> None:
    """Arrival starts a worker, the end finishes the sink, and the id is free again."""
    bench = Bench()
    flow, sink = bench.open()
    assert (flow.epoch, flow.backend, flow.phase) == (1, "b0", Phase.PREFILL)
    bench.driver.tell(PrefillDone("r", 1, PhaseCost()))
    assert flow.phase is Phase.DECODE
    flow.accept(1, 0, 7, 1.0)
    bench.driver.tell(done("r", 1))
    assert sink.ids == [7] and len(sink.reports) == 1 and len(bench.flows) == 0
    flow.accept(1, 1, 8, 1.0)
    assert sink.ids == [7]
    bench.driver.close()


async def test_facts_told_from_within_an_action_wait_their_turn() -> None:
    """A lane that answers at once does not re-enter the core: facts are handled one after the other."""
    bench = Bench()
    depth, deepest = 0, 0
    handle = bench.core.handle

    def watched(fact: Any, now: float) -> Sequence[Action]:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        try:
            return handle(fact, now)
        finally:
            depth -= 1

    def answer(flow: Flow) -> None:
        depth_now = len(bench.core.facts)
        flow.accept(1, 0, 7, 1.0)
        bench.driver.tell(done(flow.id, 1))
        assert len(bench.core.facts) == depth_now, "the fact was handled within the action"

    bench.core.handle = watched  # type: ignore[method-assign]
    bench.lanes.on_start = answer
    _, sink = bench.open()
    assert deepest == 1 and len(sink.reports) == 1
    kinds = [type(fact) for fact in bench.core.facts]
    assert kinds == [RequestArrived, FirstToken, DecodeDone]
    assert [type(fact) for fact, _, _ in bench.tap.seen_] == kinds
    bench.driver.close()


async def test_now_never_decreases() -> None:
    """The core's clock stands still when the loop's goes back."""
    bench = Bench()
    loop = asyncio.get_running_loop()
    times = iter([5e9, 4e9, 6e9])
    real, loop.time = loop.time, lambda: next(times)  # type: ignore[method-assign]
    try:
        assert [bench.driver.now() for _ in range(3)] == [5e9, 5e9, 6e9]
    finally:
        loop.time = real  # type: ignore[method-assign]
        bench.driver.close()


async def test_one_timer_keeps_the_earliest_deadline() -> None:
    """Deadlines are kept whatever the order in which they appear, and their lateness is told."""
    bench = Bench()
    _, late = bench.open("late", 0.5)
    _, early = bench.open("early", 0.02)
    async with asyncio.timeout(5):
        while not early.failures:
            await asyncio.sleep(0.005)
        assert late.failures == []
        while not late.failures:
            await asyncio.sleep(0.005)
    assert late.failures[0].reason is Reason.DEADLINE_EXPIRED
    assert len(bench.late) == 2 and all(lateness >= 0 for lateness in bench.late)
    assert [fact for fact, _, actions in bench.tap.seen_ if actions and fact is None] == [None, None]
    bench.driver.close()


async def test_a_deadline_that_moved_away_does_no_harm() -> None:
    """A timer that was armed for a request that ended fires for nothing."""
    bench = Bench()
    _, sink = bench.open(deadline_in_s=0.02)
    bench.driver.tell(done("r", 0))
    await asyncio.sleep(0.05)
    assert len(sink.reports) == 1 and sink.failures == [] and bench.late == []
    bench.driver.close()


async def test_a_blocked_loop_shows_as_lateness() -> None:
    """The metric that says the machine, not the fleet, was slow."""
    bench = Bench()
    bench.open(deadline_in_s=0.01)
    time.sleep(0.1)
    await asyncio.sleep(0.02)
    assert bench.late and bench.late[0] >= 0.05
    bench.driver.close()


async def test_a_bug_in_the_core_fails_one_request(caplog: pytest.LogCaptureFixture) -> None:
    """The request fails with INTERNAL, the core is told to let go of it, and others go on."""
    bench = Bench()
    _, other = bench.open("other")
    _, broken = bench.open("broken")
    bench.core.explode = PhaseFailed
    bench.driver.tell(PhaseFailed("broken", 1, Phase.DECODE, "b0", Reason.BACKEND_LOST))
    assert [failure.reason for failure in broken.failures] == [Reason.INTERNAL]
    assert bench.core.facts[-1] == RequestCancelled("broken", Reason.INTERNAL)
    assert bench.lanes.stopped == ["broken"] and "ZeroDivisionError" in caplog.text
    bench.driver.tell(done("other", 0))
    assert len(other.reports) == 1 and len(bench.flows) == 0
    bench.driver.close()


async def test_a_bug_that_cancelling_triggers_again_ends(caplog: pytest.LogCaptureFixture) -> None:
    """A core that fails on the cancel too is not asked for ever."""
    bench = Bench()
    _, sink = bench.open()
    bench.core.explode = RequestCancelled
    bench.driver.tell(RequestCancelled("r"))
    assert len(sink.failures) == 1 and sink.failures[0].reason is Reason.INTERNAL
    bench.core.explode = DrainStarted
    bench.driver.tell(DrainStarted())
    assert caplog.text.count("core failed on") == 2
    bench.driver.close()


async def test_a_bug_in_a_deadline_does_not_spin(caplog: pytest.LogCaptureFixture) -> None:
    """The deadline that raises stays in the past; it is tried again after a pause only."""
    bench = Bench()
    bench.core.explode_on_advance = True
    bench.core.due = [bench.driver.now() + 0.01]
    bench.driver.tell(BackendRemoved("gone"))
    await asyncio.sleep(0.15)
    assert caplog.text.count("ZeroDivisionError: a bug") == 1
    _, sink = bench.open()
    bench.driver.tell(done("r", 0))
    assert len(sink.reports) == 1
    bench.driver.close()


async def test_a_bug_in_a_lane_fails_one_request() -> None:
    """A start that raises is not a start: the client is told, and the core lets go."""
    bench = Bench()

    def broken(flow: Flow) -> None:
        raise ZeroDivisionError

    bench.lanes.on_start = broken
    _, sink = bench.open()
    assert [failure.reason for failure in sink.failures] == [Reason.INTERNAL]
    assert bench.core.live == {} and len(bench.flows) == 0
    bench.driver.close()


async def test_a_bug_in_a_tap_costs_nothing() -> None:
    """Metrics that fail do not stop traffic, nor the taps after them."""

    class Broken:
        def seen(self, fact: Any, now: float, actions: Sequence[Any]) -> None:
            raise ZeroDivisionError

    bench = Bench(Broken())
    _, sink = bench.open()
    bench.driver.tell(done("r", 0))
    assert len(sink.reports) == 1 and len(bench.tap.seen_) == 2
    bench.driver.close()


async def test_a_failure_on_arrival_reaches_the_sink_before_open_returns() -> None:
    """Callers have to be ready for it: the sink is known to the core before the request is."""
    bench = Bench()
    bench.core.refuse, bench.core.refusals = (Reason.QUEUE_FULL, 1.0), 1
    _, sink = bench.open()
    assert [failure.reason for failure in sink.failures] == [Reason.QUEUE_FULL]
    bench.driver.close()


async def test_a_closed_driver_fires_nothing() -> None:
    """After close no timer is left behind."""
    bench = Bench()
    _, sink = bench.open(deadline_in_s=0.01)
    bench.driver.close()
    await asyncio.sleep(0.03)
    assert sink.failures == []
