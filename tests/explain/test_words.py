"""Decisions in words."""

from __future__ import annotations

from router.model import Decision, Exclusion
from router.observe.explain_words import phrase, sentence


def test_reasons_are_in_words_and_states_have_their_age() -> None:
    """In the style of a Kubernetes scheduler."""
    decision = Decision(
        "p",
        "0 of 6 backends can prefill, 0 can decode (3 kv_full, 2 kv_layout, 1 state:lost); the request waits",
        (),
        (
            Exclusion("kv_full", 3, ("a", "b", "c")),
            Exclusion("kv_layout", 2, ("d", "e")),
            Exclusion("state:lost", 1, ("f",)),
        ),
    )
    assert sentence(decision, {"f": 100.0}, 112.0) == (
        "0 of 6 backends can prefill, 0 can decode (3 KV full, 2 layout mismatch, 1 lost for 12 s); "
        "the request waits"
    )
    assert "1 lost)" in sentence(decision)


def test_a_state_that_began_after_the_decision_has_no_age() -> None:
    """And of several the longest is told."""
    each = Exclusion("state:cordoned", 2, ("a", "b"))
    assert phrase(each, {"a": 50.0}, 10.0) == "2 cordoned"
    assert phrase(each, {"a": 0.0, "b": 200.0}, 300.0) == "2 cordoned, the longest for 5 min"


def test_a_reason_of_somebody_elses_policy_is_shown_as_it_is() -> None:
    """Without underscores."""
    assert phrase(Exclusion("too_far_away", 4), {}, 0.0) == "4 too far away"
