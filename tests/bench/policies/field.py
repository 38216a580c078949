"""Who competes, where, and on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from backends.catalogue import fleet_names
from backends.models.laws import StepModels
from policies.registry import BUILTIN, DEFAULT, POLICIES, build
from router.errors import ConfigError
from router.plan.clairvoyant import clairvoyants
from router.sim.run import Contestant

OURS: Final = tuple(BUILTIN)
"""Policies of our own; the rest are baselines, and so is round robin."""
CHAMPION: Final = DEFAULT
"""The policy that the daemon runs unless told otherwise: what the targets are about."""
Setting = tuple[str, Mapping[str, Any]]
VARIANTS: Final[Mapping[str, Setting]] = {
    "dynamo, conditional": ("dynamo", {"conditional_disaggregation": True}),
    "llm_d, sticky": ("llm_d", {"strategy": "sticky"}),
}
"""Baselines in a second setting of their makers."""
OUR_VARIANTS: Final[Mapping[str, Setting]] = {
    f"{CHAMPION}, cost": (CHAMPION, {"objective": "cost"}),
    f"{CHAMPION}, energy": (CHAMPION, {"objective": "energy"}),
}
"""Ours with another objective. What this version does not know is left out."""
FLEETS: Final = ("homogeneous", "fast-slow", "gpu-lpu", "gpu-tpu", "mixed", "afd")
EQUAL: Final = "homogeneous"
"""The fleet without differences: there nobody must be behind a baseline."""
OVERLOAD: Final = 3.0
LOADS: Final = (0.5, 0.8, 1.0, OVERLOAD)
"""Shares of the fluid bound's capacity (router/plan), which no policy reaches."""


@dataclass(frozen=True, slots=True)
class Window:
    """For how long requests come."""

    seconds: float
    """At least, a few times the usual answer; `least` and `most` go before it."""
    least: int = 500
    """Requests at a load of 1."""
    most: int = 900


WORKLOADS: Final[Mapping[str, Window]] = {
    "chat": Window(8.0),
    "code": Window(20.0, 1200, 1600),
    "agents": Window(20.0),
    "reasoning": Window(40.0),
    "vision": Window(8.0),
    "mixed": Window(16.0),
}
"""Shipped workloads of the comparison. Code comes in bursts of a hundred, and needs more requests."""
MORE_WORKLOADS: Final[Mapping[str, Window]] = {"voice": Window(12.0), "edge": Window(12.0)}
"""May be asked for. The bounds leave jitter out, so that cells of `voice` compare little: see jitter.py."""
B2: Final = "B2"
CLAIRVOYANTS: Final = tuple(who.label for who in clairvoyants())
QUICK: Final = (
    *(name for name in ("predicted", "priced") if name in BUILTIN),
    f"{CHAMPION}, cost",
    "least_requests",
    "dynamo",
    "llm_d",
    "smg_least_load",
    "mooncake",
)


@dataclass(frozen=True, slots=True)
class Spot:
    """One fleet, one workload, one load, one seed: all policies run on the same arrivals there."""

    fleet: str
    workload: str
    load: float
    seed: int


def contestants(labels: Sequence[str] = ()) -> list[Contestant]:
    """All policies and variants, or those named."""
    everybody = _everybody()
    return [_contestant(label, *everybody[label]) for label in labels or everybody]


def labels_of(named: Sequence[str] = (), bounds: bool = True) -> list[str]:
    """What is run at a spot: policies, and with `bounds` the clairvoyant ones and B2.

    `named` limits it; `clairvoyants` and `B2` may be named too. Raises ConfigError for any other name.
    """
    everybody = [*_everybody(), *(CLAIRVOYANTS if bounds else ()), *((B2,) if bounds else ())]
    asked = [each for name in named for each in (CLAIRVOYANTS if name == "clairvoyants" else (name,))]
    for name in asked:
        if name not in everybody:
            raise ConfigError(
                f"nothing is called {name!r}; there are {', '.join(everybody)}, and clairvoyants."
            )
    return asked or everybody


def quick() -> list[str]:
    """A few policies for quick feedback, and the bounds."""
    everybody = labels_of()
    return [label for label in (*QUICK, *CLAIRVOYANTS, B2) if label in everybody]


def is_baseline(label: str) -> bool:
    """Whether a policy is somebody else's rule."""
    name = label.split(",", 1)[0]
    return name == "round_robin" or (name in POLICIES and name not in OURS)


def fleets(named: Sequence[str] = ()) -> list[str]:
    """The fleets of the comparison, or those named. Raises ConfigError for one that does not ship."""
    for name in named:
        if name not in fleet_names():
            raise ConfigError(f"there is no fleet {name!r}; there are {', '.join(fleet_names())}.")
    return list(named or FLEETS)


def contestant(name: str, params: Mapping[str, Any], label: str = "") -> Contestant:
    """A policy with parameters. Raises ConfigError for what this version does not know."""
    build(name, params, StepModels(), Random(0))
    return _contestant(label or name, name, params)


def knows(name: str, params: Mapping[str, Any]) -> bool:
    """Whether this version has such a policy with such parameters."""
    try:
        contestant(name, params)
    except ConfigError:
        return False
    return True


def _everybody() -> dict[str, Setting]:
    found: dict[str, Setting] = {name: (name, {}) for name in POLICIES}
    return found | {k: v for k, v in {**VARIANTS, **OUR_VARIANTS}.items() if knows(*v)}


def _contestant(label: str, name: str, params: Mapping[str, Any]) -> Contestant:
    return Contestant(label, lambda outlook: build(name, params, outlook.models, outlook.rng))
