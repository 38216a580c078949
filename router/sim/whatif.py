"""What another policy, or another fleet, would have made of recorded traffic; and how far to trust the
answer.

First the recorded policy is simulated on the recorded arrivals, and the simulated latencies are compared with
the measured ones. The largest relative error of the percentiles is the model's error. Candidates that differ
by less than it are not ranked: the simulation cannot tell them apart.

The engines' times come from the step models; the delays of the wire, and of the processes at its ends, do
not, and differ from machine to machine. They are measured on every other request of the recording.
Fidelity is then judged on the rest, which they have not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from backends.models.tracking import TrackedModels
from router.core.messages import BackendJoined, BackendLost, BackendRemoved
from router.errors import ConfigError
from router.model import BackendSpec, Report, Seconds
from router.sim.compare import HIGHER_IS_BETTER, estimate
from router.sim.contest import of_text
from router.sim.network import Network, beyond, spread_of
from router.sim.recorded import Change, Recorded, RecordedTraffic, finished
from router.sim.result import LATENCIES, PHASES, SimResult
from router.sim.run import Contestant, Run, Setup
from router.sim.world import World

PERCENTILES: Final = ("p50", "p90", "p99")
LEAST_ERROR: Final = 0.005
"""No simulation is trusted beyond the resolution of its histograms, twice."""
LEAST_SAMPLES: Final = 50
"""Requests from which delays can be measured."""
AS_RECORDED: Final = "as recorded"


@dataclass(frozen=True, slots=True)
class Row:
    """One latency, measured and simulated, at one percentile or the mean."""

    name: str
    statistic: str
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        """Relative to the measurement; 0 when both are 0."""
        if self.measured == self.simulated:
            return 0.0
        return self.simulated / self.measured - 1.0 if self.measured else math.inf


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well the simulation of the recorded policy agrees with what was measured."""

    requests: int
    """Ended well in both."""
    measured_ok: int
    simulated_ok: int
    guessed: int
    """Requests whose length is a guess, because they were not answered to the end."""
    network: Network
    """Delays it was simulated with."""
    calibrated_on: int
    """Requests the delays were measured on, which are not among those compared; 0 when they were given."""
    rows: tuple[Row, ...]
    """Phases first, then TTFT, TPOT and E2E."""

    @property
    def error(self) -> float:
        """The largest relative error of p50, p90 and p99 of TTFT, TPOT and E2E."""
        judged = (row for row in self.rows if row.name in LATENCIES and row.statistic in PERCENTILES)
        return max((abs(row.error) for row in judged), default=math.inf)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "requests": self.requests,
            "measured_ok": self.measured_ok,
            "simulated_ok": self.simulated_ok,
            "guessed_lengths": self.guessed,
            "error": self.error,
            "calibrated_on": self.calibrated_on,
            "typical_trip_s": self.network.typical_trip_s,
            "rows": [
                {"name": r.name, "statistic": r.statistic, "measured": r.measured, "simulated": r.simulated,
                 "error": r.error if math.isfinite(r.error) else None}
                for r in self.rows
            ],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is asked about."""

    policy: Contestant
    fleet: str = ""
    specs: tuple[BackendSpec, ...] | None = None
    """None keeps the recorded fleet, and what happened to it."""

    @property
    def label(self) -> str:
        """For tables."""
        return f"{self.policy.label} on {self.fleet}" if self.specs is not None else self.policy.label


@dataclass(frozen=True, slots=True)
class Standing:
    """A candidate in the ranking."""

    rank: int
    """From 1; candidates that cannot be told apart share one."""
    label: str
    value: float
    """Of the metric, mean over the seeds."""
    results: tuple[SimResult, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Fidelity first, then the ranking."""

    fidelity: Fidelity
    metric: str
    standings: tuple[Standing, ...]

    @property
    def told_apart(self) -> bool:
        """Whether the ranking says anything."""
        return len({one.rank for one in self.standings}) > 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "whatif": 1,
            "fidelity": self.fidelity.as_dict(),
            "metric": self.metric,
            "ranking": [
                {
                    "rank": s.rank,
                    "candidate": s.label,
                    "value": s.value,
                    "runs": [r.as_dict() for r in s.results],
                }
                for s in self.standings
            ],
        }


class WhatIf:
    """Simulations of one recording."""

    def __init__(
        self, recorded: Recorded, network: Network | None = None, told: Callable[[str], None] | None = None
    ) -> None:
        """`told` hears what is being simulated. Raises ConfigError for a recording without requests."""
        if not recorded.arrivals or not recorded.specs:
            raise ConfigError(
                "the recording holds no requests, or no backends; there is nothing to simulate."
            )
        self._recorded = recorded
        self._network = network
        self._told = told or (lambda text: None)

    def fidelity(self, seed: int = 1) -> Fidelity:
        """Simulate the recorded policy and compare. Measures the network's delays first, unless given."""
        recorded = self._recorded
        samples = 0 if self._network is not None else self._measure_delays(seed)
        self._told(f"{AS_RECORDED}, for comparison with the measurement")
        reports = self._reports(self.as_recorded(), seed)
        seen = recorded.every_other() if samples else frozenset[str]()
        measured, simulated = (
            [r for r in finished(some) if r.request.id not in seen] for some in (recorded.measured, reports)
        )
        both = {r.request.id for r in measured} & {r.request.id for r in simulated}
        pairs = [[r for r in some if r.request.id in both] for some in (measured, simulated)]
        return Fidelity(
            len(both),
            len(measured),
            len(simulated),
            recorded.guessed,
            self._network or Network(),
            samples,
            tuple(_rows(pairs[0], pairs[1])),
        )

    def _measure_delays(self, seed: int) -> int:
        """Take the network from every other request; says from how many, 0 for too few."""
        self._told(f"{AS_RECORDED}, without delays, to measure them")
        self._network = Network(one_way_s=0.0)
        simulated = finished(self._reports(self.as_recorded(), seed))
        some = self._recorded.every_other()
        measured = [r for r in finished(self._recorded.measured) if r.request.id in some]
        found = delays(measured, simulated)
        self._network = None if found is None else found[0]
        return 0 if found is None else found[1]

    def _reports(self, candidate: Candidate, seed: int) -> list[tuple[Report, Seconds]]:
        reports: list[tuple[Report, Seconds]] = []
        self._run(candidate, seed, lambda report, now: reports.append((report, now)))
        return reports

    def as_recorded(self) -> Candidate:
        """The policy and the fleet of the recording."""
        return Candidate(of_text(self._recorded.origin.policy, AS_RECORDED))

    def ask(
        self, candidates: Sequence[Candidate], fidelity: Fidelity, metric: str, seeds: Sequence[int] = (1,)
    ) -> Answer:
        """Simulate and rank; what was recorded is ranked along. Raises ConfigError for an unknown metric."""
        found: list[tuple[str, float, tuple[SimResult, ...]]] = []
        for candidate in (self.as_recorded(), *candidates):
            self._told(candidate.label)
            results = tuple(self._run(candidate, seed, None) for seed in seeds)
            values = [result.metrics() for result in results]
            if metric not in values[0]:
                raise ConfigError(f"there is no metric {metric!r}; known are {', '.join(values[0])}.")
            found.append((candidate.label, estimate([one[metric] for one in values]).mean, results))
        return Answer(fidelity, metric, rank(found, metric, max(fidelity.error, LEAST_ERROR)))

    def _run(
        self, candidate: Candidate, seed: int, done: Callable[[Report, Seconds], None] | None
    ) -> SimResult:
        recorded, traffic = self._recorded, RecordedTraffic(self._recorded)
        specs = recorded.specs if candidate.specs is None else candidate.specs
        classes = dict.fromkeys(request.workload_class for _, request in recorded.arrivals)
        jitter = any(request.slo.jitter_ratio is not None for _, request in recorded.arrivals)
        last = recorded.arrivals[-1][0]
        setup = Setup(
            candidate.fleet, specs, "recording", tuple(classes), 1.0, jitter, len(recorded.arrivals), last
        )
        limits = recorded.origin.limits
        run = Run(
            setup, candidate.policy, seed, traffic, traffic, limits, self._network, TrackedModels(), done=done
        )
        for request_id, at in recorded.cancelled.items():
            run.world.cancel(at, request_id)
        if candidate.specs is None:
            for change in recorded.changes:
                _schedule(run.world, change)
        run.watch(stop=False, progress=None)
        run.world.run()
        return run.result()


def rank(
    found: Sequence[tuple[str, float, tuple[SimResult, ...]]], metric: str, error: float
) -> tuple[Standing, ...]:
    """Best first. A candidate takes a rank of its own when it is worse than the best of the rank before by
    more than the error."""
    higher = metric in HIGHER_IS_BETTER
    ordered = sorted(found, key=lambda one: (-one[1] if higher else one[1], one[0]))
    standings: list[Standing] = []
    best = ordered[0][1]
    number = 1
    for label, value, results in ordered:
        if abs(value - best) > error * abs(best):
            best, number = value, len(standings) + 1
        standings.append(Standing(number, label, value, results))
    return tuple(standings)


def delays(measured: Sequence[Report], ideal: Sequence[Report]) -> tuple[Network, int] | None:
    """The network that explains why requests took longer than in a simulation without delays.

    Compared are requests that ran at the same places in both, by the time of their prefill (one command
    down, one message up) and of their handoff (the same, and the consumer's call to the producer). The
    smallest round trip is taken for the fixed part, half of it each way; the rest varies and is added on the
    way up. None for fewer than LEAST_SAMPLES.
    """
    others = {report.request.id: report for report in ideal}
    pairs = [(one, others[one.request.id]) for one in measured if one.request.id in others]
    pairs = [(one, other) for one, other in pairs if _places(one) == _places(other)]
    if len(pairs) < LEAST_SAMPLES:
        return None
    trips = sorted(one.times.prefill_s - other.times.prefill_s for one, other in pairs)
    fixed = max(0.0, trips[len(trips) // 100])
    handoffs = [
        one.times.handoff_s - other.times.handoff_s for one, other in pairs if len(set(_places(one))) > 1
    ]
    up, handoff = spread_of(trips, less=fixed), spread_of(handoffs, less=fixed)
    pull = None
    if up is not None and handoff is not None and len(handoffs) >= LEAST_SAMPLES:
        pull = beyond(handoff, up)
    return Network(one_way_s=fixed / 2.0, up=up, pull=pull), len(pairs)


def _places(report: Report) -> list[str]:
    return [use.backend for use in report.uses]


def _schedule(world: World, change: Change) -> None:
    """Let happen to the simulated fleet what happened to the real one. Cordons are left out: they are an
    answer to what was seen then."""
    match change.fact:
        case BackendJoined(spec=spec):
            world.at(change.at, lambda: world.join(spec), background=True)
        case BackendLost(backend=backend) | BackendRemoved(backend=backend):
            world.at(change.at, lambda: world.kill(backend), background=True)
        case _:
            pass


def _rows(measured: Sequence[Report], simulated: Sequence[Report]) -> list[Row]:
    rows: list[Row] = []
    for name in (*PHASES, *LATENCIES):
        split = name == "handoff"
        real, virtual = _values(measured, name, split), _values(simulated, name, split)
        for statistic, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            rows.append(Row(name, statistic, _quantile(real, q), _quantile(virtual, q)))
        rows.append(Row(name, "mean", _mean(real), _mean(virtual)))
    return rows


def _values(reports: Sequence[Report], name: str, split: bool) -> list[float]:
    """A latency of all reports; handoffs of those that had one, since zeros of the others would hide them."""
    found = (
        getattr(report.times, f"{name}_s")
        for report in reports
        if not split or len({use.backend for use in report.uses}) > 1
    )
    return sorted(value for value in found if value is not None)


def _quantile(ordered: Sequence[float], q: float) -> float:
    """The value of rank ceil(q x count); 0 of none."""
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
