"""What a load of 1 means for a fleet and a workload, and for how long requests come.

A load of 1 is the capacity of the fluid bound B1 for the mix that arrives. Where requests come by themselves
the rate follows from it. Sessions need time to grow, and callers who wait send less when answers are slow:
there the scale is corrected until what arrives in the window is what the bound says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import inf
from typing import Final

from backends.catalogue import Fleet, load_fleet
from router.plan.bounds import Case, capacity_of, case_of
from router.plan.recording import recorded
from router.plan.supply import supplies_of
from router.plan.tasks import Timed
from router.sim.classes import Workload
from router.sim.run import rate_of
from router.sim.workload_file import load_workload
from tests.bench.policies.field import MORE_WORKLOADS, WORKLOADS, contestants
from tests.bench.policies.play import play

PROBE: Final = 400
"""Requests by which the capacity of a fleet for a workload is worked out."""
CORRECTIONS: Final = 3
REFERENCE: Final = "least_loaded"
"""Under this policy requests come where answers decide when the next one does."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a load of 1 means."""

    rate_scale: float
    rate_per_s: float
    window_s: float


@cache
def scale_of(fleet: str, workload: str) -> Scale:
    """The scale of a shipped fleet and workload."""
    backends = load_fleet(fleet)
    load = endless(workload, backends)
    tasks = arrivals(backends, load, 1.0, requests=PROBE)
    span_s = tasks[-1].at_s - tasks[0].at_s
    theta = theta_of(backends, tasks, span_s)
    rate = len(tasks) / span_s * theta
    nominal = sum(rate_of(kind) for kind in load.classes)
    if _comes_by_itself(load):
        return Scale(rate / nominal, rate, _window_s(workload, rate))
    scale, window_s = theta, _window_s(workload, rate)
    for _ in range(CORRECTIONS):
        tasks = arrivals(backends, load, scale, window_s=window_s)
        theta = theta_of(backends, tasks, window_s)
        scale, rate = scale * theta, len(tasks) / window_s * theta
        window_s = _window_s(workload, rate)
    return Scale(scale, rate, window_s)


def arrivals(
    fleet: Fleet, workload: Workload, scale: float, requests: int | None = None, window_s: float | None = None
) -> list[Timed]:
    """What comes, as planning sees it."""
    who, recording = recorded(contestants([REFERENCE])[0])
    play(
        fleet,
        workload,
        who,
        1,
        rate_scale=scale,
        requests=requests,
        duration_s=window_s,
    )
    return recording.tasks()


def theta_of(fleet: Fleet, tasks: list[Timed], span_s: float) -> float:
    """How many times the arrivals of `span_s` seconds the fleet sustains by B1."""
    return capacity_of(probe(fleet, tasks), span_s).objective


def probe(fleet: Fleet, tasks: list[Timed]) -> Case:
    """Arrivals and fleet as the bounds take them."""
    return case_of(tasks, supplies_of(fleet.backends))


def endless(workload: str, fleet: Fleet) -> Workload:
    """A shipped workload without its own bounds, for a model that the fleet serves."""
    return served(replace(load_workload(workload), duration_s=inf, requests=None), fleet)


def served(workload: Workload, fleet: Fleet) -> Workload:
    """The workload, with classes that ask for a model of the fleet."""
    models = [model for spec in fleet.backends for model in spec.models]
    classes = tuple(one if one.model in models else replace(one, model=models[0]) for one in workload.classes)
    return replace(workload, classes=classes)


def _comes_by_itself(workload: Workload) -> bool:
    return all(rate_of(kind) > 0 and kind.session.turns.mean == 1 for kind in workload.classes)


def _window_s(workload: str, rate: float) -> float:
    known = {**WORKLOADS, **MORE_WORKLOADS}[workload]
    return min(max(known.seconds, known.least / rate), known.most / rate)
