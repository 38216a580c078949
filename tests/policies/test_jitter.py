"""When tokens come unevenly, worked out by hand: a step of 10 ms and a ratio of 1.5."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from policies.jitter import uneven
from policies.standing import Standing
from router.model import SchedulerKind, StepParameters
from tests.policies.test_stakes import standing
from tests.policies.world import spec, view


def gpu(**step: float) -> Standing:
    """A backend with steps of 10 ms."""
    return standing(view(spec("gpu", step=StepParameters(base_s=0.01, **step))))


def test_alone_and_without_noise_tokens_are_even() -> None:
    """Nothing comes between them."""
    assert uneven(gpu(), 1.5, 0.01, 50, 0.0, 0.0) == 0.0


def test_noise_may_be_too_much_by_itself() -> None:
    """exp(2.5 x 0.2) is 1.65."""
    assert uneven(gpu(noise_sigma=0.2), 1.5, 0.01, 50, 0.0, 0.0) == 1.0
    assert uneven(gpu(noise_sigma=0.1), 1.5, 0.01, 50, 0.0, 0.0) == 0.0


def test_a_prefill_beside_tears_the_tokens_apart() -> None:
    """Two a second in an answer of half a second: none comes with a probability of 1 / e. One of 4 ms is
    within the ratio, and a static pipeline takes it beside its decodes."""
    assert uneven(gpu(), 1.5, 0.01, 50, 2.0, 0.02) == pytest.approx(1 - math.exp(-1))
    assert uneven(gpu(), 1.5, 0.01, 50, 2.0, 0.004) == 0.0
    slots = standing(view(replace(spec("lpu"), scheduler=SchedulerKind.SLOTS)))
    assert uneven(slots, 1.5, 0.01, 50, 2.0, 0.02) == 0.0


def test_p99_of_many_gaps_leaves_one_in_a_hundred_out() -> None:
    """Of 200 gaps two may be longer: with one expected, 2.5 / e of such answers are even."""
    assert uneven(gpu(), 1.5, 0.01, 200, 0.5, 0.02) == pytest.approx(1 - 2.5 * math.exp(-1))


def test_the_second_token_waits_for_the_transfer() -> None:
    """1 ms of transfer leaves 4 ms of the step that runs: two in five are even; 6 ms leave none."""
    assert uneven(gpu(), 1.5, 0.01, 50, 0.0, 0.0, 0.001) == pytest.approx(0.6)
    assert uneven(gpu(), 1.5, 0.01, 50, 0.0, 0.0, 0.006) == 1.0


def test_stalls_count_like_prefills() -> None:
    """One step in a hundred: in 50 steps none with a probability of exp(-0.5)."""
    assert uneven(gpu(stall_probability=0.01), 1.5, 0.01, 50, 0.0, 0.0) == pytest.approx(1 - math.exp(-0.5))
