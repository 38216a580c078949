"""What arrived of late, counted by kind, in bounded memory."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from policies.window import MAX_KINDS, MAX_MODELS, MAX_WAITED_FOR, SLOTS, HitShare, Window, kind_of
from router.model import ServiceLevel
from tests.policies.world import request


def filled(*times: float, length_s: float = 8.0) -> Window:
    """A window of slots of 1 s with equal requests at these times."""
    window = Window(length_s)
    for at in times:
        window.arrived(request(1000, 300), 100, 0.25, at)
    return window


def test_like_requests_are_counted_together() -> None:
    """Three of one kind: rates and means come out of the sums."""
    window = filled(0.0, 1.5)
    window.arrived(request(600, 300), 70, 0.0, 3.0)
    span_s, (found,) = window.seen(4.0)
    assert span_s == 4.0
    assert (found.count, found.prompt_tokens, found.output_tokens) == (3, 2600, 270)
    assert (found.mean_prompt, found.mean_output) == (867, 90)
    assert found.cached_tokens == pytest.approx(500.0)
    assert found.mean_cached == 167


def test_kinds_differ_by_model_class_objectives_and_powers_of_two() -> None:
    """513 and 1,023 tokens are alike, 1,024 are not."""
    one = request(513, 300, workload_class="chat", slo=ServiceLevel(ttft_s=1.0))
    assert kind_of(one, 100) == kind_of(replace(one, prompt_tokens=1023), 127)
    others = [
        replace(one, prompt_tokens=1024),
        replace(one, model="other"),
        replace(one, workload_class="code"),
        replace(one, slo=ServiceLevel(ttft_s=2.0)),
    ]
    kinds = {kind_of(one, 100), kind_of(one, 128), *(kind_of(other, 100) for other in others)}
    assert len(kinds) == 6


def test_old_slots_are_dropped_and_looking_changes_nothing() -> None:
    """A window of 8 s: what came at 0 counts at 8, give or take a slot, and no more at 9."""
    window = filled(0.0, 5.0, 6.0)
    assert window.seen(8.5)[1][0].count == 3
    assert window.seen(9.5)[1][0].count == 2
    assert window.seen(9.5)[0] == 4.5
    assert window.seen(8.5)[1][0].count == 3
    assert window.seen(100.0) == (0.0, [])


def test_the_most_frequent_kind_comes_first() -> None:
    """Classes beyond the most of a problem are the rare ones."""
    window = filled(0.0, 0.1, 0.2)
    window.arrived(request(10, 10), 10, 0.0, 0.3)
    assert [one.count for one in window.seen(1.0)[1]] == [3, 1]


def test_clients_cannot_fill_the_memory() -> None:
    """Kinds beyond the most are one kind per model; models beyond the most are not counted; slots are few."""
    window = Window(8.0)
    for i in range(4 * MAX_KINDS):
        window.arrived(request(workload_class=f"c{i}"), 10, 0.0, 0.0)
    found = window.seen(1.0)[1]
    assert len(found) == MAX_KINDS + 1
    assert sum(one.count for one in found) == 4 * MAX_KINDS
    for i in range(4 * MAX_MODELS):
        window.arrived(replace(request(), model=f"m{i}"), 10, 0.0, 0.0)
    assert len(window.seen(1.0)[1]) == MAX_KINDS + MAX_MODELS
    for second in range(100):
        window.arrived(request(), 10, 0.0, float(second))
    assert len(window._slots) <= SLOTS + 1


def test_a_copy_counts_for_itself() -> None:
    """A dry run must not count."""
    window = filled(0.0)
    copy.deepcopy(window).arrived(request(), 100, 0.0, 0.5)
    assert window.seen(1.0)[1][0].count == 1


def test_hits_are_learned_per_class() -> None:
    """Halves of 400 prompts found cached make about a half; another class knows nothing of it."""
    hits = HitShare(16)
    for i in range(400):
        one = replace(request(1000, workload_class="agents"), id=str(i))
        hits.wait_for(one)
        hits.prefilled(one.id, 500)
    assert hits.expect(request(workload_class="agents")) == pytest.approx(0.5, abs=0.01)
    assert hits.expect(request(workload_class="chat")) == 0.0


@pytest.mark.parametrize("cached", [-1.0, 1001.0, float("nan")])
def test_impossible_hits_teach_nothing(cached: float) -> None:
    """Workers report these counts."""
    hits = HitShare(16)
    hits.wait_for(request(1000))
    hits.prefilled("r", cached)
    assert hits.expect(request()) == 0.0


def test_prompts_that_never_end_are_forgotten() -> None:
    """Memory is bounded, and a request that failed is dropped at once."""
    hits = HitShare(16)
    for i in range(MAX_WAITED_FOR + 10):
        hits.wait_for(replace(request(), id=str(i)))
    assert len(hits._prompts) == MAX_WAITED_FOR
    hits.forget(str(MAX_WAITED_FOR))
    assert len(hits._prompts) == MAX_WAITED_FOR - 1
