"""Splitwise's pools and Mooncake's earliest first token, by hand."""

from __future__ import annotations

import pytest

from router.model import Reject, ServiceLevel
from tests.policies.baselines.scenes import costs, place, prefilled, prompt
from tests.policies.world import BOTH, DECODE, PREFILL, Views, policy, request, spec, view


def four(**loads: dict[str, int]) -> Views:
    """Four workers of both phases, a the fastest in prefill and d the slowest: a and b are for prompts."""
    return Views([view(spec(n, prefill_us=100 * (i + 1)), **loads.get(n, {})) for i, n in enumerate("abcd")])


def test_the_faster_in_prefill_are_the_prompt_pool() -> None:
    """0.625 of 4 is 2 (half to even); tokens go to the one with the least memory booked."""
    fleet = four(a={"prefills": 1, "prefill_tokens": 500, "kv_tokens": 500}, c={"kv_tokens": 900})
    assert place(policy("splitwise"), request(), fleet) == ("b", "d")


def test_pending_tokens_count_prompts_and_one_per_decode() -> None:
    """500 prompt tokens weigh more than 400 decodes."""
    fleet = four(a={"prefills": 1, "prefill_tokens": 500}, b={"decodes": 400})
    assert place(policy("splitwise"), request(), fleet)[0] == "b"


def test_a_long_prompt_queue_takes_a_token_machine() -> None:
    """Above 8,192 pending tokens in both prompt machines: first the mixed one, then the least pending."""
    long = {"prefills": 9, "prefill_tokens": 8000, "kv_tokens": 8000}
    mixed = {"prefills": 1, "prefill_tokens": 700, "kv_tokens": 700}
    assert place(policy("splitwise"), request(), four(a=long, b=long))[0] == "c"
    assert place(policy("splitwise"), request(), four(a=long, b=long, d=mixed))[0] == "d"
    assert place(policy("splitwise"), request(150), four(a=long, b=long, d=mixed))[0] == "a"


def test_full_memory_takes_a_prompt_machine() -> None:
    """No room for 1,100 tokens in the token pool: decode goes to the prompt machine with the least booked."""
    views = [
        view(spec("a", PREFILL), prefills=1, prefill_tokens=10),
        view(spec("w", BOTH, kv_capacity_tokens=5000), kv_tokens=100),
        view(spec("d", DECODE, kv_capacity_tokens=2000), decodes=3, kv_tokens=1000),
    ]
    assert place(policy("splitwise", prompt_share=1.0), request(), Views(views)) == ("w", "w")
    room = view(spec("d", DECODE, kv_capacity_tokens=2200), decodes=3, kv_tokens=1000)
    assert place(policy("splitwise", prompt_share=1.0), request(), Views([*views[:2], room])) == ("w", "d")


def test_a_lone_worker_is_both_pools() -> None:
    """There is nothing to divide."""
    assert place(policy("splitwise"), request(), Views([view(spec("a"))])) == ("a", "a")


def pools(**loads: dict[str, int]) -> Views:
    """A fast and a slow prefill worker, and two for decode with a step of 10 and of 30 ms."""
    made = [
        spec("fast", PREFILL, prefill_us=100),
        spec("slow", PREFILL, prefill_us=400),
        spec("d0", DECODE, step_ms=30),
        spec("d1", DECODE, step_ms=10),
    ]
    return Views([view(each, **loads.get(each.id, {})) for each in made])


def test_mooncake_takes_the_earliest_first_token() -> None:
    """Idle: 0.1 against 0.4 s. With 4 x 1,000 tokens ahead: 0.5 against 0.4 s."""
    chosen = policy("mooncake")
    assert place(chosen, request(), pools()) == ("fast", "d1")
    assert costs(chosen, request(), pools()) == pytest.approx({"fast": 0.1})
    busy = {"prefills": 4, "prefill_tokens": 4000, "kv_tokens": 4000}
    assert costs(chosen, request(), pools(fast=busy)) == pytest.approx({"slow": 0.4})


def test_mooncake_counts_what_is_held() -> None:
    """8 of 10 blocks are held at the slow worker: 32 tokens x 400 us against 160 x 100 us."""
    chosen, first = policy("mooncake"), prompt(8, "first")
    place(chosen, first, Views([view(spec("slow", PREFILL)), view(spec("d", DECODE))]))
    prefilled(chosen, first)
    assert costs(chosen, prompt(10), pools()) == pytest.approx({"slow": 32 * 400e-6})


@pytest.mark.parametrize(
    ("slo", "refused"),
    [
        (ServiceLevel(), False),
        (ServiceLevel(ttft_s=0.11), False),
        (ServiceLevel(ttft_s=0.09), True),
        (ServiceLevel(tpot_s=0.011), False),
        (ServiceLevel(tpot_s=0.009), True),
    ],
)
def test_mooncake_rejects_early_what_would_be_late(slo: ServiceLevel, refused: bool) -> None:
    """First token in 0.1 s, 10 ms a token."""
    answer = policy("mooncake").plan(request(slo=slo), pools(), 0.0)
    assert isinstance(answer, Reject) == refused
    assert not isinstance(
        policy("mooncake", early_rejection="off").plan(request(slo=slo), pools(), 0.0), Reject
    )


def test_mooncake_sees_a_full_batch() -> None:
    """With 256 slots taken on d1 a second wave doubles its time, still below d0's: 20 against 30 ms."""
    crowd = {"decodes": 256, "kv_tokens": 0}
    assert place(policy("mooncake"), request(), pools(d1=crowd))[1] == "d1"
    assert place(policy("mooncake"), request(), pools(d1={"decodes": 768, "kv_tokens": 0}))[1] == "d0"
