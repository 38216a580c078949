"""Who is left out, for which reason, and whether the request waits or is refused."""

from __future__ import annotations

from random import Random

import pytest

from policies.filters import Screen
from policies.registry import build
from router.core.ports import LatencyModel
from router.errors import ConfigError
from router.model import BackendSpec, BackendState, BackendView, Decision, Reject, RoutePlan, Wait
from tests.policies.world import (
    DECODE,
    PREFILL,
    Models,
    Views,
    policy,
    reported,
    request,
    spec,
    view,
)

FULL = {"prefills": 32, "prefill_tokens": 32_000, "kv_tokens": 32_000}


def decided(*views: BackendView, **asked: int) -> RoutePlan | Wait | Reject:
    """What round robin says: it filters and does little else."""
    return policy("round_robin").plan(request(**asked), Views(views), 0.0)


def reasons(answer: RoutePlan | Wait | Reject) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Exclusions of a decision, by reason."""
    assert isinstance(answer.decision, Decision)
    return {each.reason: (each.count, each.backends) for each in answer.decision.exclusions}


@pytest.mark.parametrize(
    ("left_out", "reason"),
    [
        (view(spec("x"), BackendState.CORDONED), "state:cordoned"),
        (view(spec("x"), BackendState.DRAINING), "state:draining"),
        (view(spec("x"), BackendState.LOST), "state:lost"),
        (view(spec("x"), BackendState.CONNECTING), "state:connecting"),
        (view(spec("x", max_num_seqs=4), decodes=4), "slots_full"),
        (view(spec("x", kv_capacity_tokens=5000), kv_tokens=3950), "kv_full"),
        (reported(view(spec("x", kv_capacity_tokens=5000)), kv_used_tokens=3950), "kv_full"),
        (view(spec("x"), **FULL), "queue_full"),
    ],
)
def test_what_may_change_makes_the_request_wait(left_out: BackendView, reason: str) -> None:
    """Alone, such a backend makes the request wait; beside a free one it is left out of its phase."""
    alone = decided(left_out)
    assert isinstance(alone, Wait)
    assert alone.reason == reason
    assert reasons(alone) == {reason: (1, ("x",))}
    assert isinstance(decided(left_out, view(spec("free"))), RoutePlan)


@pytest.mark.parametrize(
    ("left_out", "reason"),
    [
        (spec("x", max_context_tokens=1099), "context_too_long"),
        (spec("x", kv_capacity_tokens=999), "kv_too_small"),
        (spec("x", frozenset()), "phase"),
    ],
)
def test_what_cannot_change_ends_the_request(left_out: object, reason: str) -> None:
    """1,000 prompt tokens and 100 new ones will never fit; the message says why and what to do."""
    alone = decided(view(left_out))  # type: ignore[arg-type]
    assert isinstance(alone, Reject)
    assert reasons(alone) == {reason: (1, ("x",))}
    assert "1000 prompt tokens and 100 new ones" in alone.reason
    assert reason in alone.reason


def test_the_last_token_that_fits_fits() -> None:
    """Limits are inclusive: 1,100 tokens in a context and a cache of 1,100."""
    tight = spec("x", max_context_tokens=1100, kv_capacity_tokens=1100, max_num_seqs=1)
    assert isinstance(decided(view(tight)), RoutePlan)


def test_a_fleet_that_lists_a_backend_wrongly_is_not_believed() -> None:
    """The spec says which models there are."""

    class Lying(Views):
        """Lists everything for every model."""

        def for_model(self, model: str) -> tuple[BackendView, ...]:
            return self.views

    answer = policy("round_robin").plan(request(), Lying([view(spec("x", models=("else",)))]), 0.0)
    assert isinstance(answer, Reject)
    assert reasons(answer) == {"model": (1, ("x",))}


def test_an_empty_fleet_refuses() -> None:
    """Nobody serves the model."""
    answer = decided()
    assert isinstance(answer, Reject)
    assert "there is none" in answer.reason


def test_incompatible_layouts_refuse_and_compatible_ones_that_are_busy_wait() -> None:
    """A pair needs a layout in common; `kv_accepts` of the consumer counts."""
    producer = view(spec("p", PREFILL, kv_layout="A"))
    stranger = view(spec("d", DECODE, kv_layout="B"))
    friend = view(spec("f", DECODE, kv_layout="B", kv_accepts=("A",), max_num_seqs=1), decodes=1)
    refused = decided(producer, stranger)
    assert isinstance(refused, Reject)
    assert reasons(refused) == {"kv_layout": (1, ("p",))}
    assert isinstance(decided(producer, stranger, friend), Wait)
    free = view(spec("f", DECODE, kv_layout="B", kv_accepts=("A",)))
    placed = decided(producer, stranger, free)
    assert isinstance(placed, RoutePlan)
    assert placed.decode == "f"


def test_prefill_needs_room_for_the_prompt_alone() -> None:
    """1,000 tokens of room take the prefill but not the decode."""
    small = view(spec("p", kv_capacity_tokens=1000))
    answer = decided(small, view(spec("d", DECODE)))
    assert isinstance(answer, RoutePlan)
    assert (answer.prefill, answer.decode) == ("p", "d")


def test_exclusions_name_five_of_many_and_the_sentence_counts_them() -> None:
    """Most frequent reason first."""
    cordoned = [view(spec(f"c{i}"), BackendState.CORDONED) for i in range(7)]
    answer = decided(*cordoned, view(spec("full"), **FULL), view(spec("ok")))
    assert isinstance(answer, RoutePlan)
    assert reasons(answer) == {
        "state:cordoned": (7, ("c0", "c1", "c2", "c3", "c4")),
        "queue_full": (1, ("full",)),
    }
    assert answer.decision.reason == (
        "1 of 9 backends can prefill, 2 can decode (7 state:cordoned, 1 queue_full); "
        f"ok -> {answer.decode}, whose turn it is"
    )


def test_the_prefill_queue_is_a_parameter() -> None:
    """With room for two prefills, the third waits."""
    chosen = policy("least_loaded", max_prefill_queue=2)
    queued = view(spec("x"), prefills=2, prefill_tokens=10, kv_tokens=10)
    assert isinstance(chosen.plan(request(), Views([queued]), 0.0), Wait)
    assert isinstance(
        policy("least_loaded", max_prefill_queue=3).plan(request(), Views([queued]), 0.0), RoutePlan
    )


def test_a_standing_follows_the_view() -> None:
    """A cached standing is used for the same view and never for a changed one."""
    screen = Screen(Models(), 32)
    first = view(spec("x"))
    changed = BackendView(first.spec, BackendState.CORDONED)
    standing = screen.standing(first)
    assert screen.standing(first) is standing
    assert screen.standing(changed).barred == "state:cordoned"
    assert screen.pass_over(request(), [changed], 1).prefill == []
    assert len(screen.pass_over(request(), [first], 1).prefill) == 1


def test_a_backend_without_a_model_of_its_latency_is_left_out() -> None:
    """A profile that nobody knows costs that backend the work, not the fleet the decision."""
    known = Models()

    def models(of: BackendSpec) -> LatencyModel:
        if of.id == "odd":
            raise ConfigError("no such profile")
        return known(of)

    chosen = build("predicted", {}, models, Random(1))
    answer = chosen.plan(request(), Views([view(spec("odd")), view(spec("ok"))]), 0.0)
    assert isinstance(answer, RoutePlan)
    assert (answer.prefill, reasons(answer)) == ("ok", {"profile": (1, ("odd",))})
    assert answer.decision.policy == "predicted"


def test_where_nothing_decodes_prompts_may_fill_a_step() -> None:
    """Five prompts of 1,000 leave room in a step of 8,192 tokens; beside decodes no more than four queue."""
    screen = Screen(None, 4, fills_steps=True)
    alone = view(spec("a"), prefills=5, prefill_tokens=5000, kv_tokens=5000)
    full = view(spec("a"), prefills=9, prefill_tokens=9000, kv_tokens=9000)
    beside = view(spec("a"), prefills=5, prefill_tokens=5000, decodes=1, kv_tokens=6000)
    assert [screen.standing(each).takes_prefill for each in (alone, full, beside)] == [True, False, False]
    assert not Screen(None, 4).standing(alone).takes_prefill
