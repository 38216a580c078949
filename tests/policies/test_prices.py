"""Prices in force: how they move, how old they get, and what they make of one request, by hand."""

from __future__ import annotations

import copy
import math

import pytest

from policies.filters import Screen
from policies.price_problem import group_name
from policies.prices import PriceBook, Steadiness
from policies.standing import Standing
from router.model import BackendSpec, PowerParameters, ServiceLevel, StepParameters
from router.prices import GroupPrice, Prices
from tests.policies.world import Models, request, spec, view

STEP = StepParameters(base_s=0.010, per_sequence_s=0.001, per_prefill_token_s=1e-4)
GPU = spec("gpu", step=STEP, max_num_seqs=64)
LPU = spec("lpu", step_ms=1.0)


def book(
    blend: float = 0.5, most_change: float = 2.0, max_age_s: float = 30.0, weight: float = 1.0
) -> PriceBook:
    return PriceBook(Steadiness(blend, most_change), max_age_s, weight)


def prices(at: float, price: float, of: BackendSpec = GPU, joule: float = 0.0, **more: float) -> Prices:
    return Prices(at, (GroupPrice(group_name(of), price, price, crowding=price, **more),), joule)


def in_force(of: PriceBook, spec: BackendSpec = GPU) -> float:
    found = of.of(spec)
    assert found is not None
    return found.prefill


def standing(of: BackendSpec) -> Standing:
    return Screen(Models(), 32).standing(view(of))


def test_a_price_goes_half_way_towards_at_most_twice_or_half() -> None:
    """From 10: 12 makes 11; 100 is taken for 21, twice and one, and makes 15.5; nothing is taken for 5."""
    for target, expected in ((12.0, 11.0), (100.0, 15.5), (0.0, 7.5)):
        known = book()
        known.revise(prices(0.0, 10.0))
        known.revise(prices(5.0, target))
        assert in_force(known) == pytest.approx(expected)


def test_a_price_of_nothing_can_rise() -> None:
    """A price of 1 is let in at once; from there on it doubles at most."""
    known = book()
    known.revise(prices(0.0, 0.0))
    seen = []
    for i in range(1, 9):
        known.revise(prices(5.0 * i, 8.0))
        seen.append(in_force(known))
    assert seen[0] == pytest.approx(0.5)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(8.0, rel=0.1)


def test_one_wild_problem_moves_prices_by_a_bounded_factor() -> None:
    """A burst in the window, or a second optimum: 1,000 after 4 is taken for 9, and is forgotten soon
    after."""
    known = book()
    known.revise(prices(0.0, 4.0))
    known.revise(prices(5.0, 1000.0))
    assert in_force(known) == pytest.approx(6.5)
    for at in (10.0, 15.0, 20.0):
        known.revise(prices(at, 4.0))
    assert in_force(known) == pytest.approx(4.0, rel=0.1)


def test_what_is_scarce_may_change_at_once() -> None:
    """Crowding stays as it is, but it is the KV room now, no more the device: each goes half way."""
    known = book()
    known.revise(Prices(0.0, (GroupPrice(group_name(GPU), 4.0, 4.0, crowding=4.0),)))
    known.revise(Prices(5.0, (GroupPrice(group_name(GPU), 0.0, 0.0, kv_token=4e-3, crowding=4.0),)))
    found = known.of(GPU)
    assert found is not None
    assert (found.prefill, found.kv_token, found.crowding) == pytest.approx((2.0, 2e-3, 4.0))


def test_prices_that_alternate_settle_between() -> None:
    """A program that has two answers in turn, 2 and 4, gives prices within a third of each other."""
    known = book()
    for i in range(20):
        known.revise(prices(5.0 * i, 2.0 if i % 2 else 4.0))
    one = in_force(known)
    known.revise(prices(100.0, 4.0))
    assert 2.0 < one < 4.0
    assert in_force(known) / one < 1.4


def test_old_prices_are_none_and_are_not_blended_with_new_ones() -> None:
    """After a pause the new prices count at once."""
    known = book(max_age_s=30.0)
    assert known.tolls(request(), 100, 0.0) is None
    known.revise(prices(0.0, 10.0, joule=5.0))
    assert known.tolls(request(), 100, 30.0) is not None
    assert known.tolls(request(), 100, 30.1) is None
    known.revise(prices(50.0, 1.0, joule=1.0))
    assert (in_force(known), known.joule) == (1.0, 1.0)


def test_a_kind_that_is_new_or_gone() -> None:
    """A new group has its price at once; one that is priced no more has none."""
    known = book()
    known.revise(prices(0.0, 10.0))
    known.revise(prices(5.0, 3.0, LPU))
    assert in_force(known, LPU) == 3.0
    assert known.of(GPU) is None


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_numbers_that_are_no_prices_count_as_nothing(wrong: float) -> None:
    """Solvers are plugged in."""
    known = book()
    known.revise(prices(0.0, wrong, joule=wrong))
    assert (in_force(known), known.joule) == (0.0, 0.0)


def test_what_a_request_costs_the_others() -> None:
    """1,000 tokens: 0.1 s of prefill at 3. 100 tokens in batches of 20 within 30 ms: 0.15 s at 3. Its KV of
    1,050 tokens, held 3 s, at 1e-4. A handoff of 1 MB at 1e-6 and 2e-6."""
    known = book()
    gpu = GroupPrice(group_name(GPU), 3.0, 3.0, kv_token=1e-4, egress_byte=1e-6)
    known.revise(Prices(0.0, (gpu, GroupPrice(group_name(LPU), 0.0, 0.0, ingress_byte=2e-6))))
    asked = request(1000, 100, slo=ServiceLevel(tpot_s=0.0301))
    tolls = known.tolls(asked, 100, 1.0)
    assert tolls is not None
    s, other = standing(GPU), standing(LPU)
    assert tolls.prefill(s, 0) == pytest.approx(0.3)
    assert tolls.prefill(s, 500) == pytest.approx(0.15)
    # Contexts are rounded down to an eighth of their power of two: the batch is that of 1,024 tokens.
    assert tolls.decode(s) == pytest.approx(0.15 * 3.0 + 1050 * 3.0 * 1e-4)
    assert tolls.decode(other) == 0.0
    assert tolls.handoff(s, other) == pytest.approx(1e6 * 3e-6)


def test_joules_have_a_price_under_a_power_cap() -> None:
    """1,000 tokens of 2 FLOP at 1 mJ each, and 3 bytes of weights at 1 J: 5 J at 2 s a joule."""
    power = PowerParameters(0.0, 1.0, 1e-3, weight_bytes=3.0, flop_per_token=2.0)
    dear = spec("gpu", step=STEP, power=power, kv_bytes_per_token=0.0)
    known = book()
    known.revise(prices(0.0, 0.0, dear, joule=2.0))
    tolls = known.tolls(request(1000, 100), 100, 0.0)
    assert tolls is not None
    assert tolls.prefill(standing(dear), 0) == pytest.approx(10.0)
    assert tolls.decode(standing(dear)) == pytest.approx(2.0 * 100 * (3.0 / 256 + 0.002))


def test_the_weight_scales_all_of_it() -> None:
    """Half the weight, half the toll."""
    tolls = []
    for weight in (1.0, 0.5):
        known = book(weight=weight)
        known.revise(prices(0.0, 3.0, egress_byte=1e-6))
        found = known.tolls(request(), 100, 0.0)
        assert found is not None
        s = standing(GPU)
        tolls.append((found.prefill(s, 0), found.decode(s), found.handoff(s, s)))
    assert tolls[1] == pytest.approx([one / 2 for one in tolls[0]])


def test_a_pace_that_no_batch_keeps_is_priced_as_if_there_were_none() -> None:
    """It is served all the same."""
    known = book()
    known.revise(prices(0.0, 3.0))
    hopeless = known.tolls(request(1000, 100, slo=ServiceLevel(tpot_s=1e-6)), 100, 0.0)
    without = known.tolls(request(1000, 100), 100, 0.0)
    assert hopeless is not None
    assert without is not None
    assert hopeless.decode(standing(GPU)) == without.decode(standing(GPU)) > 0.0


def test_a_copy_has_prices_of_its_own() -> None:
    """A dry run changes nothing."""
    known = book()
    known.revise(prices(0.0, 10.0))
    other = copy.deepcopy(known)
    other.revise(prices(5.0, 1.0))
    assert (in_force(known), known.at) == (10.0, 0.0)
