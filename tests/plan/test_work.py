"""What a request takes at least: against the engine's own laws, and against hand-worked numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from backends.catalogue import load_fleet
from backends.models.laws import law_of
from router.model import BackendKind, BackendSpec, Phase, SchedulerKind, StepParameters
from router.plan.steps import decode_floors, least_prefill_s, prefill_share_s
from router.plan.work import Floors, Task, floors_of, least_efforts

STEP = StepParameters(
    base_s=10e-3,
    per_sequence_s=1e-4,
    per_context_token_s=1e-6,
    prefill_base_s=2e-3,
    prefill_floor_s=8e-3,
    per_prefill_token_s=2e-5,
    per_attention_pair_s=1e-9,
)
SPEC = BackendSpec("b", BackendKind.GPU, "d", ("m",), frozenset(Phase), STEP, kv_capacity_tokens=100_000)
TASK = Task("m", prompt_tokens=1000, output_tokens=101, ttft_s=1.0, tpot_s=0.03)


def effort(task: Task = TASK, spec: BackendSpec = SPEC, floors: Floors | None = None):
    """Of one backend."""
    return least_efforts(task, [spec], floors or floors_of([task]))[0]


def test_a_prompt_costs_its_marginal_terms_alone() -> None:
    """It may ride in a step that decodes pay for: 1000 x 20 us + 500,000 pairs x 1 ns."""
    assert effort().prefill_s == pytest.approx(0.0205)


def test_an_answer_costs_its_steps_in_the_largest_batch() -> None:
    """100 steps; Bmax from 10 ms + 0.1 ms B + 1 us (1050.5 + 1001 (B - 1)) = 30 ms."""
    found = effort()
    batch = (0.03 - 0.01 - 1e-6 * (1050.5 - 1001)) / (1e-4 + 1e-6 * 1001)
    assert found.batch == pytest.approx(batch)
    assert found.decode_s == pytest.approx(100 * (0.01 / batch + 1e-4 + 1e-6 * 1050.5))
    assert found.kv_token_s == pytest.approx(100 * (0.01 + 1e-4 + 1e-6 * 1050.5) * 1050.5)


def test_one_token_needs_no_decode_step() -> None:
    """It comes with the prefill."""
    assert effort(replace(TASK, output_tokens=1)).decode_s == 0.0


def test_cached_tokens_are_not_computed_again() -> None:
    """But they are read: 100 new tokens after 900."""
    found = effort(replace(TASK, cached_tokens=900))
    assert found.prefill_s == pytest.approx(100 * 2e-5 + 100 * (900 + 50) * 1e-9)


@pytest.mark.parametrize(
    ("change", "phase", "why"),
    [
        ({"ttft_s": 0.02}, "no_prefill", "first token takes"),
        ({"tpot_s": 0.011}, "no_decode", "a token takes"),
        ({"deadline_s": 0.9}, "no_decode", "a token takes"),
        ({"model": "other"}, "no_prefill", "not served"),
        ({"prompt_tokens": 120_000}, "no_prefill", "KV of"),
    ],
)
def test_what_cannot_be_done_in_time_says_why(change: dict[str, float], phase: str, why: str) -> None:
    """B0: an idle backend is too slow, too small, or serves another model."""
    assert why in getattr(effort(replace(TASK, **change)), phase)


def test_an_answer_may_follow_a_prefill_elsewhere() -> None:
    """The time that a deadline leaves is that after the fastest prefill of the fleet, not after one's own."""
    slow = replace(SPEC, id="slow", step=replace(STEP, prefill_base_s=5.0, per_prefill_token_s=5e-3))
    task = replace(TASK, ttft_s=math.inf, deadline_s=5.5)
    assert effort(task, slow).no_decode
    assert not least_efforts(task, [slow, SPEC], floors_of([task]))[0].no_decode


def specs() -> list[BackendSpec]:
    """One of each scheduler, and all that ship."""
    slots = replace(SPEC, id="slots", scheduler=SchedulerKind.SLOTS, max_num_seqs=8)
    bucketed = replace(SPEC, id="bucketed", scheduler=SchedulerKind.BUCKETED, max_num_seqs=8)
    single = replace(SPEC, id="single", scheduler=SchedulerKind.SINGLE, max_num_seqs=1)
    shipped = [spec for name in ("mixed", "afd") for spec in load_fleet(name).backends]
    return [SPEC, slots, bucketed, single, *shipped]


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.id)
def test_no_step_of_the_law_undercuts_its_floor(spec: BackendSpec) -> None:
    """For every scheduler, batch and context; and shares add up to no more than the step."""
    law = law_of(spec)
    for batch in {1, 2, 3, 7, spec.max_num_seqs} - set(range(spec.max_num_seqs + 1, 8)):
        for context in (10, 1000, 20_000):
            step_s = law.decode_step_s(batch, batch * context)
            for floor in decode_floors(spec):
                assert batch * floor.share_s(batch, context) <= step_s * (1 + 1e-9)


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.id)
def test_no_prefill_of_the_law_undercuts_its_floor(spec: BackendSpec) -> None:
    """Alone, and beside one decode of one token."""
    law = law_of(spec)
    for tokens in (1, 100, 3000):
        alone_s = law.prefill_s(tokens)
        assert least_prefill_s(spec, tokens, 0) <= alone_s * (1 + 1e-9)
        assert prefill_share_s(spec, tokens, 0) <= alone_s * (1 + 1e-9)
