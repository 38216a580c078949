"""The stopwatch around a policy."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest

from router.live.timed_policy import TimedPolicy
from router.model import Seconds, Wait
from tests.live_south.scripted import request


class Scripted:
    """A policy that does what the test says while it decides."""

    name = "scripted"

    def __init__(self, work: Any = None) -> None:
        self.work = work
        self.seen: list[Any] = []

    def plan(self, *args: Any) -> Wait:
        """Work, then wait."""
        if self.work:
            self.work()
        return Wait("test")

    bind_decode = plan

    def observe(self, fact: Any, now: Seconds) -> None:
        """Keep."""
        self.seen.append(fact)


class Desk:
    """A timed policy and what it reported."""

    def __init__(self, work: Any = None, budget_s: float = 0.01) -> None:
        self.decisions: list[str] = []
        self.overruns: list[float] = []
        self.policy = TimedPolicy(
            Scripted(work), budget_s, lambda name, _: self.decisions.append(name), self.overruns.append
        )


def test_a_quick_decision_is_counted_only() -> None:
    """Every decision is reported; quick ones are no fault."""
    desk = Desk(budget_s=5.0)
    assert desk.policy.plan(request(), None, 0.0) == Wait("test")  # type: ignore[arg-type]
    assert desk.policy.bind_decode(request(), "p", None, 0.0) == Wait("test")  # type: ignore[arg-type]
    assert desk.decisions == ["scripted", "scripted"]
    assert desk.overruns == []


def burn() -> None:
    """Use 50 ms of this thread's CPU."""
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass


def sleep() -> None:
    """Sleep for 0.3 s, more than twenty budgets."""
    time.sleep(0.3)


@pytest.mark.parametrize("work", [burn, sleep])
def test_slow_decisions_are_reported(work: Any) -> None:
    """A policy that computes for long, or sleeps, has overrun its budget."""
    desk = Desk(work)
    desk.policy.plan(request(), None, 0.0)  # type: ignore[arg-type]
    [overrun] = desk.overruns
    assert overrun >= 0.05


def test_a_policy_that_raises_is_timed_too() -> None:
    """The exception passes through, the decision is reported."""
    desk = Desk(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        desk.policy.plan(request(), None, 0.0)  # type: ignore[arg-type]
    assert desk.decisions == ["scripted"]


def test_a_copy_is_of_the_inner_policy() -> None:
    """Plan decides on a copy; it must not copy the callbacks, and with them the router."""
    desk = Desk()
    twin = copy.deepcopy(desk.policy)
    assert isinstance(twin, Scripted)
    assert twin is not desk.policy.inner


def test_facts_reach_the_inner_policy() -> None:
    """A policy that learns sees every fact."""
    desk = Desk()
    desk.policy.observe("fact", 1.0)
    assert desk.policy.inner.seen == ["fact"]  # type: ignore[attr-defined]
