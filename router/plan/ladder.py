"""What `polyphase bound` works out: policies by simulation, bounds by programs, and the ratios.

online / clairvoyant    what not knowing the lengths, and deciding at once, costs
clairvoyant / B2        what scheduling loses, and how loose the bound is
B2 / B1                 what bursts cost
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from router.model import BackendSpec, Seconds
from router.plan.bounds import Bounds, Case, bounds_of, capacity_of, case_of, reasons
from router.plan.clairvoyant import LIMITS, clairvoyants
from router.plan.fluid import Plan
from router.plan.prices import prices_of
from router.plan.recording import recorded
from router.plan.supply import NO_LIMITS, Limits, Supply, supplies_of
from router.plan.tasks import Timed
from router.sim.classes import Workload
from router.sim.run import Contestant, simulate

LEAST_DUAL: Final = 1e-9
"""A limit whose dual is smaller does not bind."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be bounded."""

    specs: Sequence[BackendSpec]
    workload: Workload
    policy: Contestant
    seed: int = 1
    rate_scale: float = 1.0
    requests: int | None = None
    duration_s: Seconds | None = None
    window_s: Seconds = 5.0
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Rung:
    """One line of the ladder, in requests that met all their objectives."""

    name: str
    requests: float
    how: str


@dataclass(frozen=True, slots=True)
class Ladder:
    """All of it."""

    offered: int
    arrivals_s: Seconds
    rungs: tuple[Rung, ...]
    """Lowest first: online, clairvoyant, B2, B1."""
    bounds: Bounds
    capacity: Plan
    supplies: tuple[Supply, ...]
    unservable: Mapping[str, Mapping[str, str]]
    """By workload class: why none of the supplies can serve some of its requests in time."""

    @property
    def offered_per_s(self) -> float:
        """Requests that came, per second."""
        return self.offered / self.arrivals_s if self.arrivals_s > 0 else math.inf

    @property
    def is_overload(self) -> bool:
        """Whether no policy can keep up with this load for long."""
        return bool(self.capacity.shares) and self.capacity.objective < 1.0

    @property
    def binding(self) -> Mapping[str, float]:
        """Limits that bind the capacity, dearest first: requests per second for one unit more."""
        scale = self.capacity.served / self.capacity.objective if self.capacity.objective > 0 else 0.0
        duals = ((name, value * scale) for name, value in self.capacity.duals.items() if name)
        kept = [(name, value) for name, value in duals if value > LEAST_DUAL]
        return dict(sorted(kept, key=lambda item: -item[1]))

    def ratio(self, below: str, above: str) -> float | None:
        """Of two rungs; None where one is missing, or the upper one is nothing."""
        found = {rung.name: rung.requests for rung in self.rungs}
        if below not in found or found.get(above, 0.0) <= 0.0:
            return None
        return found[below] / found[above]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "offered": self.offered,
            "offered_per_s": self.offered_per_s,
            "span_s": self.bounds.span_s if math.isfinite(self.bounds.span_s) else None,
            "window_s": self.bounds.window_s,
            "rungs": [{"name": r.name, "requests": r.requests, "how": r.how} for r in self.rungs],
            "ratios": {f"{a}/{b}": self.ratio(a, b) for a, b in RATIOS},
            "capacity": {
                "theta": self.capacity.objective,
                "requests_per_s": self.capacity.served,
                "overload": self.is_overload,
                "binding": dict(self.binding),
                "phases": phases(self.capacity, self.supplies),
            },
            "unservable_requests": self.bounds.unservable,
            "unservable": {name: dict(why) for name, why in self.unservable.items()},
        }


RATIOS: Final = (("online", "clairvoyant"), ("clairvoyant", "B2"), ("B2", "B1"), ("online", "B2"))


def climb(question: Question, tell: Callable[[str], None] = lambda text: None) -> Ladder:
    """Simulate, then solve. `tell` hears what is being done. Raises ConfigError."""
    tell(f"simulating {question.policy.label}")
    contestant, recording = recorded(question.policy)
    online = _met(question, contestant)
    best, label = -1, ""
    for one in clairvoyants():
        tell(f"simulating {one.label}")
        met = _met(question, one, clairvoyant=True)
        best, label = max((best, label), (met, one.label))
    tell("solving the bounds")
    case = case_of(recording.tasks(), supplies_of(question.specs))
    bounds = bounds_of(case, question.window_s, question.limits)
    rungs = (
        Rung("online", online, question.policy.label),
        Rung("clairvoyant", best, label),
        Rung("B2", bounds.windows, f"fluid program in windows of {bounds.window_s:g} s"),
        Rung("B1", bounds.whole_span, "fluid program over the whole span"),
    )
    return _ladder(case, bounds, rungs, question.limits)


def bound_only(
    tasks: Sequence[Timed], specs: Sequence[BackendSpec], window_s: Seconds, limits: Limits
) -> Ladder:
    """The upper side alone, without a simulation."""
    case = case_of(tasks, supplies_of(specs))
    bounds = bounds_of(case, window_s, limits)
    rungs = (
        Rung("B2", bounds.windows, f"fluid program in windows of {bounds.window_s:g} s"),
        Rung("B1", bounds.whole_span, "fluid program over the whole span"),
    )
    return _ladder(case, bounds, rungs, limits)


def _ladder(case: Case, bounds: Bounds, rungs: tuple[Rung, ...], limits: Limits) -> Ladder:
    arrivals_s = max((one.at_s for one in case.tasks), default=0.0)
    # Requests that all come at once have no rate; as many a second is the natural reading.
    arrivals_s = arrivals_s if arrivals_s > 0.0 else 1.0
    return Ladder(
        len(case.tasks),
        arrivals_s,
        rungs,
        bounds,
        capacity_of(case, arrivals_s, limits),
        tuple(case.supplies),
        reasons(case),
    )


def _met(question: Question, contestant: Contestant, *, clairvoyant: bool = False) -> int:
    result = simulate(
        question.specs,
        question.workload,
        contestant,
        question.seed,
        rate_scale=question.rate_scale,
        requests=question.requests,
        duration_s=question.duration_s,
        limits=LIMITS if clairvoyant else None,
        solve=prices_of,
        stop_when_unstable=False,
    )
    return result.met


def phases(plan: Plan, supplies: Sequence[Supply]) -> dict[str, dict[str, float]]:
    """By supply: share of all prefills and of all decodes."""
    prefill = {s.name: sum(x.prefill for x in plan.shares if x.supply == s.name) for s in supplies}
    decode = {s.name: sum(x.decode for x in plan.shares if x.supply == s.name) for s in supplies}
    prefills, decodes = sum(prefill.values()) or 1.0, sum(decode.values()) or 1.0
    return {
        s.name: {"prefill": prefill[s.name] / prefills, "decode": decode[s.name] / decodes} for s in supplies
    }
