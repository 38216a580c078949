"""The search finds the parameters of an engine again, and looks at odd requests only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backends.calibration.judge import judge
from backends.calibration.limits import Limits, Scheduling
from backends.calibration.replay import BUSY, REGRESSORS, replay
from backends.calibration.report_runs import ADA, ADA_LIMITS, PRO, PRO_LIMITS
from backends.calibration.run import calibrate
from backends.calibration.runfile import read_run
from backends.calibration.search import GENERIC, quiet
from backends.calibration.timeline import guess
from router.errors import ConfigError
from tests.calibration.runs import DENSE, KNOWN, engine, simulated


def test_the_engine_counts_what_a_request_lives_through() -> None:
    """Without noise the counted sums times the parameters are the durations, to rounding."""
    spec = engine(quiet(DENSE))
    played = replay(simulated(), spec)
    sums = played.done_at_last - played.done_at_first
    step = spec.step
    worth = np.array(
        [
            step.base_s,
            step.per_sequence_s,
            step.per_context_token_s,
            step.per_prefill_token_s,
            step.per_attention_pair_s,
        ]
    )
    decode_s = played.last - played.first
    assert sums[:, BUSY] == pytest.approx(decode_s, abs=1e-9)
    # From the second request on no step in its decode is a prefill alone, which has a form of its own.
    assert (sums[:, :REGRESSORS] @ worth)[5:] == pytest.approx(decode_s[5:], rel=1e-6)


def test_a_dense_engine_is_found_again() -> None:
    """Planted parameters come back from a noisy run, and the held-out requests are reproduced."""
    found = calibrate(simulated(requests=240, per_s=10.0), None, KNOWN)
    step = found.spec.step
    assert step.base_s + step.saturating_s == pytest.approx(DENSE.base_s, rel=0.05)
    assert step.per_prefill_token_s == pytest.approx(DENSE.per_prefill_token_s, rel=0.1)
    loaded = 40 * step.per_sequence_s + 40_000 * step.per_context_token_s
    assert loaded == pytest.approx(40 * DENSE.per_sequence_s + 40_000 * DENSE.per_context_token_s, rel=0.1)
    assert found.held_out.latency_mape < 0.01
    assert found.held_out.tpot_mape < 0.01
    assert found.held_out.ttft_mape < 0.08


def test_a_mixture_of_experts_is_found_again() -> None:
    """A step that bends with the batch is found to bend, by about as much."""
    step = replace(DENSE, base_s=3.5e-3, saturating_s=9e-3, saturation_tokens=20.0, per_prefill_token_s=15e-6)
    found = calibrate(simulated(engine(step), requests=240), None, KNOWN).spec.step
    assert found.saturating_s > 3e-3
    for batch in (4.0, 16.0, 48.0):
        bends = [
            one.base_s - one.saturating_s * np.expm1(-batch / one.saturation_tokens) for one in (step, found)
        ]
        assert bends[1] == pytest.approx(bends[0], rel=0.15)


def test_even_requests_are_not_looked_at() -> None:
    """Whatever is written over the times of the even requests, the parameters are the same, bit by bit."""
    run = simulated()
    even = ~run.odd
    spoilt = replace(
        run,
        scheduled=np.where(even, run.scheduled + 1.0, run.scheduled),
        first=np.where(even, run.first + 3.0, run.first),
        last=np.where(even, run.last + 60.0, run.last),
    )
    honest, blind = calibrate(run, None, KNOWN), calibrate(spoilt, None, KNOWN)
    assert blind.spec.step == honest.spec.step
    assert blind.fitted_on == honest.fitted_on
    assert blind.held_out.latency_mape > 10 * honest.held_out.latency_mape


def test_a_guess_needs_neither_prior_nor_replay() -> None:
    """The time stamps alone put a loaded step within 10 % of the truth."""
    step = guess(simulated(requests=240, per_s=10.0), GENERIC)
    loaded = [
        one.base_s + 50 * one.per_sequence_s + 50_000 * one.per_context_token_s for one in (step, DENSE)
    ]
    assert loaded[0] == pytest.approx(loaded[1], rel=0.1)


def test_limits_that_are_not_given_are_inferred_and_noted() -> None:
    """The KV room of a run that waited for it comes from the run, and the result says so."""
    run = simulated(engine(kv_capacity_tokens=16_000, max_num_seqs=256), requests=80, per_s=15.0)
    found = calibrate(run, None, Limits(256, 2048, scheduling=Scheduling.ASYNC))
    assert found.spec.kv_capacity_tokens == pytest.approx(16_000, rel=0.06)
    assert any("KV room" in note for note in found.notes)
    assert any("preemptions" in note for note in found.notes)


def test_a_run_that_cannot_be_replayed_is_refused() -> None:
    """KV room below the longest request is a mistake in the options, and said to be one."""
    with pytest.raises(ConfigError, match="cannot be replayed"):
        calibrate(simulated(), None, replace(KNOWN, kv_tokens=512))


def test_the_run_on_the_rtx_pro_6000_meets_its_targets() -> None:
    """Held out: latency within 2 %, time per token within 2.5 %, time to first token within 10 %."""
    found = calibrate(read_run(PRO), None, PRO_LIMITS)
    assert found.held_out.requests == 150
    assert found.held_out.latency_mape <= 0.02
    assert found.held_out.tpot_mape <= 0.025
    assert found.held_out.ttft_mape <= 0.10


def test_the_run_on_the_rtx_4090_preempts_as_the_engine_does() -> None:
    """Bound by preemption: latencies within 2.5 %, no bias, single answers within 8 %."""
    run = read_run(ADA)
    step = replace(GENERIC, base_s=16.3e-3, per_sequence_s=0.0, per_context_token_s=0.216e-6)
    step = replace(step, per_prefill_token_s=88e-6, per_attention_pair_s=0.0)
    spec = engine(
        step, max_num_seqs=256, max_num_batched_tokens=2048, kv_capacity_tokens=ADA_LIMITS.kv_tokens
    )
    errors = judge(run, replay(run, spec, own_prefixes=True), np.ones(len(run), dtype=np.bool_))
    assert errors.latency_mape < 0.025
    assert abs(errors.latency_bias) < 0.02
    assert errors.tpot_mape < 0.08
