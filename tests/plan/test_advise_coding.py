"""The third workload, with tight objectives and bursts, where waiting decides and not throughput."""

from __future__ import annotations

import pytest

from router.plan.advice import Advice, Brief
from router.plan.advise import advise
from router.plan.sizing import capacity_of_fleet, sizing_of
from router.plan.workload_files import find_workload
from router.sim.contest import contestant


@pytest.fixture(scope="module")
def coding() -> Advice:
    """At a third of its load, so that the test is quick."""
    brief = Brief(
        find_workload("coding-assistant"),
        contestant("predicted"),
        ("h100", "b200"),
        rate_scale=0.3,
        sensitivity=False,
    )
    return advise(brief)


def test_a_coding_assistant_needs_more_than_its_throughput(coding: Advice) -> None:
    """What holds 15 ms a token and 0.5 s to the first one has several times the capacity of the mean load."""
    best = coding.best
    assert best is not None
    assert best.trial.holds
    assert min(best.trial.attainment.values()) >= 0.95
    assert set(best.trial.attainment) == {"agents", "completion"}
    assert best.headroom > 2.0


def test_devices_were_added_until_it_held(coding: Advice) -> None:
    """The program's first fleet, with nothing to spare, was simulated and refused."""
    best = coding.best
    assert best is not None
    brief = coding.brief
    sizing = sizing_of(coding.asked, coding.market.supplies, brief.prices)
    assert capacity_of_fleet(sizing, {"h100": 1}).objective > 1.0  # enough by the bound
    assert best.fleet != {"h100": 1}
    assert coding.trials > 1
