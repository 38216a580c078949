"""Prices against numbers worked out by hand: x / (1 - x)^2 at the load x that the optimum has."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from router.model import LinkParameters, PowerParameters
from router.plan.prices import STEP, load_at, prices_of
from router.prices import PricedClass, PricedGroup, PricedUse, PriceProblem, Prices
from tests.policies.world import DECODE, MODEL, PREFILL, spec

PIECE = STEP**0.5 - 1.0 + 0.01
"""Prices are those of pieces: so far they may be from those of the curve."""
RICH = 1e6


def group(name: str, units: int = 1, **more: Any) -> PricedGroup:
    """Backends that no link, KV room or power limits."""
    made = {"link": LinkParameters(), "kv_capacity_tokens": 1 << 40, **more}
    return PricedGroup(name, spec(name, **made), units)


def kind(rate: float, *uses: PricedUse, worth_s: float = RICH) -> PricedClass:
    return PricedClass(MODEL, rate, worth_s, uses)


def prompts(device_s: float) -> PricedUse:
    """A request whose answer costs nothing."""
    return PricedUse(prefill_s=device_s)


def solve(classes: list[PricedClass], *groups: PricedGroup, **more: Any) -> Prices:
    return prices_of(PriceProblem(7.0, tuple(classes), groups, **more))


def test_one_class_on_one_group_pays_the_slope_of_its_queue() -> None:
    """5 requests a second of 0.1 s: load 0.5, price 0.5 / 0.25 = 2."""
    found = solve([kind(5.0, prompts(0.1))], group("a"))
    assert found.at == 7.0
    assert found.served == pytest.approx(1.0)
    assert found.groups[0].load == pytest.approx(0.5)
    assert found.groups[0].prefill == pytest.approx(2.0, rel=PIECE)
    assert found.groups[0].decode == found.groups[0].prefill


def test_twice_the_backends_have_half_the_load() -> None:
    """10 requests a second of 0.1 s on two: the same price as 5 on one."""
    found = solve([kind(10.0, prompts(0.1))], group("a", 2))
    assert found.groups[0].load == pytest.approx(0.5)
    assert found.groups[0].prefill == pytest.approx(2.0, rel=PIECE)


def test_two_classes_on_two_groups() -> None:
    """One class needs 0.1 s on a and 0.4 s on b, and stays on a: 4 a second are a load of 0.4 there. Of the
    other, 0.1 s on both, 10 a second even the loads out: 3 go to a, 7 to b, both have 0.7, both cost 0.7 /
    0.09 = 7.8."""
    found = solve(
        [kind(4.0, prompts(0.1), prompts(0.4)), kind(10.0, prompts(0.1), prompts(0.1))],
        group("a"),
        group("b"),
    )
    a, b = found.groups
    assert a.load == pytest.approx(0.7, abs=0.02)
    assert b.load == pytest.approx(0.7, abs=0.02)
    assert a.prefill == pytest.approx(7.78, rel=PIECE)
    assert b.prefill == pytest.approx(a.prefill, rel=1e-6)
    assert 0.1 * a.prefill < 0.4 * b.prefill


def test_a_group_half_as_fast_costs_half_as_much() -> None:
    """The class that runs on both is indifferent: 0.1 s at one price is 0.2 s at the other."""
    found = solve(
        [kind(4.0, prompts(0.1), prompts(0.4)), kind(4.0, prompts(0.1), prompts(0.2))],
        group("a"),
        group("b"),
    )
    a, b = found.groups
    assert a.prefill == pytest.approx(2.0 * b.prefill, rel=1e-6)


def test_what_is_not_worth_its_price_is_left_out() -> None:
    """A request worth 1 s of 0.1 device seconds pays at most 10: a load of 0.73, so 7.3 of 100 a second."""
    found = solve([kind(100.0, prompts(0.1), worth_s=1.0)], group("a"))
    assert found.groups[0].prefill == pytest.approx(10.0, rel=0.02)
    assert found.groups[0].load == pytest.approx(load_at(10.0), rel=0.03)
    assert found.served == pytest.approx(load_at(10.0) / 10.0, rel=0.03)


def test_a_link_is_priced_where_it_is_what_is_scarce() -> None:
    """5 prompts a second of 0.1 GB over 1 GB/s: the link has a load of 0.5, the devices have 0.05."""
    use = PricedUse(prefill_s=0.01, decode_s=math.inf, egress_bytes=1e8)
    other = PricedUse(prefill_s=math.inf, decode_s=0.01)
    slow = LinkParameters(bandwidth_bytes_per_s=1e9)
    found = solve([kind(5.0, use, other)], group("p", phases=PREFILL, link=slow), group("d", phases=DECODE))
    assert found.groups[0].egress_byte == pytest.approx(2.0 / 1e9, rel=PIECE)
    assert found.groups[0].prefill == pytest.approx(0.0, abs=1e-9)
    assert found.groups[1].decode == pytest.approx(0.05, abs=0.06)


def test_kv_room_is_priced_where_it_is_what_is_scarce() -> None:
    """5 answers a second that hold 1,000 tokens for 0.1 s each: half of 1,000 tokens."""
    use = PricedUse(prefill_s=0.001, decode_s=0.01, kv_token_s=100.0)
    found = solve([kind(5.0, use)], group("a", kv_capacity_tokens=1000))
    assert found.groups[0].kv_token == pytest.approx(2.0 / 1000, rel=PIECE)
    assert found.groups[0].decode == pytest.approx(0.0, abs=1e-9)


def test_a_joule_costs_what_the_power_cap_keeps_out() -> None:
    """A cap of 30 W above idle serves 3 requests of 10 J; the next is worth 1 s, less 0.1 s at load 0.3."""
    use = PricedUse(prefill_s=0.1, prefill_j=10.0)
    power = PowerParameters(idle_w=100.0)
    found = solve([kind(5.0, use, worth_s=1.0)], group("a", power=power), power_cap_w=130.0)
    toll = 0.1 * found.groups[0].prefill
    assert found.served == pytest.approx(3.0 / 5.0)
    assert found.joule == pytest.approx((1.0 - toll) / 10.0, rel=1e-6)
    assert toll == pytest.approx(0.1 * 0.3 / 0.49, rel=PIECE)
    assert solve([kind(5.0, use)], group("a", power=power)).joule == 0.0


def test_a_dollar_can_be_worth_something() -> None:
    """At a low load the cheap backend is nearly free; the dear one is not used, though it is as fast."""
    cheap, dear = group("cheap", usd_per_hour=1.0), group("dear", usd_per_hour=100.0)
    both = [kind(2.0, prompts(0.1), prompts(0.1))]
    assert solve(both, cheap, dear).groups[1].load == pytest.approx(0.1, abs=0.03)
    assert solve(both, cheap, dear, usd_s=100.0).groups[1].load == pytest.approx(0.0, abs=1e-9)


def test_the_same_problem_has_the_same_prices() -> None:
    """To the last bit: a simulation must not depend on anything else."""
    classes = [
        kind(3.0 + k, PricedUse(0.01 * (k + 1), 0.02, 50.0, 1e6), PricedUse(0.02, 0.01 * (k + 1), 70.0, 1e6))
        for k in range(8)
    ]
    groups = group("a", 2, kv_capacity_tokens=10_000), group("b", 3, kv_capacity_tokens=10_000)
    assert solve(classes, *groups) == solve(classes, *groups)


def test_prices_move_little_when_demand_does() -> None:
    """A tenth more or less of one class moves no price by more than the steepness of the curve explains."""
    uses = (prompts(0.1), prompts(0.15)), (prompts(0.2), prompts(0.12))
    before = solve([kind(3.0, *uses[0]), kind(3.0, *uses[1])], group("a"), group("b"))
    after = solve([kind(3.3, *uses[0]), kind(3.0, *uses[1])], group("a"), group("b"))
    for old, new in zip(before.groups, after.groups, strict=True):
        assert new.prefill / old.prefill < 1.6
        assert new.prefill >= old.prefill * 0.99


def test_a_class_that_nobody_can_serve_leaves_the_others_alone() -> None:
    """It is left out, and what the rest pays is as if it were not there."""
    nobody = kind(5.0, PricedUse(math.inf, math.inf))
    alone = solve([kind(5.0, prompts(0.1))], group("a"))
    with_it = solve([kind(5.0, prompts(0.1)), nobody], group("a"))
    assert with_it.groups == alone.groups
    assert with_it.served == pytest.approx(0.5)


def test_nothing_costs_anything_on_an_idle_fleet() -> None:
    """One request a minute: the free piece of the curve."""
    found = solve([kind(1.0 / 60.0, prompts(0.1))], group("a"))
    assert found == replace(found, groups=(replace(found.groups[0], prefill=0.0, decode=0.0),))
