"""The shadow: compared, contained, bounded."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from router.core.ports import Policy
from router.live.shadow import Shadow, ShadowLimits
from router.live.watched_policy import WatchedPolicy
from router.model import Decision, Prediction, Reject, RoutePlan, Wait
from router.observe.scene import Scene, StillFleet
from router.observe.shadow import Agreement, Opinion, Verdict, judge
from tests.policies.world import policy, request, spec, view

FLEET = StillFleet([view(spec("a")), view(spec("b"))])
SCENE = Scene(request(), FLEET, 0.0)


class Scripted:
    """Answers what it is told to, counts what it sees, and can be held up."""

    name = "scripted"

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.facts = 0
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()

    def plan(self, request: Any, fleet: Any, now: float) -> RoutePlan | Wait | Reject:
        self.gate.wait()
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]

    def bind_decode(self, request: Any, prefill: str, fleet: Any, now: float) -> Any:
        return Wait("later")

    def observe(self, fact: Any, now: float) -> None:
        self.facts += 1
        if isinstance(self.answer, Exception):
            raise self.answer


class Heard:
    """Counts what the metrics would."""

    def __init__(self) -> None:
        self.verdicts: Counter[Verdict] = Counter()
        self.faults: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.some = threading.Semaphore(0)

    def shadow_opinion(self, policy: str, opinion: Opinion, cpu_s: float) -> None:
        self.verdicts[opinion.verdict] += 1
        self.faults[opinion.fault] += bool(opinion.fault)
        self.some.release()

    def shadow_fault(self, policy: str, fault: str) -> None:
        self.faults[fault] += 1
        self.some.release()

    def shadow_skipped(self, policy: str, what: str) -> None:
        self.skipped[what] += 1


def place(prefill: str, decode: str, e2e_s: float | None = None) -> RoutePlan:
    """A plan, with a prediction if there is a time."""
    prediction = None if e2e_s is None else Prediction(e2e_s / 4, e2e_s)
    return RoutePlan(prefill, decode, Decision("p", prediction=prediction))


@pytest.mark.parametrize(
    ("shadow", "live", "verdict"),
    [
        (place("a", "a"), place("a", "a"), Verdict.SAME),
        (place("a", "b"), place("a", "a"), Verdict.OTHER_PLACE),
        (Wait("x"), place("a", "a"), Verdict.OTHER_VERDICT),
        (Wait("x"), Wait("y"), Verdict.SAME),
        (Wait("x"), Reject("y"), Verdict.OTHER_VERDICT),
        (RuntimeError("no"), place("a", "a"), Verdict.ERROR),
        (place("nobody", "a"), place("a", "a"), Verdict.ERROR),
        ("nonsense", place("a", "a"), Verdict.ERROR),
    ],
)
def test_answers_are_compared(shadow: Any, live: Any, verdict: Verdict) -> None:
    """Place with place; what cannot be carried out is an error, not an opinion."""
    assert judge(Scripted(shadow), SCENE, live).verdict is verdict


def test_an_error_is_named_and_predictions_are_set_against_each_other() -> None:
    """By the core's own names of faults."""
    assert judge(Scripted(place("nobody", "a")), SCENE, Wait("x")).fault == "unknown_backend"
    assert judge(Scripted(ValueError()), SCENE, Wait("x")).fault == "raised"
    opinion = judge(Scripted(place("a", "b", 2.0)), SCENE, place("a", "a", 4.0))
    assert opinion.ratios == {"ttft": 0.5, "e2e": 0.5}
    assert judge(Scripted(place("a", "b")), SCENE, place("a", "a", 4.0)).ratios == {}
    assert Agreement.of({Verdict.SAME: 3, Verdict.ERROR: 1}).ratio == 0.75


def live(shadow: Policy, limits: ShadowLimits) -> tuple[WatchedPolicy, Shadow, Heard]:
    """A live policy with a shadow."""
    heard = Heard()
    beside = Shadow(shadow, heard, limits)
    return WatchedPolicy(policy("least_loaded"), {"name": "least_loaded"}, [beside]), beside, heard


def test_a_shadow_that_raises_costs_nobody_anything() -> None:
    """Not on a decision, not on a fact."""
    watched, beside, heard = live(Scripted(RuntimeError("no")), ShadowLimits(share=1.0))
    answer = watched.plan(request(), FLEET, 0.0)
    watched.observe("a fact", 0.0)
    assert isinstance(answer, RoutePlan)
    assert heard.some.acquire(timeout=20)
    assert heard.some.acquire(timeout=20)
    assert beside.close(20)
    assert heard.verdicts == {Verdict.ERROR: 1}
    assert heard.faults["raised"] == 2


def test_a_shadow_that_stalls_is_skipped_and_counted() -> None:
    """The live policy answers every time; at most `max_behind` questions wait."""
    stuck = Scripted(place("a", "a"))
    stuck.gate.clear()
    watched, beside, heard = live(stuck, ShadowLimits(share=1.0, max_behind=4))
    for i in range(50):
        assert isinstance(watched.plan(replace(request(), id=f"r{i}"), FLEET, 0.0), RoutePlan)
    assert 44 <= heard.skipped["decision"] <= 46  # four wait, and one may have been taken up
    stuck.gate.set()
    for _ in range(4):
        assert heard.some.acquire(timeout=20)
    assert beside.close(20)


def test_a_shadow_learns_from_facts_in_their_order_with_its_decisions() -> None:
    """It is told what the live policy is told."""
    learner = Scripted(place("a", "a"))
    watched, beside, heard = live(learner, ShadowLimits(share=1.0))
    watched.observe("one", 0.0)
    watched.plan(request(), FLEET, 0.0)
    assert heard.some.acquire(timeout=20)
    assert learner.facts == 1
    assert beside.close(20)


def test_a_dry_run_is_no_decision() -> None:
    """A copy of a watched policy has no witnesses."""
    import copy

    quiet = Scripted(place("a", "a"))
    watched, beside, heard = live(quiet, ShadowLimits())
    assert isinstance(copy.deepcopy(watched).plan(request(), FLEET, 0.0), RoutePlan)
    assert beside.close(20)
    assert quiet.asked == 0
    assert not heard.skipped


def test_a_witness_that_fails_leaves_the_decision_standing() -> None:
    """The record is lost, not the request."""

    class Broken:
        def decided(self, *_: Any) -> None:
            raise RuntimeError

        def observed(self, *_: Any) -> None:
            raise RuntimeError

    watched = WatchedPolicy(policy("least_loaded"), {}, [Broken()])
    assert isinstance(watched.plan(request(), FLEET, 0.0), RoutePlan)
    watched.observe("a fact", 0.0)
