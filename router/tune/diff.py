"""Tells two policies apart: what is set differently, how many placements differ, and what comes of it.

Placements are compared on the same snapshots: the second policy rides along in the first one's simulation,
asked the same questions and told the same facts, without a hand in the outcome. Outcomes are compared between
a simulation of each on the same arrivals.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from backends.catalogue import Fleet
from policies.declared import effective
from policies.registry import build
from router.core.choice import Plan
from router.core.ports import FleetView, Policy
from router.model import Placement, Reject, Request, RoutePlan, Seconds, Wait
from router.observe.explanation import verdict_of
from router.observe.scene import Scene, StillFleet
from router.observe.shadow import Agreement, Opinion, Verdict, judge
from router.sim.classes import Workload
from router.sim.run import Contestant, Outlook, simulate
from router.tune.scene_file import PolicyText

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ParameterDifference:
    """A value that differs; None where a policy has no such key."""

    key: str
    first: Any
    second: Any


@dataclass(frozen=True, slots=True)
class PlacementDifference:
    """What the second policy said at the first one's decisions."""

    verdicts: Mapping[Verdict, int]
    moves: tuple[tuple[Pair, int], ...]
    """(place of the first, place of the second) -> decisions; most frequent first."""
    agreement: Agreement


def parameter_differences(first: PolicyText, second: PolicyText) -> list[ParameterDifference]:
    """Values in force that differ, defaults included. Raises ConfigError."""
    before, after = effective(first.name, first.params), effective(second.name, second.params)
    names = [ParameterDifference("name", first.name, second.name)] if first.name != second.name else []
    return names + [
        ParameterDifference(key, before.get(key), after.get(key))
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key)
    ]


def placement_differences(
    first: PolicyText,
    second: PolicyText,
    fleet: Fleet,
    workload: Workload,
    *,
    seed: int = 1,
    requests: int | None = None,
) -> PlacementDifference:
    """Simulate the first policy with the second one asked alongside. Raises ConfigError."""
    tally = Tally()

    def make(outlook: Outlook) -> Policy:
        decides = build(first.name, first.params, outlook.models, outlook.rng)
        # A stream of its own: drawing from the first one's would change what the first one does.
        rides = build(second.name, second.params, outlook.models, Random(f"{seed}/companion"))
        return Companion(decides, rides, tally)

    simulate(fleet, workload, Contestant(first.name, make), seed, requests=requests)
    return tally.result()


class Companion:
    """The first policy, with the second one asked alongside. Satisfies core.ports.Policy."""

    def __init__(self, first: Policy, second: Policy, tally: Tally) -> None:
        self._first = first
        self._second = second
        self._tally = tally

    @property
    def name(self) -> str:
        """The first one's: it decides."""
        return self._first.name

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """As the first policy; the second one's answer is counted."""
        answer = self._first.plan(request, fleet, now)
        scene = Scene(request, StillFleet(fleet.for_model(request.model)), now)
        self._tally.count(answer, judge(self._second, scene, answer))
        return answer

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """As the first policy."""
        return self._first.bind_decode(request, prefill, fleet, now)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Both learn; what the second raises costs it the lesson."""
        self._first.observe(fact, now)
        self._tally.taught(self._second, fact, now)


class Tally:
    """Counts agreement."""

    def __init__(self) -> None:
        self._verdicts: collections.Counter[Verdict] = collections.Counter()
        self._moves: collections.Counter[Pair] = collections.Counter()

    def count(self, answer: Plan, opinion: Opinion) -> None:
        """One decision of the first policy, and what the second one said."""
        self._verdicts[opinion.verdict] += 1
        if opinion.verdict is not Verdict.SAME and opinion.answer is not None:
            self._moves[verdict_of(answer), verdict_of(opinion.answer)] += 1

    def taught(self, policy: Policy, fact: Any, now: Seconds) -> None:
        """Let the second policy learn."""
        try:
            policy.observe(fact, now)
        except Exception:  # noqa: BLE001 - a policy may raise anything
            self._verdicts[Verdict.ERROR] += 1

    def result(self) -> PlacementDifference:
        """What was counted."""
        return PlacementDifference(
            dict(self._verdicts), tuple(self._moves.most_common()), Agreement.of(self._verdicts)
        )
