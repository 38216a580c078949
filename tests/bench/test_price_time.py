"""What prices cost: stating the problem, on the router's thread, and solving it, beside it. Run with
--benchmark-enable."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from policies.priced import Priced
from router.core.messages import RequestArrived
from router.model import Request, ServiceLevel
from router.plan.prices import prices_of
from router.prices import PriceProblem
from tests.bench.test_decision_time import fleet
from tests.policies.world import MODEL, Views, policy

SIZES = (10, 100, 1000)
LOAD_S = 10.0


def asked(classes: int) -> Priced:
    """A policy that saw 2,000 requests of many lengths and objectives."""
    made = policy("priced", window_s=60.0)
    assert isinstance(made, Priced)
    rng = Random(5)
    for i in range(2000):
        slo = ServiceLevel(rng.choice([0.5, 2.0]), rng.choice([0.03, 0.1]))
        name, prompt = f"c{rng.randrange(classes)}", round(rng.lognormvariate(6.5, 1.0)) + 1
        one = Request(f"r{i}", MODEL, prompt, 512, workload_class=name, slo=slo)
        made.observe(RequestArrived(one), LOAD_S * i / 2000)
    return made


def problem_of(made: Priced, size: int) -> PriceProblem:
    problem = made.price_problem(Views(fleet(size, Random(7), busy=True).views), LOAD_S)
    assert isinstance(problem, PriceProblem)
    return problem


@pytest.mark.benchmark(group="prices: state the problem")
@pytest.mark.parametrize("size", SIZES)
def test_stating_the_problem(benchmark, size: int) -> None:
    """48 classes on five kinds of backends; blocks the router's loop for so long, every few seconds."""
    made, views = asked(8), Views(fleet(size, Random(7), busy=True).views)
    problem = benchmark.pedantic(lambda: made.price_problem(views, LOAD_S), rounds=20, warmup_rounds=2)
    assert len(problem.classes) == 48
    assert len(problem.groups) == 5


@pytest.mark.benchmark(group="prices: solve")
@pytest.mark.parametrize("classes", [1, 8])
def test_solving(benchmark, classes: int) -> None:
    """Five kinds of backends, up to 48 classes; in a thread of its own."""
    problem = problem_of(asked(classes), 100)
    prices = benchmark.pedantic(lambda: prices_of(problem), rounds=20, warmup_rounds=2)
    assert len(prices.groups) == 5


@pytest.mark.benchmark(group="prices: solve")
def test_solving_the_largest_problem(benchmark) -> None:
    """16 kinds of backends that all hand over to each other: nobody has such a fleet."""
    problem = problem_of(asked(8), 10)
    whole = next(group for group in problem.groups if len(group.spec.phases) == 2)
    where = problem.groups.index(whole)
    groups = tuple(replace(whole, name=f"g{i}") for i in range(16))
    classes = tuple(replace(one, uses=(one.uses[where],) * 16) for one in problem.classes)
    largest = replace(problem, groups=groups, classes=classes)
    prices = benchmark.pedantic(lambda: prices_of(largest), rounds=2, warmup_rounds=1)
    assert len(prices.groups) == 16
