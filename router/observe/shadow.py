"""What another policy would have done: asked the same question as the live one, compared, and never heeded.

A shadow is asked itself, not a copy of it: what it remembers of its own decisions (prefixes, sessions) is of
a world in which they were carried out, while the load it sees is the live policy's doing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from router.core.choice import Plan, check_plan
from router.core.ports import Policy
from router.errors import PolicyError
from router.model import Prediction, RoutePlan
from router.observe.scene import Scene, place_of

RAISED: Final = "raised"
SLOW: Final = "slow"
"""Fault of an answer that came, but took longer than the budget."""


class Verdict(StrEnum):
    """How a shadow's answer compares with the live one."""

    SAME = "same"
    OTHER_PLACE = "other_place"
    """Both place the request, and not in the same place."""
    OTHER_VERDICT = "other_verdict"
    """One places it, the other lets it wait or rejects it."""
    ERROR = "error"
    """The shadow raised, or said what cannot be done."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """One answer of a shadow."""

    verdict: Verdict
    answer: Plan | None
    """None after an error."""
    fault: str = ""
    """As in NotePolicyFault: raised, unknown_backend, ...; of an error."""
    ratios: Mapping[str, float] = field(default_factory=dict[str, float])
    """Latency (ttft, e2e) -> predicted by the shadow over predicted by the live policy, each for its own
    place; empty where one of them predicts nothing."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often two policies agree."""

    asked: int
    same: int

    @property
    def ratio(self) -> float:
        """Share of the questions answered alike, errors counted as differences; 1 when none was asked."""
        return self.same / self.asked if self.asked else 1.0

    @staticmethod
    def of(verdicts: Mapping[Verdict, int]) -> Agreement:
        """Of counted verdicts."""
        return Agreement(sum(verdicts.values()), verdicts.get(Verdict.SAME, 0))


def judge(shadow: Policy, scene: Scene, live: Plan) -> Opinion:
    """Ask the shadow and compare. Whatever it raises is an opinion, not an error."""
    try:
        answer = shadow.plan(scene.request, scene.fleet, scene.now)
        check_plan(answer, scene.request, scene.fleet)
    except PolicyError as error:
        return Opinion(Verdict.ERROR, None, error.message.partition(":")[0])
    except Exception:  # noqa: BLE001 - supervision point: a shadow may raise anything
        return Opinion(Verdict.ERROR, None, RAISED)
    return Opinion(_compared(answer, live), answer, ratios=_ratios(answer, live))


def _compared(answer: Plan, live: Plan) -> Verdict:
    if place_of(answer) is not None and place_of(live) is not None:
        return Verdict.SAME if place_of(answer) == place_of(live) else Verdict.OTHER_PLACE
    return Verdict.SAME if type(answer) is type(live) else Verdict.OTHER_VERDICT


def _ratios(answer: Plan, live: Plan) -> dict[str, float]:
    ours, theirs = _prediction(answer), _prediction(live)
    if ours is None or theirs is None:
        return {}
    pairs = {"ttft": (ours.ttft_s, theirs.ttft_s), "e2e": (ours.e2e_s, theirs.e2e_s)}
    return {name: mine / other for name, (mine, other) in pairs.items() if other > 0.0}


def _prediction(answer: Plan) -> Prediction | None:
    return answer.decision.prediction if isinstance(answer, RoutePlan) else None
