"""Preble's E2, by hand: 1e-4 s a prompt token, 45 output tokens at 0.15 s until measured."""

from __future__ import annotations

import pytest

from tests.policies.baselines.scenes import answered, costs, place, prompt
from tests.policies.world import Views, policy, spec, view

EACH = 45 * 0.15
"""Decode cost of a request of the window."""


def two() -> Views:
    """Two equal workers."""
    return Views([view(spec("a")), view(spec("b"))])


def test_exploring_takes_the_least_load() -> None:
    """Different prompts alternate: each adds its prefill and decode to one worker's window."""
    chosen = policy("preble")
    assert [place(chosen, prompt(10, str(i), first=100 * i), two())[0] for i in range(4)] == list("abab")


def test_load_is_the_work_of_the_window() -> None:
    """160 uncached tokens and a decode on a; P is 320 tokens on both. After 3 minutes a is as good as new."""
    chosen = policy("preble")
    place(chosen, prompt(10, "first"), two())
    found = costs(chosen, prompt(20, "second", first=500), two(), 100.0)
    assert found == pytest.approx({"b": 0.032, "a": 0.016 + EACH + 0.032})
    later = costs(chosen, prompt(20, "third", first=900), two(), 181.0)
    assert later == pytest.approx({"a": 0.032, "b": 0.032 + EACH + 0.032})


def test_a_prefix_of_more_than_half_is_exploited() -> None:
    """6 of 10 blocks: a, though b is idle, as long as the balance holds. 5 of 10: explore."""
    for held, where in ((6, "a"), (5, "b")):
        chosen = policy("preble", balance=1e6)
        place(chosen, prompt(held, "first"), Views([view(spec("a"))]))
        place(chosen, prompt(1, "other", first=700), Views([view(spec("b"))]))
        place(chosen, prompt(1, "more", first=800), Views([view(spec("a"))]))
        assert place(chosen, prompt(10), two())[0] == where


def test_an_exploit_beyond_the_balance_moves_on() -> None:
    """Two requests of the window against one: twice the load is above 1.5."""
    chosen = policy("preble")
    place(chosen, prompt(10, "first"), Views([view(spec("a"))]))
    place(chosen, prompt(10, "again"), Views([view(spec("a"))]))
    place(chosen, prompt(1, "other", first=700), Views([view(spec("b"))]))
    assert place(chosen, prompt(10), two())[0] == "b"


def test_measured_times_replace_the_guess() -> None:
    """One answer of 11 tokens in 1 s: 0.1 s a token; the median of 0.15 and 0.1 is 0.125, over 11 tokens."""
    chosen, first = policy("preble"), prompt(10, "first")
    place(chosen, first, two())
    answered(chosen, first, 1.0, 2.0, 11)
    found = costs(chosen, prompt(10, "second", first=500), two(), 3.0)
    assert found == pytest.approx({"b": 0.016, "a": 0.016 + 11 * 0.125 + 0.016})


def test_eviction_costs_what_others_use() -> None:
    """a holds 10 blocks of 10: 2 more evict the 2 last of the prompt, which half of the window used."""
    chosen, small = policy("preble"), spec("a", kv_capacity_tokens=160 + 100)
    fleet = Views([view(spec("a", kv_capacity_tokens=160)), view(spec("b", kv_capacity_tokens=160))])
    place(chosen, prompt(10, "first"), Views([view(small)]))
    place(chosen, prompt(2, "other", first=700, output=1), Views([view(spec("b"))]))
    found = costs(chosen, prompt(2, "new", first=900, output=1), fleet, 1.0)
    assert found["b"] == pytest.approx(0.0032 + EACH + 0.0032)
    assert found["a"] == pytest.approx(0.016 + EACH + 2 * 16e-4 * 0.5 + 0.0032)
