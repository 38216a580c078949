"""Joules per good request below full load, and how well a power cap is held.

On the mixed fleet, the policy with energy as its objective against the baseline that spends least of those
that meet as many objectives. Two accounts are kept: the energy of the device time that requests used, which
is what a router decides, and that of the whole fleet, whose idle power nobody can route away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Final

from backends.catalogue import load_fleet
from router.sim.result import Timeline
from tests.bench.policies.field import (
    CHAMPION,
    Setting,
    contestant,
    contestants,
    is_baseline,
    knows,
    labels_of,
)
from tests.bench.policies.play import play
from tests.bench.policies.scale import endless, scale_of
from tests.bench.policies.score import Score

FLEET: Final = "mixed"
WORKLOADS: Final = ("chat", "vision", "agents")
LOADS: Final = (0.2, 0.4, 0.6)
EQUAL: Final = 0.01
"""Attainment is equal within this."""
OBJECTIVE: Final[Setting] = (CHAMPION, {"objective": "energy"})
OVER_S: Final = 10.0
"""Time over which a power cap is judged."""
CAPPED_FLEET: Final = "fast-slow"
"""Not the mixed one: there a rack that draws its full power idle hides all that routing can do."""
CAPPED_LOAD: Final = 0.6
CAPPED_S: Final = 40.0
CAP_SHARE: Final = 0.7


@dataclass(frozen=True, slots=True)
class Saving:
    """One workload and load."""

    workload: str
    load: float
    ours: str
    attainment: float
    device_j: float
    """Per good request."""
    fleet_j: float
    baseline: str
    """The one that spends least of those that attain as much; empty when there is none."""
    baseline_attainment: float
    baseline_device_j: float
    baseline_fleet_j: float
    """Of the baseline that spends least by this account."""

    @property
    def device_saving(self) -> float | None:
        """Share of the baseline's joules that is saved."""
        return 1 - self.device_j / self.baseline_device_j if self.baseline else None

    @property
    def fleet_saving(self) -> float | None:
        """The same of the whole fleet."""
        return 1 - self.fleet_j / self.baseline_fleet_j if self.baseline else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "device_saving": self.device_saving, "fleet_saving": self.fleet_saving}


def savings(
    workloads: Sequence[str] = WORKLOADS, loads: Sequence[float] = LOADS, share: float = 1.0
) -> list[Saving]:
    """All cells; `share` shortens the windows."""
    setting = OBJECTIVE if knows(*OBJECTIVE) else (CHAMPION, {})
    return [_saving(workload, load, setting, share) for workload in workloads for load in loads]


def _saving(workload: str, load: float, setting: Setting, share: float) -> Saving:
    name, params = setting
    own = contestant(name, params, " ".join([name, *map(str, params.values())]))
    everybody = [*contestants([label for label in labels_of(bounds=False) if is_baseline(label)]), own]
    fleet, scale = load_fleet(FLEET), scale_of(FLEET, workload)
    window_s = scale.window_s * share
    found: dict[str, Score] = {}
    for who in everybody:
        rate = scale.rate_scale * load
        result = play(
            fleet,
            endless(workload, fleet),
            who,
            1,
            rate_scale=rate,
            duration_s=window_s,
        )
        found[who.label] = Score.of(result, window_s, fleet.backends)
    return judged(workload, load, own.label, found)


def judged(workload: str, load: float, own: str, found: Mapping[str, Score]) -> Saving:
    """Ours against the least of those that attain as much."""
    ours = found[own]
    level = attainment(ours) - EQUAL
    rivals = {k: v for k, v in found.items() if k != own and v.met and attainment(v) >= level}
    each = {name: score.device_j / score.met for name, score in rivals.items()}
    best = min(each, key=lambda name: each[name], default="")
    fleet_j = min((score.fleet_j / score.met for score in rivals.values()), default=0.0)
    return Saving(
        workload,
        load,
        own,
        attainment(ours),
        ours.device_j / max(1, ours.met),
        ours.fleet_j / max(1, ours.met),
        best,
        attainment(found[best]) if best else 0.0,
        each[best] if best else 0.0,
        fleet_j,
    )


def attainment(score: Score) -> float:
    """Share that met all objectives."""
    return score.met / max(1, score.arrived)


# --- power cap -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Capped:
    """One run under a cap."""

    fleet: str
    cap_w: float
    uncapped_w: float
    """The most over OVER_S without a cap."""
    most_w: float
    """And with it."""
    attainment: float
    uncapped_attainment: float

    @property
    def excess(self) -> float:
        """Over the cap, relative to it; below 0 it is held."""
        return self.most_w / self.cap_w - 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "excess": self.excess}


def capped(
    setting: Callable[[float], Setting],
    name: str = CAPPED_FLEET,
    workload: str = WORKLOADS[0],
    load: float = CAPPED_LOAD,
    share: float = CAP_SHARE,
) -> Capped | None:
    """Run with and without a cap. `setting` makes a policy of a cap in watts, infinite for none; the cap
    leaves `share` of what is drawn above idling without one. None when this version has no cap."""
    if not knows(*setting(1e6)):
        return None
    fleet, scale = load_fleet(name), scale_of(name, workload)

    def run(cap_w: float) -> tuple[float, float]:
        result = play(
            fleet,
            endless(workload, fleet),
            contestant(*setting(cap_w)),
            1,
            rate_scale=scale.rate_scale * load,
            duration_s=CAPPED_S,
        )
        return most_w(result.timeline), result.attainment

    free_w, free = run(float("inf"))
    idle_w = sum(spec.power.idle_w for spec in fleet.backends)
    cap_w = idle_w + share * (free_w - idle_w)
    held_w, held = run(cap_w)
    return Capped(name, cap_w, free_w, held_w, held, free)


def most_w(timeline: Timeline, over_s: float = OVER_S) -> float:
    """The highest mean power of the fleet over any `over_s` of a run; 0 for a shorter run."""
    steps = max(1, round(over_s / timeline.step_s))
    total = [sum(values) for values in zip(*timeline.power_w.values(), strict=True)]
    sums = [0.0, *accumulate(total)]
    return max(((late - early) / steps for early, late in zip(sums, sums[steps:], strict=False)), default=0.0)
