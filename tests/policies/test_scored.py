"""Scorers by hand, pickers by their statistics, and the two phases together."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest

from policies.filters import Screen
from policies.pickers import PICKERS
from policies.scorers import SCORERS, Scene, relative
from router.model import BackendView, Phase, Placement, PowerParameters, RoutePlan
from tests.policies.world import DECODE, PREFILL, Models, Views, policy, request, spec, view


def scores(name: str, phase: Phase, *views: BackendView, producer: str = "", **asked: object) -> list[float]:
    """The scores of some backends, in order."""
    screen = Screen(Models(), 32)
    standings = [screen.standing(each, i) for i, each in enumerate(views)]
    chosen = next((s for s in standings if s.id == producer), None)
    return SCORERS[name](Scene(request(**asked), phase, 32, chosen), standings)  # type: ignore[arg-type]


def test_queue_is_the_free_share() -> None:
    """8 of 32 prefills leave three quarters; 64 of 256 slots as well."""
    busy = view(spec("x"), prefills=8, decodes=64)
    assert scores("queue", Phase.PREFILL, busy, view(spec("y"))) == [0.75, 1.0]
    assert scores("queue", Phase.DECODE, busy, view(spec("y"))) == [0.75, 1.0]


def test_kv_room_counts_the_request_in() -> None:
    """Of 10,000 tokens 4,000 are used and 1,000 (or 1,100 with the output) are asked for."""
    used = view(spec("x", kv_capacity_tokens=10_000), kv_tokens=4000)
    assert scores("kv_room", Phase.PREFILL, used) == pytest.approx([0.5])
    assert scores("kv_room", Phase.DECODE, used) == pytest.approx([0.49])


def test_times_are_relative_to_the_best() -> None:
    """Half as fast scores half."""
    pair = view(spec("x")), view(spec("y", step_ms=20, prefill_us=200))
    for name in ("speed", "drain_time"):
        for phase in Phase:
            assert scores(name, phase, *pair) == pytest.approx([1.0, 0.5])


def test_price_and_energy_follow_time_and_rate() -> None:
    """Twice the price, or twice the watts, scores half; what is free scores 1 and the others 0."""
    dear = spec("x", usd_per_hour=4.0, power=PowerParameters(idle_w=200.0))
    cheap = spec("y", usd_per_hour=2.0, power=PowerParameters(idle_w=100.0))
    for phase in Phase:
        assert scores("cost", phase, view(dear), view(cheap)) == pytest.approx([0.5, 1.0])
        assert scores("energy", phase, view(dear), view(cheap)) == pytest.approx([0.5, 1.0])
        assert scores("cost", phase, view(dear), view(spec("free"))) == [0.0, 1.0]


def test_energy_is_capped_power_times_time() -> None:
    """A cap of 100 W holds however many joules the bytes would take."""
    hungry = spec("x", power=PowerParameters(idle_w=50.0, joule_per_byte=1.0, weight_bytes=1e9, cap_w=100.0))
    modest = spec("y", power=PowerParameters(idle_w=50.0))
    assert scores("energy", Phase.PREFILL, view(hungry), view(modest)) == pytest.approx([0.5, 1.0])


def test_same_backend_avoids_the_handoff() -> None:
    """For prefill it prefers those that can decode too."""
    both, decoder, prefiller = view(spec("b")), view(spec("d", DECODE)), view(spec("p", PREFILL))
    assert scores("same_backend", Phase.DECODE, both, decoder, producer="b") == [1.0, 0.0]
    assert scores("same_backend", Phase.PREFILL, both, prefiller) == [1.0, 0.0]


def test_sessions_stick_and_only_those_of_a_lost_backend_move() -> None:
    """Rendezvous hashing over five backends, then over four."""
    views = [view(spec(f"b{i}")) for i in range(5)]
    homes = {}
    for n in range(400):
        key = f"session-{n}"
        homes[key] = scores("session", Phase.DECODE, *views, session_key=key).index(1.0)
    assert min(Counter(homes.values()).values()) > 40  # 80 expected
    for key, home in homes.items():
        fewer = scores("session", Phase.DECODE, *views[:4], session_key=key)
        assert sum(fewer) == 1.0
        assert home == 4 or fewer[home] == 1.0
    assert scores("session", Phase.DECODE, *views) == [0.0] * 5


def test_values_that_are_none_score_nothing() -> None:
    """NaN, infinite and negative values lose; zero is best."""
    assert relative([2.0, math.nan, math.inf, -1.0, 4.0]) == [1.0, 0.0, 0.0, 0.0, 0.5]
    assert relative([0.0, 3.0]) == [1.0, 0.0]
    assert relative([]) == []


def test_max_takes_the_first_of_equals_and_ignores_nonsense() -> None:
    """Ties go by order of joining; NaN counts as 0."""
    rng = Random(1)
    assert PICKERS["max"]([0.5, 0.9, 0.9, math.nan], rng, 1.0) == 1
    assert PICKERS["max"]([math.nan, math.nan], rng, 1.0) == 0


def test_power_of_two_never_takes_the_worst_and_prefers_the_better() -> None:
    """Of n candidates the one of rank r is drawn with probability 2 (n - r) / (n (n - 1))."""
    rng, drawn = Random(2), Counter[int]()
    for _ in range(6000):
        drawn[PICKERS["power_of_two"]([0.1, 0.4, 0.3, 0.2], rng, 1.0)] += 1
    assert 0 not in drawn
    assert [drawn[i] / 6000 for i in (1, 2, 3)] == pytest.approx([3 / 6, 2 / 6, 1 / 6], abs=0.03)
    assert PICKERS["power_of_two"]([0.3], rng, 1.0) == 0


def test_softmax_draws_by_exponent() -> None:
    """Scores one temperature apart are drawn e to 1; a low temperature is the maximum."""
    rng, drawn = Random(3), Counter[int]()
    for _ in range(6000):
        drawn[PICKERS["softmax"]([0.2, 0.1], rng, 0.1)] += 1
    assert drawn[0] / drawn[1] == pytest.approx(math.e, rel=0.12)
    assert {PICKERS["softmax"]([0.2, 0.9, math.nan], rng, 1e-3) for _ in range(50)} == {1}


def test_weights_decide_and_parts_show_why() -> None:
    """The fast backend wins by speed, the empty one by queue; the record holds every score."""
    fleet = Views(
        [view(spec("fast"), prefills=16, decodes=8), view(spec("empty", step_ms=40, prefill_us=400))]
    )
    by_speed = policy("scored", prefill={"weights": {"speed": 3, "queue": 1}})
    by_queue = policy("scored", prefill={"weights": {"speed": 1, "queue": 3}})
    one, two = by_speed.plan(request(), fleet, 0.0), by_queue.plan(request(), fleet, 0.0)
    assert isinstance(one, RoutePlan)
    assert isinstance(two, RoutePlan)
    assert (one.prefill, two.prefill) == ("fast", "empty")
    parts = one.decision.candidates[0].parts
    assert parts["prefill.speed"] == 1.0
    assert parts["prefill.queue"] == 0.5
    decode = {name for name in parts if name.startswith("decode.")}
    assert decode == {"decode.drain_time", "decode.queue", "decode.kv_room", "decode.same_backend"}


def test_decode_follows_the_layout_of_the_prefill() -> None:
    """A decoder with the best score but another layout is no candidate."""
    fleet = Views(
        [
            view(spec("p", PREFILL, kv_layout="A")),
            view(spec("fast", DECODE, step_ms=1, kv_layout="B")),
            view(spec("slow", DECODE, step_ms=50, kv_layout="A")),
        ]
    )
    plan = policy("scored").plan(request(), fleet, 0.0)
    assert isinstance(plan, RoutePlan)
    assert (plan.prefill, plan.decode) == ("p", "slow")


def test_binding_scores_decode_alone() -> None:
    """With the KV at `p`, the faster decoder wins."""
    fleet = Views([view(spec("p", PREFILL)), view(spec("a", DECODE, step_ms=9)), view(spec("b", DECODE))])
    bound = policy("scored").bind_decode(request(), "p", fleet, 0.0)
    assert isinstance(bound, Placement)
    assert bound.backend == "a"
    assert 0 <= bound.decision.candidates[0].score <= 1


def test_a_random_picker_spreads_equals_and_records_the_picked_one_first() -> None:
    """Power of two over four equals uses them all but the one that loses every tie."""
    fleet = Views([view(spec(f"b{i}")) for i in range(4)])
    rule = {"picker": "softmax", "weights": {"queue": 1}}
    chosen, used = policy("scored", prefill=rule, decode=rule), set()
    for now in range(60):
        plan = chosen.plan(request(), fleet, float(now))
        assert isinstance(plan, RoutePlan)
        first = plan.decision.candidates[0]
        assert (first.prefill, first.decode) == (plan.prefill, plan.decode)
        used.add(plan.prefill)
    assert used == {"b0", "b1", "b2", "b3"}
