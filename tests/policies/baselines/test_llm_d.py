"""llm-d's scorers, filter and decider, by hand."""

from __future__ import annotations

import pytest

from router.model import RoutePlan
from tests.policies.baselines.scenes import place, prompt
from tests.policies.world import BOTH, DECODE, PREFILL, Views, policy, reported, spec, view


def scores(chosen: object, asked: object, fleet: Views) -> dict[str, float]:
    """Score of each decode endpoint."""
    plan = chosen.plan(asked, fleet, 0.0)  # type: ignore[attr-defined]
    assert isinstance(plan, RoutePlan)
    return {each.decode: each.score for each in plan.decision.candidates}


def test_scores_are_weighted_sums() -> None:
    """Waiting 0, 1 and 4; KV 0, 0.5 and 1; prefix 0, 1 and 0; weights 2, 2 and 3."""
    chosen = policy("llm_d")
    place(chosen, prompt(10, "first"), Views([view(spec("b"))]))
    loads = {"a": (0, 0), "b": (1, 500), "c": (4, 1000)}
    fleet = Views(
        [
            reported(view(spec(n, kv_capacity_tokens=1000)), waiting=w, kv_used_tokens=kv)
            for n, (w, kv) in loads.items()
        ]
    )
    assert scores(chosen, prompt(10), fleet) == pytest.approx(
        {"b": 2 * 0.75 + 2 * 0.5 + 3 * 1.0, "a": 2 + 2 + 0.0, "c": 0.0}
    )


def test_equal_queues_score_one() -> None:
    """The min-max scorer gives all of equal candidates the best score."""
    fleet = Views([reported(view(spec(n)), waiting=7) for n in "ab"])
    assert scores(policy("llm_d"), prompt(10), fleet) == pytest.approx({"a": 4.0, "b": 4.0})


def test_the_decider_splits_from_sixteen_uncached_tokens() -> None:
    """10 of 11 blocks cached leave 16: split. All cached: the decode worker prefills itself."""
    pools = Views([view(spec("p", PREFILL)), view(spec("w", BOTH))])
    for held, where in ((10, ("p", "w")), (11, ("w", "w"))):
        chosen = policy("llm_d")
        place(chosen, prompt(held, "first"), Views([view(spec("w", BOTH))]))
        assert place(chosen, prompt(11), pools) == where
    assert place(policy("llm_d", non_cached_tokens=0), prompt(11), pools) == ("w", "w")


def test_a_decode_only_endpoint_needs_a_prefill_worker() -> None:
    """There the decider has nothing to decide."""
    fleet = Views([view(spec("w", PREFILL)), view(spec("d", DECODE))])
    assert place(policy("llm_d", non_cached_tokens=0), prompt(4), fleet) == ("w", "d")


def test_sticky_until_saturated() -> None:
    """Sticky while 18 s x 15,928 tokens/s = 286,704 tokens more are in flight there; then least tokens."""
    for tokens, where in ((286_000, "a"), (287_000, "b")):
        chosen = policy("llm_d", strategy="sticky")
        place(chosen, prompt(10, "first"), Views([view(spec("a"))]))
        fleet = Views([view(spec("a"), decodes=9, kv_tokens=tokens), view(spec("b"))])
        assert place(chosen, prompt(10), fleet)[0] == where


def test_sticky_needs_four_fifths_of_the_prompt() -> None:
    """8 of 10 blocks stick; 7 of 10 do not, and the least tokens win."""
    fleet = Views([view(spec("a"), decodes=1, kv_tokens=1000), view(spec("b"))])
    for held, where in ((8, "a"), (7, "b")):
        chosen = policy("llm_d", strategy="sticky")
        place(chosen, prompt(held, "first"), Views([view(spec("a"))]))
        assert place(chosen, prompt(10), fleet)[0] == where
