"""Runs all policies at one spot, and the bounds of that spot."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from backends.catalogue import Fleet, load_fleet
from router.errors import ConfigError
from router.plan.bounds import Case, bounds_of, capacity_of, case_of
from router.plan.clairvoyant import clairvoyants
from router.plan.recording import recorded
from router.plan.supply import supplies_of
from router.sim.classes import Workload
from router.sim.result import SimResult
from router.sim.run import Contestant, simulate
from router.sim.workload_file import load_workload
from tests.bench.policies.field import LEAST_REQUESTS, MOST_REQUESTS, WORKLOADS, Spot, contestants
from tests.bench.policies.rows import Row

PROBE: Final = 400
"""Requests by which the capacity of a fleet for a workload is worked out."""
WINDOWS: Final = 12
"""Windows of the bound B2 over the arrivals, at most; more are dearer and bound a little tighter."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a load of 1 means."""

    rate_scale: float
    rate_per_s: float
    window_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A spot."""

    spot: Spot
    scale: Scale
    results: Sequence[SimResult]
    usd_per_hour: float
    b2: float | None
    clairvoyant: int | None


@cache
def scale_of(fleet: str, workload: str) -> Scale:
    """The capacity of the fluid bound B1 for the mix, and for how long requests come."""
    case, span_s = probe(load_fleet(fleet), workload)
    theta = capacity_of(case, span_s).objective
    rate = len(case.tasks) / span_s * theta
    window = max(WORKLOADS[workload], LEAST_REQUESTS / rate)
    return Scale(theta, rate, min(window, MOST_REQUESTS / rate))


def probe(fleet: Fleet, workload: str) -> tuple[Case, float]:
    """The first requests of a workload, as planning sees them, and the time they took to come."""
    who, recording = recorded(contestants(["least_loaded"])[0])
    simulate(fleet, endless(workload, fleet), who, 1, requests=PROBE, stop_when_unstable=False)
    tasks = recording.tasks()
    return case_of(tasks, supplies_of(fleet.backends)), tasks[-1].at_s - tasks[0].at_s


def endless(workload: str, fleet: Fleet) -> Workload:
    """A shipped workload without its own bounds, for a model that the fleet serves."""
    known = load_workload(workload)
    served = [model for spec in fleet.backends for model in spec.models]
    classes = tuple(one if one.model in served else replace(one, model=served[0]) for one in known.classes)
    return replace(known, classes=classes, duration_s=float("inf"), requests=None)


def run_spot(spot: Spot, labels: Sequence[str] = (), bounds: bool = True) -> Outcome:
    """All policies on the same arrivals."""
    fleet = load_fleet(spot.fleet)
    workload = endless(spot.workload, fleet)
    scale = scale_of(spot.fleet, spot.workload)

    def run(who: Contestant) -> SimResult:
        return simulate(
            fleet,
            workload,
            who,
            spot.seed,
            rate_scale=scale.rate_scale * spot.load,
            duration_s=scale.window_s,
            stop_when_unstable=False,
        )

    results = [run(who) for who in contestants(labels)]
    b2 = best = None
    if bounds:
        listened, recording = recorded(contestants(["predicted"])[0])
        run(listened)
        b2 = _b2(case_of(recording.tasks(), supplies_of(fleet.backends)), scale.window_s)
        best = max(run(who).met for who in clairvoyants())
    usd = sum(spec.usd_per_hour for spec in fleet.backends)
    return Outcome(spot, scale, results, usd, b2, best)


def _b2(case: Case, window_s: float) -> float | None:
    """B2 in requests; None when the program is too large even in one window."""
    for windows in (WINDOWS, 4, 1):
        try:
            return bounds_of(case, case.span_s / windows).windows
        except ConfigError:
            continue
    return None


def run_all(
    spots: Sequence[Spot], labels: Sequence[str], bounds: bool, told: Callable[[Outcome], None]
) -> list[Row]:
    """Every spot, on all cores; rows in the order of the spots."""
    rows: dict[tuple[str, str, float, str], Row] = {}
    workers = min(len(spots), os.cpu_count() or 1)
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context) as pool:
        jobs = [pool.submit(run_spot, spot, labels, bounds) for spot in spots]
        for job in jobs:
            outcome = job.result()
            told(outcome)
            gather(rows, outcome)
    return list(rows.values())


def gather(rows: dict[tuple[str, str, float, str], Row], outcome: Outcome) -> None:
    """Add a spot to its rows."""
    spot, scale = outcome.spot, outcome.scale
    for result in outcome.results:
        key = (spot.fleet, spot.workload, spot.load, result.policy)
        rate = scale.rate_per_s * spot.load
        row = rows.setdefault(key, Row(*key, rate))
        row.add(result, scale.window_s, outcome.usd_per_hour)
        row.bound(outcome.b2, outcome.clairvoyant)


def spots(fleets: Iterable[str], workloads: Sequence[str], loads: Sequence[float], seeds: int) -> list[Spot]:
    """The whole grid, fleet by fleet."""
    return [
        Spot(fleet, workload, load, seed)
        for fleet in fleets
        for workload in workloads
        for load in loads
        for seed in range(1, seeds + 1)
    ]
