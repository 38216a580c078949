"""What policies learn is bounded, and nonsense teaches nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from policies.learned import MAX_WAITED_FOR, PrefillDuty
from policies.lengths import MAX_KINDS, OutputLengths
from router.model import BackendSnapshot
from tests.policies.world import request


def test_an_answer_counts_once() -> None:
    """A second end of the same request teaches nothing."""
    lengths = OutputLengths(64)
    asked = request(output=1000)
    lengths.wait_for(asked)
    lengths.finished("r", 100)
    lengths.finished("r", 900)
    assert lengths.expect(asked) == 100


def test_requests_that_never_end_are_forgotten_oldest_first() -> None:
    """One more than the limit pushes the first out; the last is still waited for."""
    lengths = OutputLengths(64)
    asked = request(output=1000)
    for i in range(MAX_WAITED_FOR + 1):
        lengths.wait_for(replace(asked, id=str(i)))
    lengths.finished("0", 10)
    assert lengths.expect(asked) == 256
    lengths.finished(str(MAX_WAITED_FOR), 20)
    assert lengths.expect(asked) == 20


def test_clients_cannot_grow_the_table_of_classes() -> None:
    """Classes beyond the limit share one estimate."""
    lengths = OutputLengths(64)
    for i in range(MAX_KINDS // 2):
        asked = request(output=1000, workload_class=f"c{i}")
        lengths.wait_for(asked)
        lengths.finished("r", 10)
    late = request(output=1000, workload_class="late")
    lengths.wait_for(late)
    lengths.finished("r", 500)
    assert lengths.expect(late) == lengths.expect(request(output=1000, workload_class="later")) == 500
    assert lengths.expect(request(output=1000, workload_class="c7")) == 10


@pytest.mark.parametrize("tokens", [0, -3, math.nan, math.inf])
def test_lengths_that_are_none_are_ignored(tokens: float) -> None:
    """The expectation stays at what is assumed of an unknown class."""
    lengths = OutputLengths(64)
    lengths.wait_for(request(output=1000))
    lengths.finished("r", tokens)
    assert lengths.expect(request(output=1000)) == 256


def reports(*pairs: tuple[float, float]) -> float:
    """The stretch after some reports of (observed_at, busy_prefill_s), averaged over 1 s."""
    duty = PrefillDuty(1.0)
    for at, busy in pairs:
        duty.reported("b", BackendSnapshot(observed_at=at, busy_prefill_s=busy))
    return duty.stretch("b")


def test_the_stretch_follows_the_share_of_prefill() -> None:
    """A quarter of the time makes every decode step take 4/3; one window in, 63 % of the quarter is seen."""
    assert reports((0.0, 0.0)) == 1.0
    assert reports((0.0, 0.0), (100.0, 25.0)) == pytest.approx(4 / 3)
    assert reports((0.0, 0.0), (1.0, 0.25)) == pytest.approx(1 / (1 - 0.25 * (1 - math.exp(-1))))


def test_a_busy_counter_is_not_believed_beyond_reason() -> None:
    """More prefill than time is capped, a restart begins anew, and garbage is passed over."""
    assert reports((0.0, 0.0), (100.0, 500.0)) == pytest.approx(10.0)
    assert reports((0.0, 9.0), (100.0, 59.0), (101.0, 0.0)) == 1.0
    halved = reports((0.0, 0.0), (100.0, 50.0))
    for garbage in ((math.nan, 60.0), (200.0, math.nan), (math.inf, 60.0), (50.0, 60.0), (200.0, -1.0)):
        assert reports((0.0, 0.0), (100.0, 50.0), garbage) == halved
