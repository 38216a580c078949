"""Histograms, intervals, samples of fates, and the eye for overload."""

from __future__ import annotations

import math
from random import Random

import pytest

from router.sim.compare import estimate
from router.sim.histogram import ERROR, Histogram
from router.sim.stability import Reading, Stability
from router.sim.tally import jitter


def test_quantiles_are_within_the_error_and_sums_are_exact() -> None:
    """Against the sorted values."""
    rng, histogram, values = Random(1), Histogram(), []
    for _ in range(5000):
        values.append(rng.lognormvariate(-3.0, 1.5))
        histogram.add(values[-1])
    ordered = sorted(values)
    for q in (0.01, 0.5, 0.9, 0.99, 1.0):
        assert histogram.quantile(q) == pytest.approx(ordered[math.ceil(q * 5000) - 1], rel=2 * ERROR)
    assert histogram.mean == pytest.approx(math.fsum(values) / 5000)
    assert histogram.most == ordered[-1]


def test_merged_histograms_count_everything() -> None:
    """As if one had seen all values."""
    one, other, both = Histogram(), Histogram(), Histogram()
    for i in range(200):
        (one if i % 3 else other).add(i / 100)
        both.add(i / 100)
    one.merge(other)
    assert one.summary() == pytest.approx(both.summary())


def test_an_empty_histogram_has_zeros() -> None:
    """No request ended well: a table still has to show something."""
    assert Histogram().summary() == {"count": 0, "mean": 0, "p50": 0, "p90": 0, "p95": 0, "p99": 0, "max": 0}
    assert Histogram().curve() == []


def test_an_interval_over_seeds_is_students() -> None:
    """Three values 1, 2, 3: mean 2, deviation 1, t = 4.303, half width 4.303 / sqrt(3)."""
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))
    assert not found.sure
    assert estimate([5.0]).half_width is None
    assert estimate([2.0, 2.01, 1.99]).sure


def test_jitter_is_the_slow_gaps_over_the_usual_ones() -> None:
    """p99 over p50; too few gaps have none."""
    assert jitter([0.01] * 199 + [0.05]) == 1.0
    assert jitter([0.01] * 97 + [0.05] * 3) == pytest.approx(5.0)
    assert jitter([0.01]) == 1.0


def readings(
    backlogs: list[int], *, ended: int = 90, crowded: int = 0, window_s: float = 10.0
) -> list[Reading]:
    """100 arrivals a window."""
    return [
        Reading((i + 1) * window_s, 100 * (i + 1), ended * (i + 1), crowded * (i + 1), backlog)
        for i, backlog in enumerate(backlogs)
    ]


def verdicts(of: list[Reading]) -> list[str]:
    """What is said after each reading."""
    stability = Stability(None)
    return [stability.verdict(reading) for reading in of]


def test_a_backlog_that_grows_and_grows_is_overload() -> None:
    """It takes six windows in a row, and the reason has the rates."""
    said = verdicts(readings([20, 40, 60, 80, 100, 120, 140]))
    assert said[:5] == [""] * 5
    assert "10 requests/s came and 9/s ended" in said[5]


def test_ups_and_downs_are_no_overload() -> None:
    """Nor is a backlog too small to mean anything, nor one that grows when nothing comes."""
    assert not any(verdicts(readings([50, 90, 60, 100, 70, 110, 80, 120])))
    assert not any(verdicts(readings([1, 2, 3, 4, 5, 6, 7, 8])))
    quiet = [Reading(i * 10.0, 500, 100, 0, 400 + i) for i in range(1, 10)]
    assert not any(verdicts(quiet))


def test_shedding_a_quarter_of_the_requests_is_overload() -> None:
    """The router keeps its queue short by refusing: the backlog alone would not show it."""
    said = verdicts(readings([60] * 8, ended=100, crowded=30))
    assert "30% of the requests were refused or late" in said[-1]
    assert not any(verdicts(readings([60] * 8, ended=100, crowded=10)))


def test_windows_follow_the_horizon() -> None:
    """A minute of requests is looked at every 5 s, a day every 2 minutes."""
    assert Stability(60.0).window_s == 5.0
    assert Stability(600.0).window_s == 15.0
    assert Stability(86_400.0).window_s == 120.0
