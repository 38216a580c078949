"""The books of who is where follow the facts, and cost a dry run nothing."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest

from policies.residents import FRESH_S, MAX_RESIDENTS, Residents
from router.core.messages import (
    BackendLost,
    DecodeDone,
    FirstToken,
    PhaseFailed,
    PrefillDone,
    RequestCancelled,
)
from router.errors import Reason
from router.model import FinishReason, Phase, PhaseCost, ServiceLevel
from tests.policies.test_stakes import standing
from tests.policies.world import request, spec, view

CHAT = ServiceLevel(ttft_s=1.0, tpot_s=0.05)
GPU = standing(view(spec("gpu"), decodes=1, decode_tokens=20, kv_tokens=200))


def moved_in(books: Residents, name: str = "r", slo: ServiceLevel = CHAT, **more: object) -> None:
    """A request on `gpu` for both phases: first token in 0.1 s, an answer of 11 tokens."""
    asked = replace(request(slo=slo), id=name, **more)  # type: ignore[arg-type]
    books.moves_in(asked, "gpu", "gpu", (11,), 0.1, 1.0)


def test_a_newcomer_counts_at_once() -> None:
    """It can bear 0.9 s before its first token, and 0.4 s after it."""
    books = Residents()
    assert books.at(0.0).slacks(GPU).bears_any_prefill
    moved_in(books)
    assert books.at(0.0).slacks(GPU).stalled(0.45) == pytest.approx(1.0)
    books.disturbed("gpu", 0.3, 0.0)
    assert books.at(0.01).slacks(GPU).stalled(0.15) == pytest.approx(1.0)  # 0.1 s of its 0.4 s is left
    assert books.prefills("gpu", 0.0) == (pytest.approx(0.5), pytest.approx(0.3))


def test_who_has_no_objective_is_not_on_the_books() -> None:
    """Nothing it could lose."""
    books = Residents()
    moved_in(books, slo=ServiceLevel())
    assert len(books) == 0


@pytest.mark.parametrize(
    "end",
    [
        DecodeDone("r", 1, PhaseCost(), 11, FinishReason.STOP),
        RequestCancelled("r"),
        PhaseFailed("r", 1, Phase.DECODE, "gpu", Reason.BACKEND_STALLED),
        BackendLost("gpu"),
    ],
)
def test_whoever_ends_leaves_the_books(end: object) -> None:
    """By any of the facts that say so."""
    books = Residents()
    moved_in(books)
    books.observe(end, 0.5)
    assert len(books) == 0
    assert books.at(0.5 + FRESH_S).slacks(GPU).bears_any_prefill


def test_after_its_deadline_nobody_counts() -> None:
    """A request that ran out of time is ended by a timer, of which no fact speaks."""
    books = Residents()
    moved_in(books, deadline=0.4)
    assert not books.at(0.2).slacks(GPU).bears_any_prefill
    assert books.at(0.5).slacks(GPU).bears_any_prefill
    assert len(books) == 0


def test_a_decode_that_is_bound_late_joins_the_books_there() -> None:
    """Until then it can only lose its first token."""
    books = Residents()
    books.moves_in(request(slo=CHAT), "p", None, (11,), 0.1, 1.0)
    lpu = standing(view(spec("lpu"), decodes=1, decode_tokens=20, kv_tokens=200))
    assert books.at(0.0).slacks(lpu).bears_any_prefill
    books.observe(PrefillDone("r", 1, PhaseCost()), 0.1)
    books.decodes_at("r", "lpu")
    assert books.at(0.1).slacks(lpu).stalled(0.45) > 0


def test_the_first_token_ends_the_wait_for_it() -> None:
    """After it only the tokens can be lost."""
    books = Residents()
    moved_in(books, slo=ServiceLevel(ttft_s=1.0))
    books.observe(PrefillDone("r", 1, PhaseCost()), 0.3)
    books.observe(FirstToken("r", 1), 0.3)
    assert books.at(1.0).slacks(GPU).bears_any_prefill


def test_a_copy_for_a_dry_run_reads_and_writes_nothing() -> None:
    """The slacks of the original are as they were."""
    books = Residents()
    moved_in(books)
    before = repr(books.at(0.0).slacks(GPU))
    copied = copy.deepcopy(books)
    assert repr(copied.at(0.0).slacks(GPU)) == before
    copied.disturbed("gpu", 5.0, 0.0)
    copied.slowed("gpu", 5.0)
    moved_in(copied, "s")
    assert not copied.at(1e3).slacks(GPU).stall.taken_s
    assert repr(books.at(0.0).slacks(GPU)) == before
    assert len(books) == 1


def test_the_books_are_bounded() -> None:
    """One more than fit pushes the oldest out."""
    books = Residents()
    for number in range(MAX_RESIDENTS + 1):
        moved_in(books, str(number))
    assert len(books) == MAX_RESIDENTS
    books.moves_out("0")
    assert len(books) == MAX_RESIDENTS
    assert math.isfinite(books.prefills("gpu", 0.0)[0])
