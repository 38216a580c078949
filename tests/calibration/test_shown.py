"""What a run shows of its engine without any fit."""

from __future__ import annotations

import pytest

from backends.calibration.report_runs import ADA, PRO
from backends.calibration.runfile import read_run
from backends.calibration.shown import peak_tokens, plans_ahead, slots_of, waits_for_room
from tests.calibration.runs import engine, simulated


@pytest.mark.parametrize("is_async", [True, False])
def test_scheduling_is_told_from_time_stamps(is_async: bool) -> None:
    """Only an engine that schedules ahead wakes between the scheduling and the first token of a prompt."""
    run = simulated(engine(async_scheduling=is_async), requests=200, per_s=10.0)
    assert plans_ahead(run, 2048) is is_async


def test_slots_show_when_they_are_short() -> None:
    """A crowd waits while always the same number runs; without a crowd nothing is said."""
    assert slots_of(simulated(engine(max_num_seqs=24), requests=200, per_s=20.0)) == 24
    assert slots_of(simulated(engine(max_num_seqs=256), requests=100, per_s=1.0)) is None


def test_short_room_is_not_taken_for_short_slots() -> None:
    """An engine without KV room runs a changing number, and that is what the run is said to wait for."""
    run = simulated(engine(kv_capacity_tokens=16_000, max_num_seqs=256), requests=200, per_s=20.0)
    assert slots_of(run) is None
    assert waits_for_room(run)
    assert peak_tokens(run) > 0.6 * 16_000


def test_the_real_runs_show_what_they_were_started_with() -> None:
    """128 slots and asynchronous scheduling on one, short KV room on the other."""
    pro, ada = read_run(PRO), read_run(ADA)
    assert slots_of(pro) == 128
    assert plans_ahead(pro, 2048) is True
    assert not waits_for_room(pro)
    assert slots_of(ada) is None
    assert waits_for_room(ada)
