"""What a request takes of each kind of backend, by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from policies.price_problem import (
    GroupNames,
    batch_of,
    classes_of,
    group_name,
    groups_of,
    largest_batch,
    use_of,
)
from policies.window import Arrivals, Window
from router.model import BackendSpec, BackendState, PowerParameters, ServiceLevel, StepParameters
from router.prices import MAX_CLASSES, PricedGroup
from tests.policies.world import DECODE, PREFILL, Models, request, spec, view

STEP = StepParameters(base_s=0.010, per_sequence_s=0.001, per_prefill_token_s=1e-4)
"""10 ms and 1 ms per sequence; 0.1 ms per token of a prompt."""


def arrivals(prompt: int = 1000, output: int = 100, cached: float = 0.0, **more: Any) -> Arrivals:
    """Ten equal requests."""
    window = Window(10.0)
    for _ in range(10):
        window.arrived(request(prompt, 500, **more), output, cached, 0.0)
    return window.seen(1.0)[1][0]


def backend(**more: Any) -> BackendSpec:
    return spec("a", **{"step": STEP, "max_num_seqs": 64, **more})


def use(of: BackendSpec, kind: Arrivals, ttft_s: float = math.inf, tpot_s: float = math.inf) -> Any:
    return use_of(Models()(of), of, kind, ttft_s, tpot_s)


def test_the_largest_batch_that_keeps_its_pace() -> None:
    """Steps of 10 ms + 1 ms each: 30 ms carry 20 sequences, 10.5 ms none, any time all there is room for."""
    latency = Models()(backend())
    assert largest_batch(latency, 64, 1000, 0.0301) == 20
    assert largest_batch(latency, 64, 1000, 0.0105) == 0
    assert largest_batch(latency, 64, 1000, 0.0111) == 1
    assert largest_batch(latency, 64, 1000, math.inf) == 64


def test_what_a_request_takes() -> None:
    """1,000 tokens of prompt: 0.1 s. 100 tokens in batches of 20: 100 x 30 ms / 20. KV: 1,050 tokens for 3
    s."""
    found = use(backend(), arrivals(), tpot_s=0.0301)
    assert found.prefill_s == pytest.approx(0.1)
    assert found.decode_s == pytest.approx(100 * 0.030 / 20)
    assert found.kv_token_s == pytest.approx(100 * 0.030 * 1050)
    assert found.egress_bytes == pytest.approx(1000 * 1000.0)


def test_kv_room_bounds_the_batch_that_holds_it_not_the_share_of_the_device() -> None:
    """Room for 10 contexts: their steps take 20 ms and hold KV so long; the device could do with batches of
    20."""
    found = use(backend(kv_capacity_tokens=10_500), arrivals(), tpot_s=0.0301)
    assert found.decode_s == pytest.approx(100 * 0.030 / 20)
    assert found.kv_token_s == pytest.approx(100 * 0.020 * 1050)
    assert found.kv_token_s / 10_500 > found.decode_s


def test_what_is_cached_is_not_computed() -> None:
    """Three quarters of the prompt are: 25 ms."""
    assert use(backend(), arrivals(cached=0.75)).prefill_s == pytest.approx(0.025)


def test_energy_is_that_above_idle() -> None:
    """1 mJ a byte moved and 2 mJ a FLOP; KV of 1,000 bytes a token, 500 bytes of weights, 3 FLOP a token."""
    power = PowerParameters(100.0, 1e-3, 2e-3, weight_bytes=500.0, flop_per_token=3.0)
    found = use(backend(power=power), arrivals(), tpot_s=0.0301)
    assert found.prefill_j == pytest.approx(0.5 + 1000 * (1.0 + 0.006))
    assert found.decode_j == pytest.approx(100 * (0.5 / 20 + 1050 * 1.0 + 0.006))


@pytest.mark.parametrize(
    ("more", "prefills", "decodes"),
    [
        ({"phases": PREFILL}, True, False),
        ({"phases": DECODE}, False, True),
        ({"models": ("other",)}, False, False),
        ({"max_context_tokens": 1099}, False, False),
        ({"kv_capacity_tokens": 1049}, True, False),
        ({}, True, True),
    ],
)
def test_where_it_cannot_run(more: dict[str, Any], prefills: bool, decodes: bool) -> None:
    """Phases, model, context and room."""
    found = use(backend(**more), arrivals())
    assert (found.prefills, found.decodes) == (prefills, decodes)


def test_objectives_bar_a_backend_only_if_another_holds_them() -> None:
    """The slow one takes 0.1 s for the prompt: no place within 50 ms, unless there is none other."""
    kind = arrivals(slo=ServiceLevel(ttft_s=0.05, tpot_s=0.0301))
    slow, fast = backend(), backend(step=replace(STEP, per_prefill_token_s=1e-5))
    (both,) = classes_of(
        [kind], [PricedGroup("s", slow, 1), PricedGroup("f", fast, 1)], Models(), 2.0, lambda slo, tokens: 5.0
    )
    assert [one.prefills for one in both.uses] == [False, True]
    assert (both.rate, both.worth_s) == (5.0, 5.0)
    (alone,) = classes_of([kind], [PricedGroup("s", slow, 1)], Models(), 2.0, lambda slo, tokens: 5.0)
    assert alone.uses[0].prefills


def test_rare_kinds_count_as_more_of_the_others() -> None:
    """The problem is bounded, and the load is all of it."""
    window = Window(10.0)
    for i in range(3 * MAX_CLASSES):
        window.arrived(request(workload_class=f"c{i % 100}"), 10, 0.0, 0.0)
    found = classes_of(
        window.seen(1.0)[1], [PricedGroup("a", backend(), 1)], Models(), 10.0, lambda slo, tokens: 5.0
    )
    assert len(found) == MAX_CLASSES
    assert sum(one.rate for one in found) == pytest.approx(3 * MAX_CLASSES / 10.0)


def test_groups_are_backends_that_differ_in_name_and_zone_only() -> None:
    """Those that take no work at the time are not counted."""
    one = backend()
    views = [
        view(one),
        view(replace(one, id="b", zone="z")),
        view(replace(one, id="c"), BackendState.LOST),
        view(replace(one, id="d", usd_per_hour=9.0)),
    ]
    found = groups_of(views, GroupNames())
    assert [group.units for group in found] == [2, 1]
    assert found[0].spec is one


def test_a_batch_that_does_not_fit_is_none() -> None:
    """Room for 10 tokens holds no context of 100."""
    assert batch_of(Models()(backend()), backend(kv_capacity_tokens=10), 100, 1.0) is None


NAME = "from tests.policies.world import spec; from policies.price_problem import group_name as g"


def test_a_group_has_the_same_name_in_every_process() -> None:
    """Names are in recordings, and sets of phases have no order of their own."""
    assert group_name(backend()) == group_name(replace(backend(), id="other", zone="z"))
    names = {
        subprocess.run(
            [sys.executable, "-c", f"{NAME}; print(g(spec('a')))"],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in sys.path if p)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2", "3")
    }
    assert names == {group_name(spec("a"))}
