"""Recursive least squares on ratios: what moves, what follows, what stays bounded."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.models.ratios import LIMIT, Ratios

DECODE = (0.006, 0.001, 0.003, 0.0, 0.0)
PREFILL = (0.001, 0.0, 0.0, 0.040, 0.002)


def feed(ratios: Ratios, terms: tuple[float, ...], observed_s: float, times: int = 1) -> None:
    """The same observation again and again."""
    for _ in range(times):
        ratios.update(terms, ratios.surprise(terms, observed_s), 0.02)  # type: ignore[arg-type]


def test_a_perfect_prediction_is_no_surprise_and_moves_nothing() -> None:
    """At the prior, with what the prior says."""
    ratios = Ratios()
    assert ratios.surprise(DECODE, 0.010) == pytest.approx(0.0)
    feed(ratios, DECODE, 0.010)
    assert ratios.values == pytest.approx([1.0] * 5)


@pytest.mark.parametrize("factor", [0.5, 2.0, 8.0])
def test_terms_that_nothing_bears_on_follow_the_device(factor: float) -> None:
    """Only decodes are seen, and they take twice as long: prefills are taken to do so, too."""
    ratios = Ratios()
    feed(ratios, DECODE, 0.010 * factor, 20)
    assert ratios.values[:3] == pytest.approx([factor] * 3, rel=0.05)
    assert ratios.values[3:] == pytest.approx([factor] * 2, rel=0.1)


def test_kinds_of_work_are_told_apart() -> None:
    """Prefill is twice as slow, decode as declared: each is predicted as it is."""
    ratios = Ratios()
    for _ in range(30):
        feed(ratios, DECODE, 0.010)
        feed(ratios, PREFILL, 0.085)
    assert math.exp(ratios.surprise(DECODE, 0.010)) == pytest.approx(1.0, abs=0.01)
    assert math.exp(ratios.surprise(PREFILL, 0.085)) == pytest.approx(1.0, abs=0.01)


def test_each_term_is_found_when_the_work_varies() -> None:
    """Five different ratios, from work in random proportions with 2 % of noise."""
    rng, ratios, truth = Random(1), Ratios(), (1.5, 0.7, 2.5, 1.0, 3.0)
    for _ in range(400):
        terms = tuple(rng.random() for _ in truth)
        feed(ratios, terms, sum(map(float.__mul__, terms, truth)) * rng.lognormvariate(0.0, 0.02))
    assert ratios.values == pytest.approx(truth, rel=0.1)


def test_the_gain_settles() -> None:
    """After a long time of agreement, a surprise of 10 % moves the ratios by a small part of it, but moves
    them: neither is forgetting all there is, nor does it wind up."""
    ratios = Ratios()
    feed(ratios, DECODE, 0.010, 3000)
    ratios.update(DECODE, 0.1, 0.02)
    assert 0.001 < math.log(ratios.values[0]) < 0.02


def test_a_direction_without_excitation_does_not_wind_up() -> None:
    """After ten thousand decodes alone, a prefill that took ten times as long leaves decodes as they were."""
    ratios = Ratios()
    feed(ratios, DECODE, 0.010, 10_000)
    feed(ratios, PREFILL, 0.43)
    assert math.exp(ratios.surprise(DECODE, 0.010)) == pytest.approx(1.0, abs=0.1)
    assert max(ratios.values) < 12.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.tuples(*[st.floats(0.0, 1e3)] * 5).filter(lambda terms: sum(terms) > 1e-9),
            st.floats(1e-9, 1e9),
            st.floats(0.02, 0.35),
        ),
        max_size=60,
    )
)
def test_ratios_stay_in_bounds_whatever_comes(
    observations: list[tuple[tuple[float, ...], float, float]],
) -> None:
    """Finite, positive, within 1/16 and 16, and able to learn afterwards."""
    ratios = Ratios()
    for terms, observed_s, noise in observations:
        ratios.update(terms, ratios.surprise(terms, observed_s), noise)  # type: ignore[arg-type]
        assert all(-LIMIT <= log <= LIMIT for log in ratios.logs)
    ratios.loosen()
    feed(ratios, DECODE, 0.020, 30)
    assert ratios.surprise(DECODE, 0.020) == pytest.approx(0.0, abs=0.05)
