"""Runs what is asked for at every spot, on two processes, and keeps what is done."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any, Final

from backends.catalogue import load_fleet
from router.errors import ConfigError
from router.plan.bounds import Case, bounds_of
from router.plan.clairvoyant import clairvoyants
from router.plan.recording import recorded
from router.sim.run import Contestant
from tests.bench.policies.field import B2, CHAMPION, CLAIRVOYANTS, Spot, contestants
from tests.bench.policies.kept import Kept
from tests.bench.policies.play import play
from tests.bench.policies.scale import Scale, endless, probe, scale_of
from tests.bench.policies.score import Score

WINDOWS: Final = 12
"""Windows of the bound B2 over the arrivals, at most; more are dearer and bound a little tighter."""
WORKERS: Final = 2
NICE: Final = 10
SCALE: Final = "scale"

Found = Mapping[str, Mapping[str, Any]]
"""Label -> what was found, as it is kept."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A spot with everything that was asked for."""

    spot: Spot
    rate_per_s: float
    """That a load of 1 offers."""
    scores: Mapping[str, Score]
    """Of policies, clairvoyant ones included."""
    b2: float | None
    """In requests; None where it was not asked for, or the program is too large even in one window."""


class _Stage:
    """One spot, ready to run policies on."""

    def __init__(self, spot: Spot, scale: Scale) -> None:
        self._spot = spot
        self._scale = scale
        self._fleet = load_fleet(spot.fleet)
        self._workload = endless(spot.workload, self._fleet)

    def score(self, who: Contestant) -> Score:
        """One policy."""
        result = play(
            self._fleet,
            self._workload,
            who,
            self._spot.seed,
            rate_scale=self._scale.rate_scale * self._spot.load,
            duration_s=self._scale.window_s,
        )
        return Score.of(result, self._scale.window_s, self._fleet.backends)

    def champion_and_b2(self) -> tuple[Score, float | None]:
        """The bound is on what came while our policy ran: where callers wait, answers decide what comes."""
        who, recording = recorded(contestants([CHAMPION])[0])
        score = self.score(who)
        return score, _b2(probe(self._fleet, recording.tasks()), self._scale.window_s)


def run_spot(spot: Spot, scale: Scale, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """All that is asked for, on the same arrivals."""
    stage = _Stage(spot, scale)
    found: dict[str, dict[str, Any]] = {}
    if B2 in labels:
        score, b2 = stage.champion_and_b2()
        found[CHAMPION], found[B2] = score.as_dict(), {"requests": b2}
    rest = [label for label in labels if label not in found]
    known = {who.label: who for who in clairvoyants()}
    for label in rest:
        who = known[label] if label in CLAIRVOYANTS else contestants([label])[0]
        found[label] = stage.score(who).as_dict()
    return found


def _b2(case: Case, window_s: float) -> float | None:
    """B2 in requests; None when the program is too large even in one window."""
    for windows in (WINDOWS, 4, 1):
        try:
            return bounds_of(case, case.span_s / windows).windows
        except ConfigError:
            continue
    return None


def run_all(
    spots: Sequence[Spot],
    labels: Sequence[str],
    kept: Kept,
    anew: Sequence[str] = (),
    told: Callable[[Outcome], None] = lambda outcome: None,
    workers: int = WORKERS,
) -> list[Outcome]:
    """Every spot, in the order of the spots. Runs that are kept are not run again, but for those `anew`."""
    jobs = {spot: [x for x in labels if x in anew or kept.get(spot, x) is None] for spot in spots}
    jobs = {spot: missing for spot, missing in jobs.items() if missing}
    for spot in spots:
        if spot not in jobs:
            told(outcome_of(spot, labels, kept))
    if jobs:
        with _processes(min(len(jobs), workers)) as pool:
            try:
                _carry_out(pool, jobs, kept, lambda spot: told(outcome_of(spot, labels, kept)))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    return [outcome_of(spot, labels, kept) for spot in spots]


def _processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, multiprocessing.get_context("fork"), os.nice, (NICE,))


def _carry_out(
    pool: ProcessPoolExecutor, jobs: Mapping[Spot, Sequence[str]], kept: Kept, done: Callable[[Spot], None]
) -> None:
    places = dict.fromkeys((spot.fleet, spot.workload) for spot in jobs)
    unknown = [place for place in places if kept.get(_of_place(*place), SCALE) is None]
    scales = [pool.submit(scale_of, *place) for place in unknown]
    for place, scale in zip(unknown, scales, strict=True):
        kept.put(_of_place(*place), SCALE, asdict(scale.result()))
    running = {pool.submit(run_spot, spot, _scale(spot, kept), labels): spot for spot, labels in jobs.items()}
    for job in as_completed(running):
        spot = running[job]
        for label, value in job.result().items():
            kept.put(spot, label, value)
        done(spot)


def outcome_of(spot: Spot, labels: Sequence[str], kept: Kept) -> Outcome:
    """A spot from what is kept."""
    found = {label: value for label in labels if (value := kept.get(spot, label)) is not None}
    bound = found.pop(B2, None)
    scores = {label: Score.read(value) for label, value in found.items()}
    return Outcome(spot, _scale(spot, kept).rate_per_s, scores, None if bound is None else bound["requests"])


def _scale(spot: Spot, kept: Kept) -> Scale:
    return Scale(**(kept.get(_of_place(spot.fleet, spot.workload), SCALE) or {}))


def _of_place(fleet: str, workload: str) -> Spot:
    """Where the scale is kept: it is the same at all loads, for all seeds."""
    return Spot(fleet, workload, 0.0, 0)


def spots_of(
    fleets: Iterable[str], workloads: Sequence[str], loads: Sequence[float], seeds: int
) -> list[Spot]:
    """The whole grid, fleet by fleet."""
    return [
        Spot(fleet, workload, load, seed)
        for fleet in fleets
        for workload in workloads
        for load in loads
        for seed in range(1, seeds + 1)
    ]
