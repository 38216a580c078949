"""The verifier finds lost, doubled and wrong tokens, and only those."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.load.requests import Answer
from router.load.verify import Integrity, Transcript

ANSWER = Answer(prompt_fp=11, seed=5, tokens=40)
IDS = ANSWER.ids(0, 40)


def transcript(*runs: tuple[int, list[int]]) -> Transcript:
    """What arrives, run by run."""
    made = Transcript()
    for first, ids in runs:
        made.add(first, ids)
    return made


def test_a_perfect_answer_is_clean() -> None:
    """In any chunks."""
    assert transcript((0, IDS[:1]), (1, IDS[1:7]), (7, IDS[7:])).check(ANSWER, 40) == Integrity()


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([(0, IDS[:39])], Integrity(lost=1)),
        ([(1, IDS[1:])], Integrity(lost=1)),
        ([(0, IDS[:10]), (15, IDS[15:])], Integrity(lost=5)),
        ([], Integrity(lost=40)),
        ([(0, IDS), (39, IDS[39:])], Integrity(duplicated=1)),
        ([(0, IDS[:20]), (10, IDS[10:])], Integrity(duplicated=10)),
        ([(0, IDS), (0, IDS)], Integrity(duplicated=40)),
        ([(0, [*IDS[:5], IDS[5] ^ 1, *IDS[6:]])], Integrity(mismatched=1)),
        ([(0, [*IDS, 1, 2])], Integrity(mismatched=2)),
        ([(0, IDS[1:])], None),
    ],
)
def test_each_fault_is_counted(runs: list[tuple[int, list[int]]], expected: Integrity | None) -> None:
    """By kind and number; a shift of all values by one shows as mismatches."""
    integrity = transcript(*runs).check(ANSWER, 40)
    if expected is None:
        assert integrity.lost == 1 and integrity.mismatched >= 38
    else:
        assert integrity == expected


def test_a_late_token_fills_its_gap() -> None:
    """Late is not lost, and not doubled."""
    late = transcript((0, IDS[:10]), (12, IDS[12:]), (10, IDS[10:12]))
    assert late.check(ANSWER, 40) == Integrity()
    assert len(late) == 40


def test_foreign_tokens_mismatch() -> None:
    """Another prompt, or another seed, gives other tokens."""
    assert transcript((0, Answer(12, 5, 40).ids(0, 40))).check(ANSWER, 40).mismatched >= 39
    assert transcript((0, Answer(11, 6, 40).ids(0, 40))).check(ANSWER, 40).mismatched >= 39


def test_a_failed_request_owes_only_what_was_claimed() -> None:
    """Tokens the router says it delivered must be there; the rest of the answer is not lost."""
    cut = transcript((0, IDS[:10]))
    assert cut.check(ANSWER, 10) == Integrity()
    assert cut.check(ANSWER, None) == Integrity()
    assert cut.check(ANSWER, 13) == Integrity(lost=3)


def test_without_an_answer_values_are_not_judged() -> None:
    """Real engines: counts and indices only."""
    assert transcript((0, [1, 2, 3])).check(None, 3) == Integrity()
    assert transcript((0, [1, 2]), (1, [2, 3])).check(None, 4) == Integrity(lost=1, duplicated=1)


def test_an_absurd_index_costs_no_memory() -> None:
    """A gap is bounded."""
    absurd = transcript((4_000_000_000, [1]))
    assert absurd.check(ANSWER, 40).lost == 1 << 20


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 39), max_size=40), st.randoms(use_true_random=False))
def test_tokens_in_any_order_lose_only_what_never_came(kept: set[int], random: object) -> None:
    """One token a run, shuffled: `lost` is exactly the number that was left out."""
    order = sorted(kept)
    random.shuffle(order)  # type: ignore[attr-defined]
    came = transcript(*((index, [IDS[index]]) for index in order))
    assert came.check(ANSWER, 40) == Integrity(lost=40 - len(kept))
