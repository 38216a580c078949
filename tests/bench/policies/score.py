"""What one policy made of one spot: values that survive in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from router.model import BackendSpec
from router.sim.result import SimResult

LATENCIES: Final[Sequence[str]] = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class Score:
    """One run."""

    arrived: int
    ok: int
    met: int
    """Met all their objectives."""
    window_s: float
    """Time in which requests came: goodput is per second of it."""
    device_usd: float
    """List price of the device time that requests used."""
    device_j: float
    """Energy of that device time."""
    fleet_j: float
    """Energy of the fleet: its idle power for the window, and what work added to it. A policy that leaves one
    slow answer for last is not charged for the fleet that idles beside it."""
    rent_usd: float
    """List price of the fleet for the window."""
    split: int
    faults: int
    failures: Mapping[str, int]
    missed: Mapping[str, int]
    """Objective -> requests that had it and missed it, failures included."""
    times: Mapping[str, tuple[float, float, float]]
    """Latency -> mean, p50, p99 in seconds."""

    @classmethod
    def of(cls, result: SimResult, window_s: float, specs: Sequence[BackendSpec]) -> Self:
        """Of a simulation."""
        missed: dict[str, int] = {}
        for one in result.classes:
            for name, (kept, asked) in one.kept.items():
                missed[name] = missed.get(name, 0) + asked - kept
        return cls(
            result.arrived,
            result.ok,
            result.met,
            window_s,
            result.device_usd,
            sum(one.energy_j for one in result.classes),
            fleet_j(result, window_s, specs),
            sum(spec.usd_per_hour for spec in specs) * window_s / 3600,
            sum(flow.requests for flow in result.flows if flow.split),
            result.policy_faults,
            dict(result.failures),
            missed,
            {name: _three(result, name) for name in LATENCIES},
        )

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Self:
        """From a file."""
        times = {name: (three[0], three[1], three[2]) for name, three in kept["times"].items()}
        return cls(**{**kept, "times": times})

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def fleet_j(result: SimResult, window_s: float, specs: Sequence[BackendSpec]) -> float:
    """Energy of the fleet as Score has it."""
    idle_w = sum(spec.power.idle_w for spec in specs)
    return result.energy_j + idle_w * (window_s - result.duration_s)


def _three(result: SimResult, name: str) -> tuple[float, float, float]:
    times = result.times(name)
    p50, p99 = times.quantiles((0.5, 0.99))
    return times.mean, p50, p99
