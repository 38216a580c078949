"""Three workloads, three answers, each of them simulated; and what is said when there is none."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from router.errors import ConfigError
from router.plan.advice import Advice, Brief, as_dict
from router.plan.advise import advise
from router.plan.candidates import market_of
from router.plan.chart import chart
from router.plan.supply import Limits
from router.plan.verify import Verifier
from router.plan.workload_files import find_workload, planned_names
from router.sim.contest import contestant

POLICY = contestant("predicted")


@pytest.fixture(scope="module")
def overnight() -> Advice:
    """A million documents by morning, on datacentre devices."""
    devices = ("a100", "h100", "b200", "tpu-v6e")
    return advise(Brief(find_workload("overnight-classification"), POLICY, devices))


@pytest.fixture(scope="module")
def on_device() -> Advice:
    """One user, and what fits into a laptop or beside it."""
    devices = ("hexagon", "xdna2", "rtx-4090")
    return advise(Brief(find_workload("on-device-assistant"), POLICY, devices))


def test_a_job_gets_the_fleet_that_ends_in_time(overnight: Advice) -> None:
    """Throughput for the money: two generations of GPUs, the newer one with most of the documents."""
    best = overnight.best
    assert best is not None
    assert best.trial.holds
    assert set(best.fleet) == {"a100", "h100"}
    assert best.trial.attainment == {"classification": 1.0}
    share = {route.prefill: route.share for route in best.trial.flows if route.prefill == route.decode}
    assert share["h100"] > share["a100"]


def test_the_mixed_fleet_costs_less_than_any_of_one_kind(overnight: Advice) -> None:
    """Of those that were verified; and as one pool it can do no less than its types as silos."""
    best = overnight.best
    assert best is not None
    alone = [one for one in overnight.answers if not one.is_mixed]
    assert alone
    assert all(one.trial.holds and one.usd_per_hour > best.usd_per_hour for one in alone)
    assert best.pooling >= 1.0


def test_least_energy_and_cheapest_are_different_fleets(overnight: Advice) -> None:
    """And rigid devices lose all of it when the model changes."""
    by_goal = {goal: one for one in overnight.answers for goal in one.goals}
    cheapest, economical = by_goal["cheapest"], by_goal["least energy"]
    assert economical.trial.watts < cheapest.trial.watts
    assert economical.usd_per_hour > cheapest.usd_per_hour
    assert (economical.rigidity, by_goal["most flexible"].rigidity) == (1.0, 0.0)


def test_one_user_gets_a_device_of_their_own(on_device: Advice) -> None:
    """An NPU does it for a few watts; the most flexible answer is another device."""
    best = on_device.best
    assert best is not None
    assert best.trial.holds
    assert best.fleet in ({"hexagon": 1}, {"xdna2": 1})
    flexible = next(one for one in on_device.answers if "most flexible" in one.goals)
    assert (flexible.fleet, flexible.rigidity) == ({"rtx-4090": 1}, 0.0)
    assert flexible.trial.holds


def test_flips_say_when_the_answer_changes(overnight: Advice) -> None:
    """At least one price and one load; beyond it another fleet."""
    best = overnight.best
    assert best is not None
    kinds = {flip.what.split()[0] for flip in overnight.flips}
    assert kinds == {"price", "load"}  # a job has no latency objectives
    assert all(0 < flip.at != 1.0 and flip.then for flip in overnight.flips)


def test_a_verified_fleet_is_the_smallest_that_was_found_to_hold(overnight: Advice) -> None:
    """Without one unit of either type it does not hold: less capacity than demand, or too late."""
    best = overnight.best
    assert best is not None
    brief = overnight.brief
    supplies = overnight.market.supplies
    check = Verifier(brief.workload, overnight.asked, supplies, POLICY, brief.seed, brief.target)
    for name in best.fleet:
        rest = {other: count for other, count in best.fleet.items() if other != name}
        trial = check.trial(rest)
        assert not trial.holds
        assert "classification" in trial.why_not or "load is above" in trial.why_not


def test_the_chart_is_well_formed_and_names_every_fleet(overnight: Advice) -> None:
    """One bar a fleet, text for those who cannot see it."""
    root = ElementTree.fromstring(chart(overnight))  # noqa: S314 - our own text
    text = " ".join(root.itertext())
    assert all(f"{count} x {name}" in text for one in overnight.answers for name, count in one.fleet.items())
    assert "electricity" in text


def test_the_json_holds_what_the_tables_say(overnight: Advice) -> None:
    """Answers in order of cost, with routes and reasons."""
    found = as_dict(overnight)
    costs = [one["usd_per_hour"] for one in found["answers"]]
    assert costs == sorted(costs)
    assert found["jobs"] == {"classification": 28800.0}
    assert all(one["holds"] for one in found["answers"])


def test_limits_that_nobody_meets_are_told_with_what_it_takes() -> None:
    """A budget below the cheapest fleet."""
    brief = Brief(
        find_workload("overnight-classification"), POLICY, ("h100",), limits=Limits(usd_per_hour=3.0)
    )
    with pytest.raises(ConfigError, match=r"rent is at least 5\.90 USD/h and the budget is 3\.00"):
        advise(brief)


def test_a_model_that_nobody_serves_is_told_device_by_device() -> None:
    """Too large, or wired for another."""
    with pytest.raises(
        ConfigError, match=r"nothing on offer can serve 'llama-3\.1-405b'.*rtx-4090.*does not fit"
    ):
        market_of(["llama-3.1-405b"], ["rtx-4090", "llama-asic"])


def test_assumed_prices_are_left_out_unless_asked_for() -> None:
    """What nobody sells at a known price is no advice."""
    plain, all_of_them = market_of(["llama-3.1-8b"]), market_of(["llama-3.1-8b"], assumed=True)
    assert not any(one.price_is_assumed for one in plain.candidates)
    assert any(one.price_is_assumed for one in all_of_them.candidates)
    assert "assumption" in plain.refused["xdna2"]


@pytest.mark.parametrize("name", ["h900", "h100:fp3", "0xh100:"])
def test_unknown_devices_and_formats_are_refused(name: str) -> None:
    """With what is known."""
    with pytest.raises(ConfigError, match="known are"):
        market_of(["llama-3.1-8b"], [name])


def test_devices_can_be_grouped_and_formats_named() -> None:
    """Four H100 in fp8 as one backend."""
    (one,) = market_of(["llama-3.1-70b"], ["4xh100:fp8"]).candidates
    assert (one.supply.spec.count, one.supply.name) == (4, "4xh100:fp8")
    assert "fp8" in one.supply.spec.kv_layout


def test_profiles_stand_beside_devices() -> None:
    """Under their own names; and a device takes the step of its fitted profile."""
    market = market_of(["llama-3.1-8b"], ["h100-llama-3.1-8b", "h100"])
    profile, device = market.candidates
    assert profile.supply.spec.step == device.supply.spec.step
    assert device.origin == "profile h100-llama-3.1-8b"


def test_the_planners_workloads_can_be_found() -> None:
    """Three of its own, and those of the simulator."""
    assert planned_names() == ("coding-assistant", "on-device-assistant", "overnight-classification")
    assert find_workload("chat").name == "chat"
    with pytest.raises(ConfigError, match="known are coding-assistant"):
        find_workload("nothing")
