"""How much delay the residents of a backend can bear, worked out by hand."""

from __future__ import annotations

import math

import pytest

from policies.slack import Bearing, Resident, Tempo, work_out
from policies.standing import Standing
from tests.policies.test_stakes import standing
from tests.policies.world import spec, view


def resident(tpot_s: float = 0.05, **more: object) -> Resident:
    """One that decodes since 0 s, with an answer of 11 tokens."""
    known: dict[str, object] = {
        "id": "a",
        "until": math.inf,
        "due": math.inf,
        "tpot_s": tpot_s,
        "jitter_ratio": math.inf,
        "lengths": (11,),
        "prefill": "gpu",
        "decode": "gpu",
        "first_at": 0.0,
        "queued": False,
    }
    return Resident(**{**known, **more})  # type: ignore[arg-type]


def busy(decodes: int = 2) -> Standing:
    """A backend with steps of 10 ms."""
    return standing(view(spec("gpu"), decodes=decodes, decode_tokens=20, kv_tokens=200))


def test_slack_is_what_the_objective_leaves() -> None:
    """Ten tokens at 50 ms are half a second; at 10 ms they take 0.1 s: 0.4 s to spare, 40 ms a step."""
    found = work_out([], [resident()], busy(), Tempo(), 0.0)
    assert found.stall.slacks == [(pytest.approx(0.4), 1.0)]
    assert found.pace.slacks == []  # who can bear 20 ms a step and more is not looked at
    found = work_out([], [resident(tpot_s=0.025)], busy(), Tempo(), 0.0)
    assert found.pace.slacks == [(pytest.approx(0.015), 1.0)]


def test_time_lost_already_is_off_the_slack() -> None:
    """0.2 s after its first token it should have 20 tokens by now, but five steps were counted: 0.1 s is used
    of 0.25 s, and five tokens are to come."""
    tempo = Tempo(at=0.2, steps=5.0, pace_s=0.01)
    found = work_out([], [resident()], busy(), tempo, 0.2)
    assert found.stall.slacks == [(pytest.approx(0.05 * 10 - 0.2 - 5 * 0.01), 1.0)]


def test_an_answer_of_unknown_length_counts_in_parts() -> None:
    """With 3, 11 or 21 tokens a third of a request each has 0.08, 0.4 and 0.8 s to spare."""
    found = work_out([], [resident(lengths=(3, 11, 21))], busy(), Tempo(), 0.0)
    expected = [(pytest.approx(each), pytest.approx(1 / 3)) for each in (0.08, 0.4, 0.8)]
    assert found.stall.slacks == expected


def test_an_answer_that_outlives_its_lengths_goes_on_for_half_of_them() -> None:
    """After 30 steps of an answer of 11 tokens another 5.5 are expected."""
    found = work_out([], [resident(first_at=-0.3)], busy(), Tempo(0.0, 30.0, 0.01), 0.0)
    assert found.stall.slacks == [(pytest.approx(0.05 * 35.5 - 0.3 - 5.5 * 0.01), 1.0)]


def test_the_broken_have_nothing_to_lose() -> None:
    """At 10 ms a token an objective of 9 ms is lost, whatever else comes."""
    assert work_out([], [resident(tpot_s=0.009)], busy(), Tempo(), 0.0).bears_any_prefill


def test_a_prompt_that_waits_can_bear_the_time_until_it_is_due() -> None:
    """Predicted in 0.3 s and due in 0.5 s."""
    found = work_out([resident(first_at=0.3, due=0.5, queued=True)], [], busy(), Tempo(), 0.0)
    assert found.first.slacks == [(pytest.approx(0.2), 1.0)]


def test_a_jitter_objective_bears_no_step_much_longer() -> None:
    """At a ratio of 1.5 half a step; one whose tokens were torn apart has nothing to lose."""
    even = resident(tpot_s=math.inf, jitter_ratio=1.5)
    found = work_out([], [even], busy(), Tempo(), 0.0)
    assert found.gap.slacks == [(pytest.approx(0.005), 1.0)]
    even.smooth = False
    assert work_out([], [even], busy(), Tempo(), 0.0).bears_any_prefill


def test_harm_is_whole_beyond_the_slack_and_fades_out_at_twice_the_delay() -> None:
    """Slacks of 0.1, 0.3 and 1 s: a delay of 0.2 s costs the first, and half of the second."""
    bearing = Bearing([(0.1, 1.0), (0.3, 1.0), (1.0, 1.0)])
    assert bearing.lost(0.2) == pytest.approx(1.5)
    assert bearing.lost(0.05) == 0.0
    assert bearing.lost(0.0) == 0.0


def test_what_was_taken_since_is_off_every_slack() -> None:
    """After 0.2 s of delay the first has lost, and costs no more; the second has 0.1 s left."""
    bearing = Bearing([(0.1, 1.0), (0.3, 1.0)], taken_s=0.2)
    assert bearing.lost(0.1) == pytest.approx(1.0)
    bearing.add(0.5, 0.5)
    assert bearing.slacks[-1] == (pytest.approx(0.7), 0.5)
    assert bearing.lost(0.6) == pytest.approx(1.5)
