"""The bounds by hand: a burst, a power cap, KV room, links; and what is said of a load that is too high."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.errors import ConfigError
from router.model import BackendKind, BackendSpec, LinkParameters, Phase, PowerParameters, StepParameters
from router.plan.bounds import bounds_of, capacity_of, case_of, reasons
from router.plan.hindsight import most_whole
from router.plan.ladder import bound_only
from router.plan.supply import NO_LIMITS, Limits, supplies_of
from router.plan.tasks import Timed, coarsen, kinds, representatives
from router.plan.work import Task

PREFILL_ONLY = StepParameters(base_s=1e-3, per_prefill_token_s=1e-3)
SPEC = BackendSpec("b-0", BackendKind.GPU, "d", ("m",), frozenset(Phase), PREFILL_ONLY)
TASK = Task("m", prompt_tokens=100, output_tokens=1, ttft_s=0.5, workload_class="c")
"""0.1 s of device time, to be had within 0.5 s."""


def burst(count: int, at_s: float = 0.0, task: Task = TASK) -> list[Timed]:
    """Equal requests at one moment."""
    return [Timed(at_s, task) for _ in range(count)]


def test_a_burst_can_only_be_served_within_its_time() -> None:
    """20 requests of 0.1 s at once: five can be served in 0.5 s. Another comes when all is over."""
    tasks = [*burst(20), *burst(1, at_s=10.0)]
    case = case_of(tasks, supplies_of([SPEC]))
    found = bounds_of(case, window_s=0.25)
    assert found.whole_span == pytest.approx(21.0)  # over the span there is time enough
    assert found.windows == pytest.approx(8.5, abs=1.01)  # the window in which they are due counts in full
    assert bounds_of(case, window_s=0.1).windows == pytest.approx(7.0, abs=1e-6)
    assert bounds_of(case, window_s=0.01).windows == pytest.approx(6.1, abs=0.2)


def test_shorter_windows_bound_tighter() -> None:
    """From B1 downwards."""
    tasks = [*burst(20), *burst(20, at_s=2.0), *burst(3, at_s=5.0)]
    case = case_of(tasks, supplies_of([SPEC]))
    found = [bounds_of(case, window_s).windows for window_s in (4.0, 2.0, 1.0, 0.5, 0.25)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0]


def test_the_integer_program_counts_whole_requests() -> None:
    """Where the fluid program serves shares of requests."""
    tasks = burst(8, task=replace(TASK, prompt_tokens=150))
    case = case_of(tasks, supplies_of([SPEC]))
    assert bounds_of(case, 0.25).windows == pytest.approx(0.5 / 0.15)
    assert most_whole(case.tasks, [SPEC], 0.25, case.span_s) == 3.0
    with pytest.raises(ConfigError, match="at most 30"):
        most_whole(burst(31), [SPEC], 0.25, 1.0)


def test_capacity_is_the_rate_of_the_device() -> None:
    """Ten prompts of 0.1 s a second on one backend; twice that on two."""
    tasks = [Timed(float(i), TASK) for i in range(11)]
    one = capacity_of(case_of(tasks, supplies_of([SPEC])), arrivals_s=11.0)
    two = capacity_of(case_of(tasks, supplies_of([SPEC, replace(SPEC, id="b-1")])), arrivals_s=11.0)
    assert one.served == pytest.approx(10.0)
    assert two.served == pytest.approx(20.0)
    assert one.duals["device:b-0"] * one.served / one.objective == pytest.approx(10.0)


def test_a_power_cap_binds_and_has_a_price() -> None:
    """50 W idle, 0.5 J a prompt token: 10/s draw 550 W. Switched off now and then, 300 W do 300/550 of it."""
    power = PowerParameters(idle_w=50.0, joule_per_flop=0.5, flop_per_token=1.0)
    tasks = [Timed(float(i), TASK) for i in range(11)]
    case = case_of(tasks, supplies_of([replace(SPEC, power=power)]))
    free = capacity_of(case, 11.0)
    capped = capacity_of(case, 11.0, Limits(power_w=300.0))
    assert free.served == pytest.approx(10.0)
    assert capped.served == pytest.approx(10.0 * 300 / 550)
    assert capped.duals["power"] * capped.served / capped.objective == pytest.approx(10.0 / 550)
    assert bounds_of(case, 1.0, Limits(power_w=300.0)).windows <= bounds_of(case, 1.0, NO_LIMITS).windows


def test_kv_room_binds() -> None:
    """100 steps of at least 11 ms hold about 1,050 tokens each: 1,150 token-seconds of 1,500 tokens."""
    step = StepParameters(base_s=0.01, per_sequence_s=1e-3, per_prefill_token_s=1e-9)
    spec = replace(SPEC, step=step, kv_capacity_tokens=1500, max_num_seqs=64)
    task = Task("m", 1000, 101, tpot_s=0.1)
    plan = capacity_of(case_of([Timed(0.0, task)], supplies_of([spec])), arrivals_s=1.0)
    assert plan.served == pytest.approx(1500 / (100 * 0.011 * 1050.5))
    assert plan.duals["kv:b-0"] > 0


def test_the_link_between_two_types_binds() -> None:
    """Prompts here, answers there: 100 tokens of 1 MB over 50 MB/s are half a request a second."""
    prefill = replace(
        SPEC,
        id="p",
        phases=frozenset({Phase.PREFILL}),
        kv_bytes_per_token=1e6,
        link=LinkParameters(0.0, 5e7),
    )
    decode = replace(SPEC, id="d", phases=frozenset({Phase.DECODE}))
    case = case_of([Timed(0.0, TASK)], supplies_of([prefill, decode]))
    plan = capacity_of(case, 1.0)
    assert plan.served == pytest.approx(0.5)
    assert plan.duals["link:p"] > 0


def test_an_overload_is_called_one_with_what_binds() -> None:
    """Twenty a second on a backend that does ten."""
    tasks = [Timed(i / 20, TASK) for i in range(100)]
    ladder = bound_only(tasks, [SPEC], 1.0, NO_LIMITS)
    assert ladder.is_overload
    assert ladder.capacity.served == pytest.approx(10.0, rel=0.02)
    assert next(iter(ladder.binding)).partition(":")[2] == "b-0"


def test_what_nobody_can_serve_is_left_out_and_named() -> None:
    """One request with an objective below the fastest prefill does not make the capacity 0."""
    tasks = [*burst(3), Timed(0.0, replace(TASK, ttft_s=0.05, workload_class="hurried"))]
    case = case_of(tasks, supplies_of([SPEC]))
    assert bounds_of(case, 1.0).unservable == 1
    assert capacity_of(case, 1.0).served > 0
    assert "first token takes 0.1 s" in reasons(case)["hurried"]["b-0"]


def test_a_grid_makes_tasks_cheaper_and_fewer() -> None:
    """Rounding never raises a length, and keeps how many there are."""
    tasks = [Timed(0.0, Task("m", 50 + 7 * i, 1 + i % 90, cached_tokens=(3 * i) % 40)) for i in range(300)]
    rounded = coarsen(tasks, most_kinds=40)
    assert len(kinds(rounded)) < len(kinds(tasks))
    assert sum(kinds(rounded).values()) == 300
    for before, after in zip(tasks, rounded, strict=True):
        assert after.task.prompt_tokens <= before.task.prompt_tokens
        assert after.task.new_tokens <= before.task.new_tokens
        assert after.task.output_tokens <= before.task.output_tokens


def test_representatives_stand_for_all() -> None:
    """Means of cells: the totals stay."""
    tasks = [Task("m", 50 + 7 * i, 1 + i % 90, workload_class=f"c{i % 2}") for i in range(400)]
    found = representatives(tasks, cells=32)
    assert sum(count for _, count in found) == 400
    total = sum(task.prompt_tokens * count for task, count in found)
    assert total == pytest.approx(sum(task.prompt_tokens for task in tasks), rel=0.01)
