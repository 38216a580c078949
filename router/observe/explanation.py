"""Why a request went where it went: the answer, the sentence, the runner-up, what would have changed it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from router.core.choice import Plan
from router.core.ports import Policy
from router.model import Decision, Reject, Request, RoutePlan, Seconds, Wait
from router.observe.explain import Changes, Knob, decision_of, placed, smallest_changes, wants
from router.observe.explain_knobs import knobs_of
from router.observe.explain_words import WORDS, sentence
from router.observe.scene import Scene, decide, place_of


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision, explained. Everything but the changes is what the policy said itself."""

    request: Request
    verdict: str
    """`PREFILL -> DECODE`, or what came instead of a place."""
    sentence: str
    decision: Decision | None
    goal: str
    """What the changes would bring about."""
    changes: Changes


def explanation(
    policy: Policy,
    scene: Scene,
    answer: Plan,
    *,
    more: Sequence[Knob] = (),
    since: Mapping[str, Seconds] | None = None,
    most: int = 2000,
    paced: Callable[[], None] = lambda: None,
) -> Explanation:
    """Explain an answer that the policy gave in a scene. The policy is copied for every question.

    `more` are quantities to turn besides the load, the request and the links; `since` says from when on a
    backend has been in its state; `most` (0: work out no changes) and `paced` are those of
    explain.smallest_changes.
    """
    decision = decision_of(answer)
    text = _reason(answer) if decision is None else sentence(decision, since, scene.now)
    goal, changes = _changes(policy, scene, answer, more, most, paced)
    return Explanation(scene.request, verdict_of(answer), text, decision, goal, changes)


def verdict_of(answer: Plan) -> str:
    """The answer in a few words."""
    match answer:
        case RoutePlan(prefill=prefill, decode=decode):
            return prefill if prefill == decode else f"{prefill} -> {decode or 'bound after prefill'}"
        case Wait(reason=reason):
            return f"waits: {WORDS.get(reason, reason)}"
        case Reject():
            return "rejected"
        case _:
            assert_never(answer)


def _reason(answer: Plan) -> str:
    return answer.decision.reason if isinstance(answer, RoutePlan) else answer.reason


def _changes(
    policy: Policy,
    scene: Scene,
    answer: Plan,
    more: Sequence[Knob],
    most: int,
    paced: Callable[[], None],
) -> tuple[str, Changes]:
    decision = decision_of(answer)
    if most == 0:
        return "", Changes((), 0, complete=True)
    if (differs := _differs(policy, scene, answer)) is not None:
        return "", Changes((), 1, complete=False, note=differs)
    knobs = [*knobs_of(policy, scene, decision), *more]
    if not isinstance(answer, RoutePlan):
        return "get a place", smallest_changes(knobs, placed, most=most, paced=paced)
    runner_up = answer.decision.runner_up
    if runner_up is None:
        note = "the policy named no runner-up: no other place was possible, or it keeps no list"
        return "", Changes((), 0, complete=True, note=note)
    same = runner_up.prefill == runner_up.decode
    name = runner_up.prefill if same else f"{runner_up.prefill} -> {runner_up.decode}"
    return f"go to {name}", smallest_changes(knobs, wants(runner_up), most=most, paced=paced)


def _differs(policy: Policy, scene: Scene, answer: Plan) -> str | None:
    """A policy that learns may answer another way by now; then a change would explain nothing."""
    try:
        again = decide(policy, scene)
    except Exception as error:  # noqa: BLE001 - the policy is plugged in
        return f"asked again, the policy fails: {error!r:.200}"
    if place_of(again) == place_of(answer):
        return None
    return (
        f"asked again with what it has learned since, the policy says {verdict_of(again)}; a change would "
        "explain that answer, not this one"
    )
