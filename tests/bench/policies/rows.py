"""A cell: what every policy did on one fleet, workload and load, over all seeds; and the bounds there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

from tests.bench.policies.field import CHAMPION, CLAIRVOYANTS, is_baseline
from tests.bench.policies.grid import Outcome
from tests.bench.policies.score import LATENCIES, Score

COLUMNS: Final = (
    "met",
    "attainment",
    "goodput_per_s",
    "device_usd_per_1000_good",
    "device_j_per_1000_good",
    "fleet_j_per_1000_good",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "tpot_p99_s",
    "e2e_mean_s",
    "split_share",
    "failed_share",
)
"""Of a policy in a cell, in policies.json."""


@dataclass(slots=True)
class Row:
    """One policy in a cell: sums over the seeds, and means over the seeds of its latencies."""

    policy: str
    scores: list[Score] = field(default_factory=list[Score])

    def total(self, name: str) -> float:
        """A sum over the seeds."""
        return sum(float(getattr(score, name)) for score in self.scores)

    @property
    def met(self) -> int:
        """Requests that met all their objectives."""
        return sum(score.met for score in self.scores)

    @property
    def goodput_per_s(self) -> float:
        """Requests that met all objectives, per second of arrivals."""
        return self.met / self.total("window_s")

    @property
    def attainment(self) -> float:
        """Their share of the arrived."""
        return self.met / max(1.0, self.total("arrived"))

    def per_1000_good(self, name: str) -> float | None:
        """A sum per 1,000 good requests; None without any."""
        return 1000 * self.total(name) / self.met if self.met else None

    def latency(self, name: str, statistic: int) -> float:
        """Mean over the seeds; 0 is the mean, 1 p50, 2 p99."""
        return fmean(score.times[name][statistic] for score in self.scores)

    def missed(self) -> dict[str, int]:
        """Objective -> requests that missed it."""
        found: dict[str, int] = {}
        for score in self.scores:
            for name, count in score.missed.items():
                found[name] = found.get(name, 0) + count
        return found

    def values(self) -> list[float | None]:
        """As COLUMNS says."""
        arrived = max(1.0, self.total("arrived"))
        failed = arrived - self.total("ok")
        times = [self.latency(name, i) for name in LATENCIES[:2] for i in (1, 2)]
        return [
            self.met,
            self.attainment,
            self.goodput_per_s,
            *(self.per_1000_good(name) for name in ("device_usd", "device_j", "fleet_j")),
            *times,
            self.latency("e2e", 0),
            self.total("split") / arrived,
            failed / arrived,
        ]


Value = Callable[[Row], float]


@dataclass(slots=True)
class Cell:
    """One fleet, workload and load."""

    fleet: str
    workload: str
    load: float
    rate_per_s: float
    rows: dict[str, Row] = field(default_factory=dict[str, Row])
    seeds: list[int] = field(default_factory=list[int])
    b2: float | None = 0.0
    """Upper bound on `met`; None where it was not worked out."""
    best_known: int = 0
    """Sum over the seeds of the most that any schedule reached there, a clairvoyant or any policy."""

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.fleet} {self.workload} {self.load:g}"

    @property
    def ours(self) -> Row | None:
        """The champion."""
        return self.rows.get(CHAMPION)

    def add(self, outcome: Outcome) -> None:
        """One seed."""
        self.seeds.append(outcome.spot.seed)
        for label, score in outcome.scores.items():
            self.rows.setdefault(label, Row(label)).scores.append(score)
        self.b2 = None if self.b2 is None or outcome.b2 is None else self.b2 + outcome.b2
        self.best_known += max((score.met for score in outcome.scores.values()), default=0)

    def clairvoyant(self) -> int | None:
        """`met` of the best clairvoyant policy, of B4."""
        known = [self.rows[label].met for label in CLAIRVOYANTS if label in self.rows]
        return max(known) if known else None

    def best_baseline(self, value: Value) -> Row | None:
        """The baseline with the highest value."""
        return max((row for row in self.rows.values() if is_baseline(row.policy)), key=value, default=None)

    def over_best_baseline(self, value: Value, label: str = CHAMPION) -> float | None:
        """Ours over the best baseline; None where that has nothing."""
        best = self.best_baseline(value)
        if best is None or label not in self.rows or not value(best):
            return None
        return value(self.rows[label]) / value(best)


def goodput(row: Row) -> float:
    """Good requests per second."""
    return row.goodput_per_s


def per_device_usd(row: Row) -> float:
    """Good requests per dollar of device time."""
    used = row.total("device_usd")
    return row.met / used if used else 0.0


def per_device_j(row: Row) -> float:
    """Good requests per joule of device time."""
    used = row.total("device_j")
    return row.met / used if used else 0.0


def ratio(amount: float, of: float | None) -> float | None:
    """None without a base."""
    return amount / of if of else None


def cells_of(outcomes: Iterable[Outcome]) -> list[Cell]:
    """Outcomes by cell, in their order."""
    found: dict[tuple[str, str, float], Cell] = {}
    for outcome in outcomes:
        spot = outcome.spot
        key = (spot.fleet, spot.workload, spot.load)
        found.setdefault(key, Cell(*key, outcome.rate_per_s * spot.load)).add(outcome)
    return list(found.values())


def named(cells: Sequence[Cell]) -> Mapping[tuple[str, str, float], Cell]:
    """By fleet, workload and load."""
    return {(cell.fleet, cell.workload, cell.load): cell for cell in cells}
