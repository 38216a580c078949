"""Who competes, where, and on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from backends.catalogue import fleet_names
from policies.registry import BUILTIN, POLICIES, build
from router.sim.run import Contestant

OURS: Final = tuple(BUILTIN)
"""Policies of our own; the rest are baselines, and so is round robin."""
BASELINES: Final = (*(name for name in POLICIES if name not in OURS), "round_robin")
CHAMPION: Final = "predicted"
VARIANTS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "dynamo, conditional": ("dynamo", {"conditional_disaggregation": True}),
    "llm_d, sticky": ("llm_d", {"strategy": "sticky"}),
}
"""Baselines in a second setting of their makers."""
OUR_VARIANTS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "predicted, refuses": ("predicted", {"refuse_beyond_slo": 1.0}),
}
"""Ours with early rejection, which is off by default: some callers prefer a late answer to none."""
FLEETS: Final = ("homogeneous", "fast-slow", "gpu-lpu", "gpu-tpu", "mixed", "afd")
WORKLOADS: Final[Mapping[str, float]] = {
    "chat": 15.0,
    "code": 20.0,
    "agents": 45.0,
    "reasoning": 90.0,
    "vision": 15.0,
    "mixed": 40.0,
    "voice": 15.0,
}
"""Shipped workloads, and for how many seconds at least requests come: a few times the longest answers."""
MOST_REQUESTS: Final = 1600
LEAST_REQUESTS: Final = 600
LOADS: Final = (0.3, 0.6, 0.9)
"""Shares of the fluid bound's capacity (router/plan), which no policy reaches."""


@dataclass(frozen=True, slots=True)
class Spot:
    """One fleet, one workload, one load, one seed: all policies run on the same arrivals there."""

    fleet: str
    workload: str
    load: float
    seed: int


def contestants(labels: Sequence[str] = ()) -> list[Contestant]:
    """All policies and variants, or those named."""
    everybody: dict[str, tuple[str, Mapping[str, Any]]] = {name: (name, {}) for name in POLICIES}
    everybody |= {**VARIANTS, **OUR_VARIANTS}
    return [_contestant(label, *everybody[label]) for label in labels or everybody]


def is_baseline(label: str) -> bool:
    """Whether a policy is somebody else's rule."""
    return label in BASELINES or label in VARIANTS


def fleets(named: Sequence[str] = ()) -> list[str]:
    """The fleets of the comparison that ship with the project."""
    known = fleet_names()
    return [name for name in named or FLEETS if name in known]


def _contestant(label: str, name: str, params: Mapping[str, Any]) -> Contestant:
    return Contestant(label, lambda outlook: build(name, params, outlook.models, outlook.rng))
