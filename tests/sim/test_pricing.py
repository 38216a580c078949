"""Prices in virtual time: told a stated delay after they were asked for, the same for the same seed, and
replayed without a solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from backends.models.tracking import TrackedModels
from policies.price_problem import group_name
from policies.prices import PriceBook, Steadiness
from policies.registry import build
from router.core.core import RouterCore
from router.core.messages import NoteDecision, PricesRevised
from router.core.ports import Tap
from router.model import BackendSpec, Seconds
from router.observe.record import Recorder, parts
from router.observe.replay import replay
from router.plan.prices import prices_of
from router.prices import PriceProblem, Prices
from router.sim.classes import Renewal, Workload
from router.sim.contest import contestant
from router.sim.pricing import DELAY_S, Pricing
from router.sim.run import simulate
from router.sim.traffic import Traffic
from router.sim.workload_file import load_workload
from router.sim.world import World
from tests.sim.sets import a_class, fleet, workload

LOAD = workload(a_class("chat", Renewal(40.0)), a_class("code", Renewal(20.0), prompt=2000), requests=600)
BURSTS = workload(a_class("code", Renewal(60.0, 5.0), prompt=2000), requests=1200)


@dataclass
class Heard:
    """A tap that keeps what prices there were, and who decided."""

    prices: list[tuple[Seconds, Prices]] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)

    def seen(self, fact: Any, now: Seconds, actions: Sequence[Any]) -> None:
        if isinstance(fact, PricesRevised):
            self.prices.append((now, fact.prices))
        self.policies += [a.decision.policy for a in actions if isinstance(a, NoteDecision)]


def core() -> RouterCore:
    """As a daemon builds it."""
    models = TrackedModels()
    fallback = build("least_loaded", {}, models, Random(2))
    return RouterCore(build("priced", {"every_s": 2.0}, models, Random(1)), fallback, models)


def run(*taps: Tap, load: Workload = LOAD) -> Pricing:
    """Ten seconds of a mix on the mixed fleet."""
    traffic = Traffic(load, 1)
    world = World(core(), fleet().backends, traffic.oracle, 1, taps=taps)
    pricing = Pricing(world, prices_of)
    pricing.start()
    world.feed(traffic)
    world.run()
    return pricing


def test_prices_come_a_stated_delay_after_they_were_asked_for() -> None:
    """Every two seconds from the time on that the window has enough requests."""
    heard = Heard()
    pricing = run(heard)
    assert pricing.solved == len(heard.prices) >= 4
    assert [now - prices.at for now, prices in heard.prices] == pytest.approx([DELAY_S] * pricing.solved)
    asked = [prices.at for _, prices in heard.prices]
    assert [later - sooner for sooner, later in pairwise(asked)] == pytest.approx([2.0] * (len(asked) - 1))
    assert set(heard.policies) == {"predicted", "priced"}
    assert heard.policies[0] == "predicted"


def test_the_same_seed_gives_the_same_prices() -> None:
    """To the last bit, however long the solver took."""
    one, other = Heard(), Heard()
    run(one)
    run(other)
    assert one.prices == other.prices
    assert one.policies == other.policies


def test_a_recording_replays_without_a_solver(tmp_path: Path) -> None:
    """The prices are in it: the same facts give the same actions, to the last field."""
    file = tmp_path / "recording.jsonl"
    recorder = Recorder(file)
    run(recorder)
    assert recorder.close()
    lines = [line for part in parts(file) for line in part.read_text(encoding="utf-8").splitlines()]
    assert any('"PricesRevised"' in line for line in lines)
    result = replay(lines, core)
    assert result.same, result.first_difference
    assert result.facts > 600


def test_bursts_do_not_throw_prices_about() -> None:
    """Arrivals in bursts: what is worked out each time jumps; what is in force takes half of the way at most,
    and does not double but from next to nothing."""
    heard = Heard()
    run(heard, load=BURSTS)
    book = PriceBook(Steadiness(0.5, 2.0), 30.0)
    spec = max(fleet().backends, key=lambda one: crowding(heard.prices[-1][1], one))
    raw, in_force = [], []
    for _, prices in heard.prices:
        book.revise(prices)
        found = book.of(spec)
        assert found is not None
        raw.append(crowding(prices, spec))
        in_force.append(found.crowding)
    assert max(raw) > 1.0
    assert travelled(in_force) < 0.6 * travelled(raw)
    assert all(later <= 2.0 * sooner + 1.0 for sooner, later in pairwise(in_force))
    assert all(later >= 0.5 * sooner for sooner, later in pairwise(in_force))


def crowding(prices: Prices, of: BackendSpec) -> float:
    return next(one.crowding for one in prices.groups if one.group == group_name(of))


def travelled(values: Sequence[float]) -> float:
    """The way that a price went, up and down."""
    return sum(abs(later - sooner) for sooner, later in pairwise(values))


def test_prices_do_no_harm_where_they_matter_most() -> None:
    """GPUs beside a TPU, chat just above what they can do: with prices at least as many requests keep their
    objectives, give or take one in a hundred."""
    chat = replace(load_workload("chat"), duration_s=math.inf, requests=None)
    with_prices, without = (
        simulate(
            fleet("gpu-tpu"),
            chat,
            contestant(name),
            1,
            rate_scale=91.0 / 5.5,
            requests=600,
            solve=prices_of,
            stop_when_unstable=False,
        )
        for name in ("priced", "predicted")
    )
    assert with_prices.met >= 0.99 * without.met
    assert with_prices.met > 400


def test_a_policy_without_prices_is_asked_once() -> None:
    """It pays nothing for those that take some."""

    def solve(problem: PriceProblem) -> Prices:
        raise AssertionError("nobody asked")

    found = simulate(fleet(), LOAD, contestant("least_loaded"), 1, requests=100, solve=solve)
    assert found.arrived == 100


def test_without_a_solver_it_is_predicted() -> None:
    """The same run, request for request."""
    one = simulate(fleet(), LOAD, contestant("priced", "x"), 1, requests=300)
    other = simulate(fleet(), LOAD, contestant("predicted", "x"), 1, requests=300)
    assert one.as_dict() == other.as_dict()
