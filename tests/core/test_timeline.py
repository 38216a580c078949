"""The definition of every latency, worked by hand."""

import pytest

from router.core.timeline import Timeline


def split() -> Timeline:
    """Waits 1 s for a place, 0.5 s inside the worker; prefills 2 s; binds after 0.25 s; moves KV in 0.75 s;
    waits 0.5 s for a decode slot; decodes until 15."""
    return Timeline(
        arrived=1.0,
        dispatched=2.0,
        prefill_done=4.5,
        bound=4.75,
        kv_moved=5.5,
        first_token=6.0,
        prefill_wait_s=0.5,
        decode_wait_s=1.25,
    )


def test_phases_of_a_split_request() -> None:
    """Every second belongs to one phase."""
    times = split().times(ended=15.0, output_tokens=10)
    assert times.queue_s == pytest.approx(1.0 + 0.5 + 0.25 + 0.5)
    assert times.prefill_s == pytest.approx(2.0)
    assert times.handoff_s == pytest.approx(0.75)
    assert times.decode_s == pytest.approx(9.0)
    assert times.e2e_s == pytest.approx(14.0)
    assert times.ttft_s == pytest.approx(5.0)
    assert times.tpot_s == pytest.approx(1.0)


@pytest.mark.parametrize("ended", [1.5, 3.0, 4.6, 5.0, 5.7, 15.0])
def test_phases_add_up_wherever_a_request_ends(ended: float) -> None:
    """A request that is cancelled in any phase has an account that adds up."""
    timeline = split()
    for mark in ("dispatched", "prefill_done", "bound", "kv_moved", "first_token"):
        at = getattr(timeline, mark)
        if at is not None and at > ended:
            setattr(timeline, mark, None)
    times = timeline.times(ended, output_tokens=0)
    parts = (times.queue_s, times.prefill_s, times.handoff_s, times.decode_s)
    assert sum(parts) == pytest.approx(times.e2e_s)
    assert min(parts) >= 0.0


def test_a_reported_wait_never_makes_a_phase_negative() -> None:
    """Workers' clocks run at their own pace."""
    timeline = Timeline(0.0, dispatched=0.0, prefill_done=1.0, prefill_wait_s=7.0)
    assert timeline.times(1.0, 0).prefill_s == 0.0


def test_tpot_needs_two_tokens() -> None:
    """One token has no time between tokens."""
    assert split().times(15.0, 1).tpot_s is None


def test_a_failed_attempt_counts_as_queue() -> None:
    """The request waited for an attempt that works."""
    timeline = split()
    timeline.restart()
    timeline.dispatched = 20.0
    assert timeline.times(21.0, 0).queue_s == pytest.approx(19.0)
