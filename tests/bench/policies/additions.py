"""Does adding any backend to a fleet make it slower? Shipped fleets with and without one of each device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from backends.catalogue import load_fleet
from router.errors import ConfigError
from router.model import BackendSpec
from router.sim.result import SimResult
from router.sim.run import simulate
from tests.bench.policies.field import CHAMPION, contestants
from tests.bench.policies.grid import endless, scale_of

WORKLOAD = "chat"
LOAD = 0.4
"""Of the whole fleet's capacity: the fleet without the backend is not overloaded either."""
REQUESTS = 1500


@dataclass(frozen=True, slots=True)
class Addition:
    """One backend added to the rest of its fleet."""

    fleet: str
    backend: str
    mean_ratio: float
    """Mean end-to-end latency with the backend over that without; above 1 it made things worse."""
    p99_ratio: float

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def additions(fleets: Iterable[str], requests: int = REQUESTS) -> list[Addition]:
    """All that can be tried: without the backend the fleet must still serve."""
    return [one for fleet in fleets for one in _of(fleet, requests)]


def _of(fleet: str, requests: int) -> list[Addition]:
    specs = load_fleet(fleet).backends
    whole = _run(fleet, specs, requests)
    found: list[Addition] = []
    for spec in {spec.device: spec for spec in specs}.values():
        try:
            rest = _run(fleet, [other for other in specs if other is not spec], requests)
        except ConfigError:  # nobody else does its phase
            continue
        (mean, p99), (mean_without, p99_without) = _times(whole), _times(rest)
        found.append(Addition(fleet, spec.id, mean / mean_without, p99 / p99_without))
    return found


def _run(fleet: str, specs: Sequence[BackendSpec], requests: int) -> SimResult:
    scale = scale_of(fleet, WORKLOAD).rate_scale * LOAD
    who = contestants([CHAMPION])[0]
    load = endless(WORKLOAD, load_fleet(fleet))
    return simulate(specs, load, who, 1, rate_scale=scale, requests=requests, stop_when_unstable=False)


def _times(result: SimResult) -> tuple[float, float]:
    times = result.times("e2e")
    return times.mean, times.quantile(0.99)
