"""`polyphase calibrate probe`: what it sends, what it makes of a live mock, and how it fails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from backends.calibration.limits import Limits
from backends.calibration.probe import Row, pace_of, rows_text, run_of, with_inbox
from backends.calibration.runfile import read_run
from backends.calibration.sweep import MOST_REQUESTS, MOST_TOKENS, SHARES, SHORT, Bounds, Pace, sweep
from backends.catalogue import load_fleet
from router.cli.children import child
from router.cli.dev import Setting
from router.cli.main import cli
from router.errors import CapacityError
from tests.calibration.runs import simulated

ROOT = Path(__file__).resolve().parents[2]
FLEET = str(Path(__file__).parent / "one_gpu.toml")
GPU = Pace(step_s=7e-3, start_s=9e-3, per_prompt_token_s=25e-6)


@asynccontextmanager
async def one_gpu() -> AsyncIterator[str]:
    """A daemon in front of one mock GPU, each a process of its own; gives its data port."""
    setting = Setting(load_fleet(FLEET).backends, FLEET, "predicted", 0, 1)
    async with child("mock fleet", setting.mock_arguments(), {}) as mock:
        env = setting.daemon_env(mock.ready["mock"])
        async with child("daemon", ("serve", "--supervised"), env) as daemon:
            await asyncio.sleep(1.0)  # the lane comes up
            yield daemon.ready["data"]


async def probe(target: str, *arguments: str) -> Process:
    """`polyphase calibrate probe` in a process of its own."""
    words = ("-m", "router.cli.main", "calibrate", "probe", target, *arguments)
    path = f"{ROOT}:{ROOT / 'protos'}"
    env = {**os.environ, "PYTHONPATH": path}
    return await asyncio.create_subprocess_exec(sys.executable, *words, stdout=PIPE, stderr=PIPE, env=env)


async def said(process: Process) -> tuple[int, str]:
    """How it ended, and all that it printed."""
    out, errors = await process.communicate()
    return process.returncode or 0, (out + errors).decode()


# --- the sweep -------------------------------------------------------------------------------------


def shares(bounds: Bounds) -> Sequence[float]:
    """Where the parts of a sweep begin."""
    return [0.0, *np.cumsum(SHARES) * bounds.duration_s]


@pytest.mark.parametrize("duration_s", [5.0, 9.0, 60.0, 300.0])
@pytest.mark.parametrize("in_flight", [4, 64, 1024])
def test_a_sweep_is_the_same_every_time_and_keeps_its_bounds(duration_s: float, in_flight: int) -> None:
    """Same pace, same bounds, same schedule: in order, within its time, its lengths and its number."""
    bounds = Bounds(duration_s, in_flight, 2048)
    plan = sweep(GPU, bounds)
    assert plan == sweep(GPU, bounds)
    assert all(a.at_s <= b.at_s for a, b in pairwise(plan))
    assert 0.0 == plan[0].at_s <= plan[-1].at_s < duration_s
    assert 20 <= len(plan) <= MOST_REQUESTS
    assert all(1 <= one.prompt_tokens <= 2048 for one in plan)
    assert all(2 <= one.output_tokens <= MOST_TOKENS for one in plan)
    together = max(sum(one.at_s == other.at_s for other in plan) for one in plan[:: max(1, len(plan) // 50)])
    assert together <= in_flight


def test_a_sweep_excites_every_term() -> None:
    """Single streams, prompts of several lengths alone, rising batches, a burst; both halves see all."""
    bounds = Bounds(60.0)
    plan = sweep(GPU, bounds)
    edges = shares(bounds)
    parts = [[one for one in plan if low <= one.at_s < high] for low, high in pairwise(edges)]
    singles, prompts, crowds, burst = parts
    for part in (singles, prompts):
        gaps = [b.at_s - a.at_s - GPU.alone_s(a.prompt_tokens, a.output_tokens) for a, b in pairwise(part)]
        assert min(gaps) > 0.0
    assert {one.prompt_tokens for one in prompts} == {64, 128, 256, 512, 1024, 2048, 4096}
    sizes = [sum(one.at_s == at_s for one in crowds) for at_s in sorted({one.at_s for one in crowds})]
    assert sizes == [2, 4, 8, 16, 32]
    assert len(burst) == 48
    for odd, even in zip(plan[1::2], plan[0::2], strict=True):
        assert odd.prompt_tokens == even.prompt_tokens


def test_a_target_too_slow_for_the_duration_is_told_how_long_it_needs() -> None:
    """A second a token leaves no six answers in the share of five seconds."""
    slow = replace(GPU, step_s=1.0)
    with pytest.raises(
        CapacityError, match=r"too slow.*Nothing was fitted\. Give --duration .* times as long"
    ):
        sweep(slow, Bounds(5.0))
    assert sweep(slow, Bounds(300.0))


def test_the_pace_comes_from_two_requests() -> None:
    """Step from the tokens of the short one, prompt tokens from the longer one."""
    pace = pace_of(Row(SHORT, 11, 1.0, 1.01, 1.11), Row(512, 2, 2.0, 2.0256, 2.03))
    assert pace.step_s == pytest.approx(0.01)
    assert pace.start_s == pytest.approx(0.01)
    assert pace.per_prompt_token_s == pytest.approx(50e-6)


# --- what becomes of the answers -------------------------------------------------------------------


def test_rows_are_a_file_that_calibrate_run_reads(tmp_path: Path) -> None:
    """What --keep writes comes back as the same run."""
    rows = [Row(100 + i, 20, 5.0 + i, 5.5 + i, 6.5 + i) for i in range(30)]
    run = run_of(rows, "probe")
    path = tmp_path / "kept.csv"
    path.write_text(rows_text(run))
    read = read_run(path)
    for name in ("prompts", "outputs", "arrived", "queued", "first", "last"):
        assert getattr(read, name) == pytest.approx(getattr(run, name), abs=2e-6), name


def test_the_inbox_of_a_busy_engine_is_inferred() -> None:
    """A client sees only when it sent; the replay tells the end of the step in progress to a millisecond."""
    true = simulated(requests=80)
    seen = replace(true, queued=true.arrived, scheduled=true.arrived)
    inferred = with_inbox(seen, Limits(64, 2048))
    blind = float(np.mean(true.queued - seen.queued))
    assert blind > 4e-3
    assert abs(float(np.mean(inferred.queued - true.queued))) < 0.25 * blind


# --- live ------------------------------------------------------------------------------------------


@pytest.mark.process
async def test_a_probe_finds_the_parameters_of_a_live_mock(tmp_path: Path) -> None:
    """Without a prior, from the client's clock alone: base and prefill of the mock within 30 %.

    What the wire and the router add to a request is part of what is measured.
    """
    written, kept, plot = tmp_path / "probe.json", tmp_path / "kept.csv", tmp_path / "probe.svg"
    true = load_fleet(FLEET).backends[0].step
    async with one_gpu() as target:
        known = ("--max-num-batched-tokens", "8192", "--scheduling", "sync", "--seed", "1")
        outputs = ("--json", str(written), "--keep", str(kept), "--plot", str(plot))
        code, told = await said(await probe(target, "--duration", "8", *known, *outputs))
    assert code == 0, told
    found = json.loads(written.read_text())
    assert found["step"]["base_s"] == pytest.approx(true.base_s, rel=0.3)
    assert found["step"]["per_prefill_token_s"] == pytest.approx(true.per_prefill_token_s, rel=0.3)
    assert found["held_out"]["requests"] >= 10
    assert found["held_out"].keys() >= {"latency_mape", "tpot_mape", "ttft_mape"}
    assert len(read_run(kept)) == found["requests"]
    assert "<svg" in plot.read_text()


@pytest.mark.process
async def test_a_model_that_is_not_served_and_an_interrupt_are_told_in_words() -> None:
    """Both end quickly with a message of cause, consequence and next step; nothing is fitted."""
    async with one_gpu() as target:
        code, told = await said(await probe(target, "--duration", "5", "--model", "no-such-model"))
        assert code == 2
        assert "UNKNOWN_MODEL" in told
        assert "Nothing was fitted. Name a model that it serves" in told

        process = await probe(target, "--duration", "300")
        await asyncio.sleep(5.0)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20.0):
            code, told = await said(process)
    assert code == 2
    assert "was stopped. Nothing was fitted." in told
    assert "Traceback" not in told


def test_a_dead_target_is_named() -> None:
    """Nobody listens on port 1: the address, the consequence and what to start."""
    done = CliRunner().invoke(cli, ["calibrate", "probe", "127.0.0.1:1", "--duration", "5"])
    assert done.exit_code == 2
    assert "No router answers at 127.0.0.1:1" in done.output
    assert "polyphase serve" in done.output


def test_wrong_options_are_refused_before_anything_is_sent() -> None:
    """--out without a prior, a plot that is no picture, no address, an hour."""
    target = ["calibrate", "probe", "127.0.0.1:1"]
    for arguments, complaint in (
        (["--out", "x.toml"], "--out needs --prior"),
        (["--plot", "x.gif"], "a plot is written as .svg or .png"),
        (["--duration", "3600"], "is not in the range"),
    ):
        done = CliRunner().invoke(cli, [*target, *arguments])
        assert done.exit_code in (2, 78)
        assert complaint in done.output
