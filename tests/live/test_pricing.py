"""The thread that works out prices: one problem at a time, with a deadline, and never in anybody's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from router.core.core import RouterCore
from router.core.messages import Fact, PricesRevised
from router.errors import ConfigError
from router.live.pricing import Pricing
from router.live.timed_policy import TimedPolicy
from router.prices import GroupPrice, PriceProblem, Prices, Unpriced
from tests.policies.world import Models, policy

PROBLEM = PriceProblem(5.0, (), ())
ANSWER = Prices(5.0, (GroupPrice("g", 1.0, 2.0),))
BOUND_S = 20.0


class Heard:
    """The metrics' side."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.solves: list[float] = []
        self.ages: list[float] = []

    def price_problem(self, outcome: str) -> None:
        self.outcomes.append(outcome)

    def price_solve(self, duration_s: float) -> None:
        self.solves.append(duration_s)

    def price_age(self, age_s: float) -> None:
        self.ages.append(age_s)


class Rig:
    """A Pricing with everything around it in sight."""

    def __init__(self, solve: Callable[[PriceProblem], Prices], patience_s: float = BOUND_S) -> None:
        self.problem: PriceProblem | Unpriced | None = PROBLEM
        self.asked = 0
        self.told: list[Fact] = []
        self.heard = Heard()
        self.pricing = Pricing(self._ask, self.told.append, lambda: 9.0, solve, self.heard, 0.001, patience_s)

    def _ask(self, now: float) -> PriceProblem | Unpriced | None:
        self.asked += 1
        return self.problem


@pytest.fixture
async def rigs() -> AsyncIterator[Callable[..., Rig]]:
    """Makes rigs whose threads end with the test."""
    made: list[Rig] = []

    def make(*args: object, **more: object) -> Rig:
        made.append(Rig(*args, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for rig in made:
        rig.pricing.close()


async def test_an_answer_is_told_to_the_core(rigs: Callable[..., Rig]) -> None:
    """Solved in another thread, counted and timed; its age is told at the next time."""
    threads: list[str] = []

    def solve(problem: PriceProblem) -> Prices:
        threads.append(threading.current_thread().name)
        return ANSWER

    rig = rigs(solve)
    assert await rig.pricing.revise() == "solved"
    assert rig.told == [PricesRevised(ANSWER)]
    assert threads[0].startswith("polyphase-prices")
    assert rig.heard.outcomes == ["solved"]
    assert len(rig.heard.solves) == 1
    await rig.pricing.revise()
    assert rig.heard.ages == [4.0]


@pytest.mark.parametrize(
    ("problem", "outcomes"), [(Unpriced("thin"), ["thin"]), (Unpriced("fresh"), []), (None, [])]
)
async def test_without_a_problem_nothing_is_solved(
    rigs: Callable[..., Rig], problem: Unpriced | None, outcomes: list[str]
) -> None:
    """Why there is none is counted, except that it is not due yet, or that the policy takes no prices."""
    rig = rigs(lambda problem: pytest.fail("there was nothing to solve"))
    rig.problem = problem
    await rig.pricing.revise()
    assert (rig.told, rig.heard.outcomes) == ([], outcomes)


async def test_a_late_answer_is_dropped_and_nothing_is_asked_meanwhile(rigs: Callable[..., Rig]) -> None:
    """The thread cannot be stopped; a second problem waits until it is free."""
    free = threading.Event()
    finished = threading.Event()

    def solve(problem: PriceProblem) -> Prices:
        assert free.wait(BOUND_S)
        finished.set()
        return ANSWER

    rig = rigs(solve, patience_s=0.01)
    try:
        assert await rig.pricing.revise() == "late"
        assert await rig.pricing.revise() == ""
        assert rig.asked == 1
    finally:
        free.set()
    assert await asyncio.to_thread(finished.wait, BOUND_S)
    async with asyncio.timeout(BOUND_S):
        while rig.asked == 1:
            await rig.pricing.revise()
            await asyncio.sleep(0.001)
    assert "late" in rig.heard.outcomes


async def test_a_solver_that_has_no_answer_is_given_a_rest(rigs: Callable[..., Rig]) -> None:
    """Without SciPy every problem fails; the policy decides without prices and nobody asks every second."""

    def solve(problem: PriceProblem) -> Prices:
        raise ConfigError("SciPy is not installed.")

    rig = rigs(solve)
    running = asyncio.create_task(rig.pricing.run())
    async with asyncio.timeout(BOUND_S):
        while not rig.heard.outcomes:
            await asyncio.sleep(0.001)
    for _ in range(20):  # ticks of the rig would ask many times by now
        await asyncio.sleep(0.002)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert rig.heard.outcomes == ["failed"]
    assert rig.asked == 1
    assert rig.told == []


def test_a_policy_that_is_wrapped_still_takes_prices() -> None:
    """A stopwatch around it passes the question on, and has none of its own to ask."""

    def core(name: str) -> RouterCore:
        timed = TimedPolicy(policy(name), 1.0, lambda name, took_s: None, lambda took_s: None)
        return RouterCore(timed, policy("least_loaded"), Models())

    assert core("priced").price_problem(0.0) == Unpriced("thin")
    assert core("predicted").price_problem(0.0) is None


async def test_cancelling_in_the_middle_of_a_solve_ends_at_once(rigs: Callable[..., Rig]) -> None:
    """The daemon leaves without waiting for the solver; what it comes up with is told to nobody."""
    began, free = threading.Event(), threading.Event()

    def solve(problem: PriceProblem) -> Prices:
        began.set()
        assert free.wait(BOUND_S)
        raise ConfigError("nobody hears of this either")

    rig = rigs(solve)
    running = asyncio.create_task(rig.pricing.run())
    try:
        assert await asyncio.to_thread(began.wait, BOUND_S)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        rig.pricing.close()
    finally:
        free.set()
    assert rig.told == []
