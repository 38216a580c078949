"""What one policy did on one fleet, workload and load, over all seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from router.sim.histogram import Histogram
from router.sim.result import SimResult

LATENCIES: Final = ("ttft", "tpot", "e2e")


@dataclass(slots=True)
class Row:
    """Adds up over seeds."""

    fleet: str
    workload: str
    load: float
    policy: str
    rate_per_s: float
    seeds: list[int] = field(default_factory=list[int])
    window_s: float = 0.0
    """Time in which requests came, over all seeds: goodput is per second of it."""
    arrived: int = 0
    met: int = 0
    failures: dict[str, int] = field(default_factory=dict[str, int])
    policy_faults: int = 0
    rent_usd: float = 0.0
    device_usd: float = 0.0
    fleet_j: float = 0.0
    device_j: float = 0.0
    split: int = 0
    times: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in LATENCIES})
    b2: float | None = None
    """Upper bound on `met`; None where it was not worked out."""
    clairvoyant: int | None = None
    """`met` of the best policy that knows all answers' lengths."""

    def add(self, result: SimResult, window_s: float, usd_per_hour: float) -> None:
        """One seed."""
        self.seeds.append(result.seed)
        self.window_s += window_s
        self.arrived += result.arrived
        self.met += result.met
        self.policy_faults += result.policy_faults
        self.rent_usd += usd_per_hour * window_s / 3600
        self.device_usd += result.device_usd
        self.fleet_j += result.energy_j
        self.device_j += sum(each.energy_j for each in result.classes)
        self.split += sum(flow.requests for flow in result.flows if flow.split)
        for reason, count in result.failures.items():
            self.failures[reason] = self.failures.get(reason, 0) + count
        for name, known in self.times.items():
            known.merge(result.times(name))

    def bound(self, b2: float | None, clairvoyant: int | None) -> None:
        """The bounds of one seed; a seed without one leaves the row without."""
        first = len(self.seeds) == 1
        self.b2 = _sum(0.0 if first else self.b2, b2)
        known = _sum(0 if first else self.clairvoyant, clairvoyant)
        self.clairvoyant = None if known is None else int(known)

    @property
    def goodput_per_s(self) -> float:
        """Requests that met all objectives, per second of arrivals."""
        return self.met / self.window_s if self.window_s else 0.0

    @property
    def attainment(self) -> float:
        """Their share of the arrived."""
        return self.met / self.arrived if self.arrived else 0.0

    def per_1000_good(self, amount: float) -> float | None:
        """An amount per 1,000 good requests; None without any."""
        return 1000 * amount / self.met if self.met else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {
            "fleet": self.fleet,
            "workload": self.workload,
            "load": self.load,
            "policy": self.policy,
            "rate_per_s": self.rate_per_s,
            "seeds": self.seeds,
            "arrived": self.arrived,
            "met": self.met,
            "attainment": self.attainment,
            "goodput_per_s": self.goodput_per_s,
            "rent_usd_per_1000_good": self.per_1000_good(self.rent_usd),
            "device_usd_per_1000_good": self.per_1000_good(self.device_usd),
            "fleet_j_per_1000_good": self.per_1000_good(self.fleet_j),
            "device_j_per_1000_good": self.per_1000_good(self.device_j),
            "split_share": self.split / max(1, self.arrived),
            "clairvoyant_ratio": _ratio(self.met, self.clairvoyant),
            "b2_ratio": _ratio(self.met, self.b2),
            "failures": self.failures,
            "policy_faults": self.policy_faults,
        }
        for name, histogram in self.times.items():
            p50, p99 = histogram.quantiles((0.5, 0.99))
            found |= {f"{name}_mean_s": histogram.mean, f"{name}_p50_s": p50, f"{name}_p99_s": p99}
        return found


def _sum(known: float | None, more: float | None) -> float | None:
    return None if known is None or more is None else known + more


def _ratio(amount: float, of: float | None) -> float | None:
    return None if not of else amount / of
