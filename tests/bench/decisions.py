"""How long a decision takes in the router's process: percentiles of CPU time over fleets of several sizes.

The fleet is that of test_decision_time.py: five kinds of backends, each with a load of its own, a few of
which change between two decisions. CPU time of the process, with the collector of garbage at work as in the
daemon; what other processes do shows in the caches alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Final

from router.model import BackendView, RoutePlan
from tests.bench.test_decision_time import CHANGES, fleet, one
from tests.policies.world import Views, policy, request

SIZES: Final = (100, 1000)
LIMITS_S: Final = {100: 1e-3, 1000: 5e-3}
"""The p99 that is asked for."""
DECISIONS: Final = 2000
WARM_UP: Final = 100


@dataclass(frozen=True, slots=True)
class Decided:
    """One policy on one size of fleet."""

    policy: str
    backends: int
    p50_s: float
    p99_s: float

    @property
    def limit_s(self) -> float | None:
        """What is asked for, if anything."""
        return LIMITS_S.get(self.backends)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "limit_s": self.limit_s}


class Kept(Views):
    """The router keeps the list of a model's backends; it is not made for a decision."""

    def for_model(self, model: str) -> Sequence[BackendView]:
        """All of them."""
        return self.views


def decided(name: str, backends: int, decisions: int = DECISIONS) -> Decided:
    """Time `decisions` plans of requests of different lengths."""
    rng, chosen = Random(7), policy(name)
    views = list(fleet(backends, rng, True).views)
    times: list[float] = []
    for number in range(WARM_UP + decisions):
        for _ in range(CHANGES):
            i = rng.randrange(backends)
            views[i] = one(i, rng, True)
        changed = Kept(views)
        asked = request(rng.randrange(100, 4000), rng.randrange(20, 600))
        began = time.process_time()
        answer = chosen.plan(asked, changed, number * 0.001)
        times.append(time.process_time() - began)
        assert isinstance(answer, RoutePlan), answer
    ordered = sorted(times[WARM_UP:])
    return Decided(name, backends, ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100])


def rows() -> list[tuple[str, str]]:
    """A line for each policy of ours and size."""
    made = [decided(name, size) for name in ("least_loaded", "predicted") for size in SIZES]
    return [
        (
            f"decision, {each.policy}, {each.backends} backends",
            f"p50 {each.p50_s * 1e6:,.0f} µs, p99 {each.p99_s * 1e6:,.0f} µs CPU",
        )
        for each in made
    ]
