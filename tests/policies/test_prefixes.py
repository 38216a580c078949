"""What a backend is believed to hold of a prompt, what that makes a prefill cost, and early rejection."""

from __future__ import annotations

import copy

import pytest

from policies.filters import Screen
from policies.learned import CachedShare
from policies.prefixes import PrefixIndex
from policies.standing import Standing
from router.core.messages import BackendLost, PrefillDone, RequestCancelled
from router.core.ports import Policy
from router.model import PhaseCost, Request, RoutePlan
from tests.policies.world import DECODE, MODEL, PREFILL, Views, policy, request, spec, view


def prompt(blocks: int, first: int = 0, name: str = "r", **more: object) -> Request:
    """A prompt of full blocks of 16 tokens; equal `first` means an equal beginning."""
    hashes = tuple(range(first + 1, first + blocks + 1))
    return Request(name, MODEL, 16 * blocks, 10, prefix_hashes=hashes, **more)  # type: ignore[arg-type]


def standing(name: str = "a", blocks: int = 100) -> Standing:
    """A backend with room for so many blocks."""
    return Screen(None, 32).standing(view(spec(name, kv_capacity_tokens=16 * blocks)))


@pytest.mark.parametrize("held", range(9))
def test_the_end_of_what_is_held_is_found(held: int) -> None:
    """Any number of leading blocks of eight, and of a longer prompt the same."""
    index, s = PrefixIndex(), standing()
    index.store(s, prompt(held).prefix_hashes, 0.0)
    assert index.blocks(s, prompt(8), 1.0) == held
    assert index.tokens(s, prompt(30), 1.0) == 16 * held
    assert index.blocks(s, prompt(8, first=500), 1.0) == 0
    assert index.blocks(standing("b"), prompt(8), 1.0) == 0


def test_the_least_recent_goes_first_and_of_a_prompt_its_end() -> None:
    """Room for ten: eight and six leave the six and the first four of the eight; touching keeps."""
    index, s = PrefixIndex(), standing(blocks=10)
    index.store(s, prompt(8).prefix_hashes, 0.0)
    index.store(s, prompt(6, first=100).prefix_hashes, 1.0)
    assert (index.blocks(s, prompt(8), 2.0), index.blocks(s, prompt(6, first=100), 2.0)) == (4, 6)
    index.store(s, prompt(4).prefix_hashes, 3.0)
    index.store(s, prompt(6, first=200).prefix_hashes, 4.0)
    assert (index.blocks(s, prompt(8), 5.0), index.blocks(s, prompt(6, first=100), 5.0)) == (4, 0)


def test_a_copy_learns_nothing_and_a_departure_forgets_all() -> None:
    """A dry run must not change what is believed."""
    index, s = PrefixIndex(ttl_s=10.0), standing()
    index.store(s, prompt(4).prefix_hashes, 0.0)
    dry = copy.deepcopy(index)
    dry.store(s, prompt(8).prefix_hashes, 0.0)
    dry.forget("a")
    assert index.blocks(s, prompt(8), 10.0) == dry.blocks(s, prompt(8), 10.0) == 4
    assert index.blocks(s, prompt(8), 10.1) == 0
    index.forget("a")
    assert index.size(s) == 0


def places(chosen: Policy, fleet: Views, asked: Request, now: float = 0.0) -> RoutePlan:
    """The plan of a request that has a place."""
    plan = chosen.plan(asked, fleet, now)
    assert isinstance(plan, RoutePlan)
    return plan


def test_a_held_prefix_makes_a_slower_backend_the_earlier() -> None:
    """160 tokens at 100 us are 16 ms; 16 of them at 300 us are 4.8 ms."""
    chosen = policy("predicted")
    fast, slow = view(spec("fast")), view(spec("slow", prefill_us=300))
    assert places(chosen, Views([slow]), prompt(9)).prefill == "slow"
    plan = places(chosen, Views([fast, slow]), prompt(10))
    assert plan.prefill == "slow"
    assert plan.decision.candidates[0].parts["prefill_s"] == pytest.approx(16 * 300e-6)
    chosen.observe(BackendLost("slow"), 1.0)
    assert places(chosen, Views([fast, slow]), prompt(10)).prefill == "fast"


def test_the_last_token_is_always_computed() -> None:
    """A prompt that is held whole still takes a token's time."""
    chosen, fleet = policy("predicted"), Views([view(spec("a"))])
    places(chosen, fleet, prompt(10))
    again = places(chosen, fleet, prompt(10, name="again"))
    assert again.decision.candidates[0].parts["prefill_s"] == pytest.approx(100e-6)


def test_the_share_that_is_cached_is_learned() -> None:
    """With a memory of 2: 0.5 of 0.8 is 0.4, then half way to 0; nonsense and strangers change nothing."""
    share = CachedShare(memory=2)
    for name, cached in (("x", 800), ("y", 0), ("z", 5000)):
        share.wait_for(Request(name, MODEL, 1000, 1), "a")
        share.prefilled(name, cached)
        share.prefilled("stranger", 10)
    assert share.uncached("a") == pytest.approx(0.8)
    assert share.uncached("b") == 1.0
    share.wait_for(Request("gone", MODEL, 1000, 1), "a")
    share.forget_request("gone")
    share.prefilled("gone", 1000)
    assert share.uncached("a") == pytest.approx(0.8)
    share.forget("a")
    assert share.uncached("a") == 1.0


def test_a_queue_of_cached_prompts_is_short() -> None:
    """1,000 tokens ahead of which half were cached of late: (500 + 1,000) x 100 us instead of 2,000."""
    chosen = policy("predicted", length_memory=1)
    idle, busy = view(spec("a")), view(spec("a"), prefills=1, prefill_tokens=1000, kv_tokens=1000)
    before = places(chosen, Views([busy]), request()).decision.candidates[0].parts["ttft_s"]
    first = prompt(100, name="first")
    places(chosen, Views([idle]), first)
    chosen.observe(PrefillDone("first", 1, PhaseCost(), cached_tokens=800), 0.0)
    fresh = view(spec("a"), prefills=1, prefill_tokens=1000, kv_tokens=1000)
    after = places(chosen, Views([fresh]), request()).decision.candidates[0].parts["ttft_s"]
    assert (before, after) == pytest.approx((0.2, 0.15))
    chosen.observe(RequestCancelled("first"), 1.0)


def test_a_pair_may_have_its_prefix_at_the_producer() -> None:
    """Of two equal prefill backends the one that holds the prompt, decode being elsewhere anyway."""
    chosen = policy("predicted")
    fleet = Views([view(spec("p0", PREFILL)), view(spec("p1", PREFILL)), view(spec("d", DECODE))])
    held = Views([view(spec("p1", PREFILL)), view(spec("d", DECODE))])
    places(chosen, held, prompt(9))
    plan = places(chosen, fleet, prompt(10))
    assert (plan.prefill, plan.decode) == ("p1", "d")
