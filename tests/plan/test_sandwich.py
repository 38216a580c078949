"""No policy crosses a bound: random small fleets of every scheduler, bursts, hard objectives.

These are the tests that count. Each bound was wrong in some way until they passed: an answer's deadline taken
from the prefill of the backend that decodes, a last window longer than the span, the terms of a split decode
taken from the wrong law.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.errors import ConfigError
from router.model import BackendSpec
from router.plan.bounds import Case, bounds_of, case_of
from router.plan.clairvoyant import LIMITS, clairvoyants
from router.plan.hindsight import most_whole
from router.plan.recording import recorded
from router.plan.supply import supplies_of
from router.sim.classes import Workload
from router.sim.contest import contestant
from router.sim.run import simulate
from tests.plan.small_worlds import random_specs, random_workload

POLICIES = ("round_robin", "least_loaded", "scored", "predicted")
SEEDS = st.integers(0, 1 << 20)
TOLERANCE = 1e-6
CROSSED_ONCE = (1462, 1471, 1594)
"""Worlds in which an earlier version of the bounds was crossed."""


def best_of_all(specs: Sequence[BackendSpec], workload: Workload, seed: int) -> tuple[int, Case] | None:
    """The most that any policy served within its objectives, and the case; None when nobody can serve it."""
    best = 0
    try:
        for name in POLICIES:
            online, recording = recorded(contestant(name))
            best = max(best, simulate(specs, workload, online, seed, stop_when_unstable=False).met)
        for one in clairvoyants():
            result = simulate(specs, workload, one, seed, limits=LIMITS, stop_when_unstable=False)
            best = max(best, result.met)
    except ConfigError:
        return None  # no pair of backends has a layout in common
    return best, case_of(recording.tasks(), supplies_of(specs))


@settings(max_examples=30, deadline=None, database=None)
@given(seed=SEEDS)
@example(seed=CROSSED_ONCE[0])
@example(seed=CROSSED_ONCE[1])
@example(seed=CROSSED_ONCE[2])
def test_no_policy_crosses_the_fluid_bounds(seed: int) -> None:
    """online, B4 <= B2 <= B1, with windows of any length."""
    rng = Random(seed)
    specs, workload = random_specs(rng), random_workload(rng, most=40)
    found = best_of_all(specs, workload, seed)
    if found is None:
        return
    best, case = found
    bounds = bounds_of(case, rng.choice([0.02, 0.05, 0.2]))
    assert best <= bounds.windows + TOLERANCE
    assert bounds.windows <= bounds.whole_span + TOLERANCE
    assert bounds.whole_span <= bounds.requests - bounds.unservable + TOLERANCE


@settings(max_examples=15, deadline=None, database=None)
@given(seed=SEEDS)
def test_the_integer_program_lies_between_the_policies_and_the_fluid_bound(seed: int) -> None:
    """B4 <= B3 <= B2: undivided requests on backends of their own tighten the bound, and it still holds."""
    rng = Random(seed)
    specs, workload = random_specs(rng), random_workload(rng, most=10)
    found = best_of_all(specs, workload, seed)
    if found is None:
        return
    best, case = found
    window_s = rng.choice([0.02, 0.05, 0.2])
    whole = most_whole(case.tasks, specs, window_s, case.span_s)
    assert best <= whole
    assert whole <= bounds_of(case, window_s).windows + TOLERANCE


def test_the_bounds_are_reached() -> None:
    """Bounds that are never reached would be of no use: here many are, to the last request."""
    reached = lossy = 0
    for seed in range(30):
        rng = Random(seed)
        specs, workload = random_specs(rng), random_workload(rng, most=12)
        found = best_of_all(specs, workload, seed)
        if found is not None:
            best, case = found
            bound = int(bounds_of(case, 0.05).windows + TOLERANCE)
            lossy += best < len(case.tasks)
            reached += best == bound < len(case.tasks)
    assert lossy >= 8
    assert reached >= 3
