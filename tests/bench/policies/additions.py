"""Does adding a backend make a fleet slower? Every kind of backend that ships, added to every fleet.

The fleet alone and the fleet with one backend more serve the same arrivals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from backends.catalogue import Fleet, load_fleet
from router.model import BackendSpec
from router.sim.result import SimResult
from tests.bench.policies.field import CHAMPION, FLEETS, contestants, fleets
from tests.bench.policies.play import play
from tests.bench.policies.scale import Scale, endless, scale_of

WORKLOAD = "chat"
LOAD = 0.5
"""Of the capacity of the fleet alone."""
REQUESTS = 800
ADDED = "added"


@dataclass(frozen=True, slots=True)
class Addition:
    """One backend added to a fleet."""

    fleet: str
    device: str
    mean_ratio: float
    """Mean end-to-end latency with the backend over that without; above 1 it made things worse."""
    p99_ratio: float

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def additions(
    named: Iterable[str], requests: int = REQUESTS, policy: str = CHAMPION, load: float = LOAD
) -> list[Addition]:
    """Every fleet named, with every device that serves its model."""
    return [one for name in named for one in _of(name, requests, policy, load)]


def _of(name: str, requests: int, policy: str, load: float) -> Iterator[Addition]:
    fleet, scale = load_fleet(name), scale_of(name, WORKLOAD)
    alone = _times(_run(fleet, (), scale, requests, policy, load))
    for spec in _devices(fleet):
        more = _times(_run(fleet, (replace(spec, id=ADDED),), scale, requests, policy, load))
        yield Addition(name, f"{spec.kind.value} {spec.device}", more[0] / alone[0], more[1] / alone[1])


def _devices(fleet: Fleet) -> list[BackendSpec]:
    """One of each device of the shipped fleets that serves the fleet's model."""
    model = fleet.backends[0].models[0]
    every = [spec for name in fleets(FLEETS) for spec in load_fleet(name).backends if model in spec.models]
    return list({(spec.device, spec.phases): spec for spec in every}.values())


def _run(
    fleet: Fleet, more: Sequence[BackendSpec], scale: Scale, requests: int, policy: str, load: float
) -> SimResult:
    return play(
        [*fleet.backends, *more],
        endless(WORKLOAD, fleet),
        contestants([policy])[0],
        1,
        rate_scale=scale.rate_scale * load,
        requests=requests,
    )


def _times(result: SimResult) -> tuple[float, float]:
    times = result.times("e2e")
    return times.mean, times.quantile(0.99)
