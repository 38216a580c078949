"""The experiments beside the grid, run one after the other, and what they found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from tests.bench.decisions import SIZES, Decided, decided
from tests.bench.policies.additions import REQUESTS, Addition, additions
from tests.bench.policies.energy import Capped, Saving, capped, savings
from tests.bench.policies.field import CHAMPION, FLEETS, Setting, fleets, labels_of
from tests.bench.policies.jitter import Voice, voices
from tests.bench.policies.monotone import RATES, Trial, trial
from tests.bench.policies.overload import Flood, Starved, flood, starved

IN_THE_EXPERIMENT: Final = (
    "dynamo",
    "dynamo_two_tier",
    "llm_d",
    "least_requests",
    "round_robin",
    "least_loaded",
    CHAMPION,
)
BESIDE_A_FLOOD: Final = (CHAMPION, "dynamo", "llm_d", "smg_cache_aware", "mooncake")
CAPPED: Final = "priced"
"""The policy that holds a cap."""


@dataclass(slots=True)
class Findings:
    """All experiments; an empty list or None was not run."""

    trials: list[Trial] = field(default_factory=list[Trial])
    added: list[Addition] = field(default_factory=list[Addition])
    savings: list[Saving] = field(default_factory=list[Saving])
    capped: Capped | None = None
    voices: list[Voice] = field(default_factory=list[Voice])
    floods: list[Flood] = field(default_factory=list[Flood])
    starved: Starved | None = None
    decided: list[Decided] = field(default_factory=list[Decided])
    live: Sequence[dict[str, Any]] = ()
    """As live.py left it in a file."""


def cap(watts: float) -> Setting:
    """Our policy under a fleet power cap; infinite for none."""
    return CAPPED, {"power_cap_w": watts if watts < inf else 0.0}


def found(told: Callable[[str], None]) -> Findings:
    """Everything but the live runs."""
    told("time of a decision")
    decisions = [decided(CHAMPION, size) for size in SIZES]
    told("a worker eight times slower")
    trials = [trial(name, rate, 2000) for name in IN_THE_EXPERIMENT for rate in RATES]
    told("one backend more")
    added = additions(fleets(FLEETS), REQUESTS)
    told("joules")
    saved = savings()
    held = capped(cap)
    told("voices beside documents")
    heard = voices()
    told("a flood, and bulk beside a crowd")
    known = labels_of(bounds=False)
    floods = [flood(name) for name in BESIDE_A_FLOOD if name in known]
    return Findings(trials, added, saved, held, heard, floods, starved(), decisions)
