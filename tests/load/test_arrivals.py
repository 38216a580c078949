"""Schedules: the right times, in order, the same for the same seed."""

from __future__ import annotations

import itertools
import statistics
from random import Random

import pytest

from router.load.arrivals import at_rate, poisson, poisson_times, replay
from router.sim.workload import Arrival

TRACE = [Arrival(0.0, 10, 1, (5,), "a"), Arrival(1.0, 20, 2), Arrival(4.0, 30, 3)]


def test_poisson_has_the_rate_and_the_spread_of_its_process() -> None:
    """Mean gap 1/rate and coefficient of variation 1, within four standard errors for 20,000 gaps."""
    times = list(poisson_times(100.0, 200.0, Random(7)))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(times) == pytest.approx(20_000, abs=4 * 20_000**0.5)
    assert statistics.fmean(gaps) == pytest.approx(0.01, rel=4 / 20_000**0.5)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(1.0, abs=0.05)
    assert min(gaps) >= 0 and times[-1] < 200.0


def test_the_seed_decides_the_times() -> None:
    """The same seed repeats a run; another does not."""
    assert list(poisson_times(10, 5, Random(1))) == list(poisson_times(10, 5, Random(1)))
    assert list(poisson_times(10, 5, Random(1))) != list(poisson_times(10, 5, Random(2)))


def test_poisson_requests_have_one_size() -> None:
    """Lengths and class are those asked for."""
    arrivals = poisson(50, 1, Random(1), prompt_tokens=7, output_tokens=9, workload_class="c")
    assert {(a.prompt_tokens, a.output_tokens, a.workload_class) for a in arrivals} == {(7, 9, "c")}


def test_replay_divides_times_by_the_speed() -> None:
    """One pass without a duration; nothing else changes."""
    arrivals = list(replay(TRACE, 2.0))
    assert [a.at_s for a in arrivals] == [0.0, 0.5, 2.0]
    assert arrivals[0].prefix_hashes == (5,) and arrivals[0].workload_class == "a"


def test_a_short_trace_starts_over_at_the_same_rate() -> None:
    """The gap between passes is the mean gap: 4 s / 2 gaps = 2 s, so a pass takes 6 s."""
    assert [a.at_s for a in replay(TRACE, 1.0, 11.0)] == [0.0, 1.0, 4.0, 6.0, 7.0, 10.0]


def test_a_trace_of_one_instant_still_ends() -> None:
    """A pass takes at least 1 ms, so a duration is always reached."""
    assert len(list(replay([Arrival(0.0, 1, 1)], 1.0, 0.0105))) == 11


def test_at_rate_cycles_through_the_lengths() -> None:
    """Poisson times, the trace's own order of lengths."""
    arrivals = list(at_rate(TRACE, 100.0, 1.0, Random(3)))
    assert [a.prompt_tokens for a in arrivals[:5]] == [10, 20, 30, 10, 20]
    assert [a.at_s for a in arrivals] == list(poisson_times(100.0, 1.0, Random(3)))
