"""round_robin and least_loaded: the two to beat."""

from __future__ import annotations

import pytest

from router.core.messages import BackendRemoved
from router.model import Placement, RoutePlan, StepParameters
from tests.policies.world import DECODE, PREFILL, Views, policy, reported, request, spec, view


def places(name: str, fleet: Views, times: int) -> list[tuple[str, str | None]]:
    """Where a few requests in a row go."""
    chosen, found = policy(name), []
    for now in range(times):
        plan = chosen.plan(request(), fleet, float(now))
        assert isinstance(plan, RoutePlan)
        found.append((plan.prefill, plan.decode))
    return found


def test_round_robin_takes_turns_in_each_phase() -> None:
    """Two prefill and three decode backends, each phase at its own pace."""
    fleet = Views(
        [view(spec(f"p{i}", PREFILL)) for i in range(2)] + [view(spec(f"d{i}", DECODE)) for i in range(3)]
    )
    assert places("round_robin", fleet, 6) == [
        ("p0", "d0"),
        ("p1", "d1"),
        ("p0", "d2"),
        ("p1", "d0"),
        ("p0", "d1"),
        ("p1", "d2"),
    ]


def test_round_robin_skips_who_cannot_and_keeps_the_turn() -> None:
    """The turn passes to the next in order of joining, not to a position in a shorter list."""
    chosen = policy("round_robin")
    names = ("a", "b", "c", "d")
    fleet = Views([view(spec(n)) for n in names])
    busy = Views([view(spec(n, max_num_seqs=1), decodes=n == "b", prefills=32 * (n == "b")) for n in names])
    turns = []
    for now, views in enumerate((fleet, busy, busy, busy)):
        plan = chosen.plan(request(), views, float(now))
        assert isinstance(plan, RoutePlan)
        turns.append(plan.prefill)
    assert turns == ["a", "c", "d", "a"]


def test_round_robin_pairs_what_fits() -> None:
    """Decode rotates over those that take over the chosen prefill's KV."""
    fleet = Views(
        [
            view(spec("pA", PREFILL, kv_layout="A")),
            view(spec("pB", PREFILL, kv_layout="B")),
            view(spec("dA", DECODE, kv_layout="A")),
            view(spec("dB", DECODE, kv_layout="B")),
        ]
    )
    assert places("round_robin", fleet, 4) == [("pA", "dA"), ("pB", "dB")] * 2


def test_round_robin_binds_in_turn() -> None:
    """Late binding rotates as well."""
    fleet = Views([view(spec("p", PREFILL)), view(spec("d0", DECODE)), view(spec("d1", DECODE))])
    chosen, found = policy("round_robin"), []
    for now in range(3):
        bound = chosen.bind_decode(request(), "p", fleet, float(now))
        assert isinstance(bound, Placement)
        found.append(bound.backend)
    assert found == ["d0", "d1", "d0"]
    chosen.observe(BackendRemoved("d0"), 3.0)


def test_least_loaded_counts_seconds_not_requests() -> None:
    """Three prefills of 0.1 s each drain sooner than one of 3 s."""
    fast = view(spec("fast"), prefills=3, prefill_tokens=3000, kv_tokens=3000)
    slow = view(spec("slow", prefill_us=3000), prefills=1, prefill_tokens=1000, kv_tokens=1000)
    (place,) = places("least_loaded", Views([slow, fast]), 1)
    assert place[0] == "fast"


def test_least_loaded_stays_when_nobody_is_better() -> None:
    """Equal drain times mean no handoff, even where the other joined first."""
    assert places("least_loaded", Views([view(spec("d", DECODE)), view(spec("b"))]), 1) == [("b", "b")]


def test_least_loaded_decode_drain_by_hand() -> None:
    """Two sequences with 200 tokens to come, and ours with 100: 300 / 3 steps of 10 + 3 x 1 ms."""
    step = StepParameters(base_s=0.010, per_sequence_s=0.001)
    busy = view(spec("d", DECODE, step=step), decodes=2, decode_tokens=200, kv_tokens=1000)
    plan = policy("least_loaded").plan(request(), Views([view(spec("p", PREFILL)), busy]), 0.0)
    assert isinstance(plan, RoutePlan)
    parts = plan.decision.candidates[0].parts
    assert parts == pytest.approx({"prefill_drain_s": 0.1, "decode_drain_s": 100 * 0.013})


def test_least_loaded_sees_what_other_routers_sent() -> None:
    """Three sequences that the snapshot knows and the ledger does not are taken for 256 tokens each."""
    seen = reported(view(spec("d", DECODE)), running=3, kv_used_tokens=900)
    plan = policy("least_loaded").plan(request(), Views([view(spec("p", PREFILL)), seen]), 0.0)
    assert isinstance(plan, RoutePlan)
    drain = plan.decision.candidates[0].parts["decode_drain_s"]
    assert drain == pytest.approx((3 * 256 + 100) / 4 * 0.010)


def test_least_loaded_does_not_take_a_slow_backend_for_an_empty_one() -> None:
    """Both idle: the request's own work decides."""
    fleet = Views([view(spec("slow", step_ms=50, prefill_us=900)), view(spec("fast"))])
    assert places("least_loaded", fleet, 1) == [("fast", "fast")]


def test_least_loaded_binds_where_decode_drains_soonest() -> None:
    """Late binding goes by decode drain time alone."""
    fleet = Views(
        [
            view(spec("p", PREFILL)),
            view(spec("d0", DECODE), decodes=4, decode_tokens=4000, kv_tokens=9000),
            view(spec("d1", DECODE)),
        ]
    )
    bound = policy("least_loaded").bind_decode(request(), "p", fleet, 0.0)
    assert isinstance(bound, Placement)
    assert bound.backend == "d1"
