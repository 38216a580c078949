"""Dynamo's cost in blocks, by hand; its two tiers; its condition for splitting."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from tests.policies.baselines.scenes import costs, place, prefilled, prompt
from tests.policies.world import BOTH, DECODE, PREFILL, Views, policy, spec, view


def test_cost_of_an_aggregated_worker() -> None:
    """10 blocks of prompt; 20 blocks in prefill, 50 blocks of prompts in all: (20 + 10) + (50 + 10)."""
    busy = view(spec("a"), prefills=2, prefill_tokens=320, decodes=5, decode_tokens=500, kv_tokens=1300)
    assert costs(policy("dynamo"), prompt(10), Views([busy, view(spec("b"))])) == {"a": 90.0, "b": 20.0}


def test_speed_is_not_seen() -> None:
    """An idle worker eight times slower is as good as an idle fast one: both get their share."""
    fleet = Views([view(spec("fast")), view(spec("slow", step_ms=80, prefill_us=800))])
    chosen = policy("dynamo")
    found = Counter(place(chosen, prompt(10), fleet)[0] for _ in range(300))
    assert found["slow"] > 100


def test_blocks_that_are_held_are_credited_once_they_are_there() -> None:
    """Before the prefill is done nothing is held; then 8 of 10 blocks save 8 blocks of prefill."""
    fleet = Views([view(spec("a"))])
    chosen, first = policy("dynamo"), prompt(8, "first")
    place(chosen, first, fleet)
    assert costs(chosen, prompt(10), fleet) == {"a": 20.0}
    prefilled(chosen, first)
    assert costs(chosen, prompt(10), fleet) == {"a": 12.0}
    assert costs(chosen, prompt(10, first=500), fleet) == {"a": 20.0}


def test_credit_decays_with_excess_prefill() -> None:
    """10 blocks in prefill above the least are 1 request's worth: the credit of 8 blocks halves."""
    chosen = policy("dynamo", overlap_credit_decay=1.0)
    first = prompt(8, "first")
    place(chosen, first, Views([view(spec("a"))]))
    prefilled(chosen, first)
    fleet = Views([view(spec("a"), prefills=1, prefill_tokens=160, kv_tokens=160), view(spec("b"))])
    assert costs(chosen, prompt(10), fleet) == {"a": (20 - 4) + 20.0, "b": 20.0}


def test_pools_count_their_own_phase() -> None:
    """Prefill ignores decode blocks; decode ignores prefill."""
    fleet = Views(
        [
            view(spec("p0", PREFILL), prefills=1, prefill_tokens=160, kv_tokens=160),
            view(spec("p1", PREFILL), kv_tokens=16000),
            view(spec("d0", DECODE), decodes=1, decode_tokens=100, kv_tokens=260),
            view(spec("d1", DECODE), decodes=4, decode_tokens=900, kv_tokens=1000),
        ]
    )
    chosen = policy("dynamo")
    assert place(chosen, prompt(10), fleet) == ("p1", "d1")
    assert costs(chosen, prompt(10), fleet) == {"p0": 20.0, "p1": 10.0}


def test_softmax_draws_by_cost_over_range_and_temperature() -> None:
    """Costs 20 and 90 scale to 0 and 1: at temperature 1 the worse has weight 1/e."""
    busy = view(spec("a"), prefills=2, prefill_tokens=320, decodes=5, decode_tokens=500, kv_tokens=1300)
    fleet, chosen = Views([busy, view(spec("b"))]), policy("dynamo", temperature=1.0)
    found = Counter(place(chosen, prompt(10), fleet)[0] for _ in range(4000))
    assert found["a"] / 4000 == pytest.approx(math.exp(-1) / (1 + math.exp(-1)), abs=0.04)


@pytest.mark.parametrize(
    ("held", "blocks", "local"),
    [
        (0, 100, False),  # 1,600 tokens are few, but all of them are uncached
        (40, 100, True),  # 960 of 1,600: below 2,048 and 0.6
        (30, 100, False),  # exactly 0.7 is not below
        (100, 300, False),  # 3,200 uncached are too many
    ],
)
def test_condition_for_splitting(held: int, blocks: int, local: bool) -> None:
    """A decode worker prefills itself only if both bounds hold, strictly."""
    chosen = policy("dynamo", conditional_disaggregation=True)
    alone, both = Views([view(spec("w", BOTH))]), view(spec("w", BOTH))
    if held:
        first = prompt(held, "first")
        place(chosen, first, alone)
        prefilled(chosen, first)
    where = place(chosen, prompt(blocks), Views([view(spec("p", PREFILL)), both]))
    assert where == (("w", "w") if local else ("p", "w"))


def two_tier(loads: dict[str, tuple[int, int]], blocks: int = 10) -> str:
    """Where two-tier sends a prompt, given (blocks held, active requests) of each worker."""
    chosen = policy("dynamo_two_tier")
    for name, (held, _) in loads.items():
        if held:
            first = prompt(held, f"first-{name}")
            place(chosen, first, Views([view(spec(name))]))
            prefilled(chosen, first)
    fleet = Views([view(spec(name), decodes=active) for name, (_, active) in loads.items()])
    return place(chosen, prompt(blocks), fleet)[0]


def test_two_tiers() -> None:
    """Half of the prompt held is not above half, 7 of 10 blocks are. A spread of 33 above nobody shifts to
    load, one of 32 does not; neither does one of 50 while 550 are no more than 1.1 times 500."""
    assert two_tier({"a": (0, 0), "b": (7, 3)}) == "b"
    assert two_tier({"a": (0, 0), "b": (5, 3)}) == "a"
    assert two_tier({"a": (0, 0), "b": (10, 32)}) == "b"
    assert two_tier({"a": (0, 0), "b": (10, 33)}) == "a"
    assert two_tier({"a": (0, 500), "b": (10, 550)}) == "b"
    assert two_tier({"a": (0, 500), "b": (10, 551)}) == "a"


def test_of_those_that_hold_most_the_least_loaded() -> None:
    """Two hold 8 of 10 blocks, the idle one 6: the cache tier looks at the most held alone."""
    assert two_tier({"a": (8, 9), "b": (6, 0), "c": (8, 4)}) == "c"
