"""The account of an engine that tells nothing of itself."""

from __future__ import annotations

import random

import pytest

from backends.engines.meter import ShareMeter
from router.model import Phase


def test_two_phases_share_the_time_they_are_there_together() -> None:
    """1 s alone, 2 s together, 1 s alone: 2 s for the one and 2 s for the other."""
    meter = ShareMeter(0.0)
    first = meter.enter(Phase.PREFILL, 0.0)
    second = meter.enter(Phase.DECODE, 1.0)
    assert meter.leave(Phase.PREFILL, first, 3.0) == pytest.approx(2.0)
    assert meter.leave(Phase.DECODE, second, 4.0) == pytest.approx(2.0)
    meter.alive(4.0)
    assert meter.busy_s == {Phase.PREFILL: pytest.approx(2.0), Phase.DECODE: pytest.approx(2.0)}


def test_idle_time_is_nobodys() -> None:
    """Nor is it busy time."""
    meter = ShareMeter(0.0)
    meter.leave(Phase.PREFILL, meter.enter(Phase.PREFILL, 0.0), 1.0)
    reading = meter.enter(Phase.PREFILL, 100.0)
    assert meter.leave(Phase.PREFILL, reading, 101.0) == pytest.approx(1.0)
    meter.alive(101.0)
    assert sum(meter.busy_s.values()) == pytest.approx(2.0)


def test_an_engine_that_hangs_is_not_busy() -> None:
    """Else its requests would seem to wait their turn, and never be given up."""
    meter = ShareMeter(0.0)
    meter.enter(Phase.PREFILL, 0.0)
    meter.alive(1.0)
    meter.enter(Phase.PREFILL, 50.0)
    assert meter.busy_s[Phase.PREFILL] == pytest.approx(1.0)


def test_shares_add_up_to_the_time_the_engine_had_work() -> None:
    """Whatever comes and goes."""
    rng = random.Random(5)
    meter, now, at_work, shares, busy_s = ShareMeter(0.0), 0.0, list[tuple[Phase, float]](), 0.0, 0.0
    for _ in range(500):
        passed_s = rng.random()
        now += passed_s
        busy_s += passed_s if at_work else 0.0
        if at_work and rng.random() < 0.5:
            phase, reading = at_work.pop(rng.randrange(len(at_work)))
            shares += meter.leave(phase, reading, now)
        else:
            phase = rng.choice(list(Phase))
            at_work.append((phase, meter.enter(phase, now)))
    for phase, reading in at_work:
        shares += meter.leave(phase, reading, now)
    meter.alive(now)
    assert shares == pytest.approx(busy_s)
    assert sum(meter.busy_s.values()) == pytest.approx(busy_s)
    assert meter.count == dict.fromkeys(Phase, 0)
