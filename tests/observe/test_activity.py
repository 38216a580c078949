"""Running totals for the live table: counts, ratios and quantiles."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.messages import BackendJoined, BackendRemoved, BackendReported, RequestArrived, StartPrefill
from router.errors import Reason
from router.model import BackendKind, BackendSnapshot, Phase
from router.observe.activity import Activity
from router.observe.sketch import Sketch
from tests.observe.stories import failed, join, objectives, request, spec, split_request


@pytest.fixture
def activity() -> Activity:
    """Watches one GPU and one LPU."""
    activity = Activity()
    join(activity, spec("gpu-0"), spec("lpu-0", BackendKind.LPU, phases=frozenset({Phase.DECODE})))
    return activity


def test_a_split_request_counts_on_both_backends(activity: Activity) -> None:
    """One prefill on the GPU, one decode on the LPU, and what each cost."""
    split_request(activity, request())
    now = activity.snapshot(20.0)
    gpu, lpu = now.backends
    assert (gpu.id, gpu.prefills, gpu.decodes, gpu.prompt_tokens, gpu.tokens) == ("gpu-0", 1, 0, 80, 0)
    assert (lpu.id, lpu.prefills, lpu.decodes, lpu.prompt_tokens, lpu.tokens) == ("lpu-0", 0, 1, 0, 49)
    assert (gpu.cost_usd, gpu.energy_j, lpu.cost_usd, lpu.energy_j) == (0.002, 50.0, 0.001, 30.0)
    assert (now.arrived, now.ok, now.split, now.split_kinds, now.goodput) == (1, 1, 1, 1, 1)
    assert (now.handoffs, now.handoff_bytes) == (1, 4096)
    assert (now.prompt_tokens, now.output_tokens) == (100, 49)
    assert now.cost_usd == pytest.approx(0.003)
    assert now.energy_j == pytest.approx(80.0)


def test_latencies_are_within_one_percent(activity: Activity) -> None:
    """Of the values in the report."""
    split_request(activity, request())
    now = activity.snapshot(20.0)
    for name, seconds in (("queue", 0.01), ("prefill", 0.1), ("handoff", 0.02), ("decode", 0.37)):
        assert now.phases[name].p50 == pytest.approx(seconds, rel=0.01)
        assert now.phases[name].count == 1
    assert now.ttft_s.p99 == pytest.approx(0.14, rel=0.01)
    assert now.tpot_s.p90 == pytest.approx(0.0075, rel=0.01)
    assert now.e2e_s.p50 == pytest.approx(0.5, rel=0.01)


def test_busy_ratio_is_device_time_over_wall_time(activity: Activity) -> None:
    """From the growth of the worker's counters since the router knows it."""
    for at, busy in ((1.0, 50.0), (6.0, 54.0)):
        snapshot = BackendSnapshot(at, busy_prefill_s=busy, busy_decode_s=busy / 4)
        activity.seen(BackendReported("gpu-0", snapshot), at, [])
    now = activity.snapshot(10.0)
    assert now.backends[0].busy_prefill_s == 4.0
    assert now.backends[0].busy_ratio == pytest.approx(0.5)
    prefill, decode, lpu = now.kinds
    assert (prefill.kind, prefill.phase, prefill.busy_ratio) == (BackendKind.GPU, Phase.PREFILL, 0.4)
    assert (decode.phase, decode.busy_ratio) == (Phase.DECODE, 0.1)
    assert (lpu.kind, lpu.phase, lpu.busy_ratio, lpu.backends) == (BackendKind.LPU, Phase.DECODE, 0.0, 1)


def test_work_under_way_is_shown(activity: Activity) -> None:
    """By stage, by backend and by kind."""
    activity.seen(RequestArrived(request()), 1.0, [StartPrefill("r1", 1, "gpu-0", decode_here=False)])
    now = activity.snapshot(2.0)
    assert now.live == {"queue": 0, "prefill": 1, "handoff": 0, "decode": 0}
    assert now.backends[0].prefills_in_flight == 1
    assert now.kinds[0].in_flight == 1


def test_failures_count_by_outcome(activity: Activity) -> None:
    """And not among the latencies."""
    failed(activity, request(), Reason.SHED)
    failed(activity, request("r2"), Reason.BACKEND_LOST, attempts=3)
    now = activity.snapshot(2.0)
    assert {k: n for k, n in now.outcomes.items() if n} == {"shed": 1, "failed": 1}
    assert (now.arrived, now.ok, now.e2e_s.count) == (2, 0, 0)
    assert sum(now.live.values()) == 0


def test_a_missed_objective_is_no_goodput(activity: Activity) -> None:
    """The request finished, but late."""
    split_request(activity, request(slo=objectives(ttft_s=0.1)))
    assert activity.snapshot(20.0).goodput == 0


def test_a_backend_that_left_keeps_its_row(activity: Activity) -> None:
    """Totals over rows stay equal to totals over requests; one that comes back begins anew."""
    split_request(activity, request())
    activity.seen(BackendRemoved("gpu-0"), 20.0, [])
    row = activity.snapshot(30.0).backends[0]
    assert (row.id, row.state, row.prefills) == ("gpu-0", None, 1)
    assert [k.backends for k in activity.snapshot(30.0).kinds if k.kind is BackendKind.GPU] == [0, 0]
    activity.seen(BackendJoined(spec("gpu-0"), "boot-9"), 40.0, [])
    assert {row.id: row.state for row in activity.snapshot(41.0).backends} == {
        "gpu-0": "ready",
        "lpu-0": "ready",
    }


def test_an_empty_fleet_has_an_empty_snapshot() -> None:
    """Before the first fact nothing is divided by zero."""
    now = Activity().snapshot(5.0)
    assert (now.elapsed_s, now.arrived, now.e2e_s.p99, list(now.backends)) == (0.0, 0, 0.0, [])


@given(st.lists(st.floats(1e-6, 1e5), min_size=1, max_size=200), st.floats(0, 1))
def test_quantiles_are_within_one_percent_of_the_exact_ones(values: list[float], q: float) -> None:
    """The exact one is the value of rank ceil(q n)."""
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    exact = next(v for i, v in enumerate(sorted(values), 1) if i >= q * len(values))
    assert sketch.quantile(q) == pytest.approx(exact, rel=0.01 + 1e-9)


def test_a_sketch_stays_small_and_keeps_zeros() -> None:
    """A million seconds of range fit into some hundred buckets; a zero is a zero."""
    sketch, chance = Sketch(), random.Random(1)
    for _ in range(10_000):
        sketch.add(10 ** chance.uniform(-4, 2))
    assert len(sketch._buckets) < 800
    zeros = Sketch()
    for value in (0.0, 0.0, 5.0):
        zeros.add(value)
    assert zeros.quantile(0.5) == 0.0
    assert zeros.quantile(1.0) == pytest.approx(5.0, rel=0.01)
