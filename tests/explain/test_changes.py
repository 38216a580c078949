"""The smallest change: every one that is named was asked, and the threshold is where hand-work puts it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.ports import Policy
from router.model import BackendState, Decision, Placement, Reject, RoutePlan, Wait
from router.observe.explain import Knob, Question, decision_of, placed, smallest_changes, wants
from router.observe.explain_knobs import (
    decoding,
    knobs_of,
    kv_used,
    waiting_tokens,
    with_decoding,
    with_waiting,
)
from router.observe.explanation import explanation
from router.observe.scene import Scene, StillFleet, decide, place_of
from tests.policies.world import MODEL, policy, reported, request, spec, view


class Threshold:
    """Places on `b` when `a` has at least 37 sequences decoding, else on `a`."""

    name = "threshold"

    def __init__(self) -> None:
        self.asked = 0

    def plan(self, request: Any, fleet: Any, now: float) -> RoutePlan | Wait | Reject:
        self.asked += 1
        load = fleet.get("a").in_flight.decodes
        if load >= 200:
            return Wait("kv_full")
        where = "b" if load >= 37 else "a"
        return RoutePlan(where, where, Decision(self.name))

    def bind_decode(self, request: Any, prefill: str, fleet: Any, now: float) -> Placement | Wait | Reject:
        raise NotImplementedError

    def observe(self, fact: Any, now: float) -> None:
        """Nothing."""


def scene(*views: Any, prompt: int = 1000) -> Scene:
    """A question about these backends."""
    return Scene(request(prompt=prompt), StillFleet(views), 0.0)


def knob(policy: Policy, asked: Scene, value: float = 5.0, high: float = 256.0) -> Knob:
    """The sequences that decode on `a`."""

    def turn(to: float) -> Question:
        changed = with_decoding(asked.fleet.views[0], int(to), asked.request)
        return Question(policy, replace(asked, fleet=asked.fleet.with_view(changed)))

    return Knob("sequences on a:", value, 0.0, high, turn)


def on(where: str) -> Any:
    """An answer that places both phases there."""
    return lambda answer: place_of(answer) == (where, where)


def test_the_threshold_is_found_to_the_unit_and_the_policy_is_not_touched() -> None:
    """37 it is, though 200 and more would give another answer again."""
    asked, decider = scene(view(spec("a"), decodes=5), view(spec("b"))), Threshold()
    changes = smallest_changes([knob(decider, asked)], on("b"))
    (change,) = changes.found
    assert (change.before, change.after) == (5.0, 37.0)
    assert change.effort == pytest.approx(32 / 256)
    assert change.text == "sequences on a: at least 37 instead of 5"
    assert changes.complete
    assert decider.asked == 0


def test_the_nearer_end_wins() -> None:
    """From 40, the wanted answer lies below."""
    asked = scene(view(spec("a"), decodes=40), view(spec("b")))
    (change,) = smallest_changes([knob(Threshold(), asked, value=40.0)], on("a")).found
    assert change.after == 36.0
    assert "at most 36" in change.text


def test_what_no_value_gives_is_not_named() -> None:
    """Nothing is invented."""
    asked = scene(view(spec("a")), view(spec("b")))
    changes = smallest_changes([knob(Threshold(), asked, value=0.0)], on("c"))
    assert changes.found == ()
    assert changes.complete


def test_the_number_of_questions_is_bounded_and_said() -> None:
    """A search that ran out says so."""
    asked = scene(view(spec("a")), view(spec("b")))
    knobs = [knob(Threshold(), asked, value=0.0)] * 50
    changes = smallest_changes(knobs, on("c"), most=20)
    assert changes.asked == 20
    assert not changes.complete


def test_a_policy_that_raises_gives_no_answer() -> None:
    """A question may be absurd; it costs one question."""

    def turn(to: float) -> Question:
        raise ValueError(to)

    changes = smallest_changes([Knob("x", 0.0, 0.0, 8.0, turn)], on("b"))
    assert changes.found == ()


@given(
    decodes=st.integers(0, 60),
    waiting=st.integers(0, 20_000),
    prompt=st.integers(16, 8000),
    name=st.sampled_from(["predicted", "least_loaded", "scored"]),
)
@settings(max_examples=25, deadline=None)
def test_every_change_that_is_named_gives_the_runner_up(
    decodes: int, waiting: int, prompt: int, name: str
) -> None:
    """Turned by itself, on a fresh copy of the question."""
    prefills = 1 if waiting else 0
    busy = view(
        spec("a", step_ms=5), decodes=decodes, kv_tokens=decodes * 800 + waiting,
        prefills=prefills, prefill_tokens=waiting,
    )  # fmt: skip
    asked = scene(busy, view(spec("b", step_ms=9)), prompt=prompt)
    decider = policy(name)
    decision = decision_of(decide(decider, asked))
    if decision is None or decision.runner_up is None:
        return
    wanted = wants(decision.runner_up)
    knobs = {each.name: each for each in knobs_of(decider, asked, decision)}
    for change in smallest_changes(list(knobs.values()), wanted).found:
        question = knobs[change.name].turn(change.after)
        assert wanted(decide(question.policy, question.scene)), change.text
        assert not wanted(decide(decider, asked))


def test_a_load_is_turned_in_both_accounts() -> None:
    """The ledger's and the worker's, with the KV that hangs on it."""
    seen = reported(
        view(spec("a"), decodes=4, kv_tokens=4000, decode_tokens=400), running=6, kv_used_tokens=6000
    )
    assert (decoding(seen), kv_used(seen)) == (6, 6000)
    half = with_decoding(seen, 3, request())
    assert (decoding(half), kv_used(half)) == (3, 3000)
    assert half.in_flight.decode_tokens == 300
    queued = with_waiting(seen, 5000, prompt=1000)
    assert (waiting_tokens(queued), queued.in_flight.prefills) == (5000, 5)
    assert kv_used(queued) == 11_000


def test_a_request_without_a_place_is_told_what_would_give_it_one() -> None:
    """Room that is missing, and a backend that is out of service."""
    full = view(spec("a", kv_capacity_tokens=5000), kv_tokens=4500, decodes=4)
    away = view(spec("b"), state=BackendState.CORDONED)
    asked, decider = scene(full, away), policy("least_loaded")
    answer = decide(decider, asked)
    told = explanation(decider, asked, answer)
    assert isinstance(answer, Wait)
    assert told.verdict == "waits: KV full"
    assert told.goal == "get a place"
    texts = {change.text for change in told.changes.found}
    assert "KV tokens in use on a: at most 3,900 instead of 4,500" in texts
    assert "b: ready instead of cordoned" in texts
    assert all(placed(decide(decider, asked)) is False for _ in range(1))


def test_an_answer_that_the_policy_would_not_repeat_is_not_explained_away() -> None:
    """The policy has learned since; a change would explain another answer."""
    asked = scene(view(spec("a", step_ms=5)), view(spec("b", step_ms=9)))
    decider = policy("least_loaded")
    foreign = RoutePlan("b", "b", Decision("least_loaded"))
    told = explanation(decider, asked, foreign)
    assert told.changes.found == ()
    assert "has learned since" in told.changes.note


def test_the_links_are_turned_together() -> None:
    """A split that is too slow becomes the choice on faster links."""
    fleet = StillFleet([view(spec("a")), view(spec("b"))], link_speed=4.0)
    assert fleet.link("a", "b").bandwidth_bytes_per_s == 4e9
    assert fleet.link("a", "b").latency_s == 0.001 / 4
    with pytest.raises(KeyError):
        fleet.link("a", "nobody")
    assert fleet.for_model("other") == ()
    assert fleet.for_model(MODEL) == fleet.views
