"""Whole units under limits: what is bought, what is said when nothing can be, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.errors import ConfigError
from router.model import BackendKind, BackendSpec, ModelBinding, Phase, PowerParameters, StepParameters
from router.plan.fluid import Wish, cheapest
from router.plan.playback import Asked, play
from router.plan.program import InfeasibleError
from router.plan.sensitivity import Costed, price_flips
from router.plan.sizing import (
    Goal,
    Sizing,
    fleet_of,
    kept_when_the_model_changes,
    size,
    sizing_of,
    why_infeasible,
)
from router.plan.supply import NO_LIMITS, Limits, Supply
from router.plan.tasks import Timed
from router.plan.tco import Prices
from router.plan.work import Task
from router.sim.workload_file import load_workload, parse_workload
from tests.plan.test_bounds import PREFILL_ONLY, TASK

FREE_POWER = Prices(usd_per_kwh=0.0)


def unit(name: str, speed: float, usd: float, watts: float, *, rigid: bool = False) -> Supply:
    """Does `speed` x 10 of TASK a second."""
    spec = BackendSpec(
        name,
        BackendKind.ASIC if rigid else BackendKind.GPU,
        name,
        ("m",),
        frozenset(Phase),
        StepParameters(base_s=1e-3, per_prefill_token_s=PREFILL_ONLY.per_prefill_token_s / speed),
        binding=ModelBinding.COMPILED if rigid else ModelBinding.LOADABLE,
        usd_per_hour=usd,
        power=PowerParameters(idle_w=watts, cap_w=watts),
    )
    return Supply(name, spec, 64)


SLOW, FAST, RIGID = (
    unit("slow", 1, 1.0, 100),
    unit("fast", 4, 3.0, 900),
    unit("rigid", 4, 2.0, 50, rigid=True),
)


def sizing(rate: float, *supplies: Supply, limits: Limits = NO_LIMITS, min_flexible: float = 0.0) -> Sizing:
    """`rate` of TASK a second."""
    asked = Asked((Timed(0.0, TASK),), 1.0, {"c": rate}, {})
    return sizing_of(asked, supplies, FREE_POWER, limits, min_flexible)


@pytest.mark.parametrize(
    ("rate", "fleet"), [(9.0, {"slow": 1}), (35.0, {"fast": 1}), (45.0, {"fast": 1, "slow": 1})]
)
def test_the_cheapest_whole_units(rate: float, fleet: dict[str, int]) -> None:
    """One slow unit does 10/s for a dollar, one fast unit 40/s for three."""
    assert fleet_of(size(sizing(rate, SLOW, FAST), Goal.CHEAPEST)) == fleet


def test_each_goal_has_its_own_fleet() -> None:
    """Cheap, economical with energy, or able to load another model."""
    problem = sizing(35.0, SLOW, FAST, RIGID)
    assert fleet_of(size(problem, Goal.CHEAPEST)) == {"rigid": 1}
    assert fleet_of(size(problem, Goal.LEAST_ENERGY)) == {"rigid": 1}
    assert fleet_of(size(problem, Goal.MOST_FLEXIBLE)) == {"fast": 1}
    without = sizing(35.0, SLOW, FAST)
    assert fleet_of(size(without, Goal.LEAST_ENERGY)) == {"slow": 4}


def test_a_flexible_share_is_bought_on_top() -> None:
    """Half of 35/s must be left when the model changes: two slow units beside the rigid one."""
    problem = sizing(35.0, SLOW, RIGID, min_flexible=0.5)
    fleet = fleet_of(size(problem, Goal.CHEAPEST))
    assert fleet == {"rigid": 1, "slow": 2}
    assert kept_when_the_model_changes(problem, fleet) == pytest.approx(20 / 35)
    assert kept_when_the_model_changes(problem, {"rigid": 1}) == 0.0


def test_less_planned_time_buys_more_units() -> None:
    """Room for queues."""
    assert fleet_of(size(sizing(9.0, SLOW), Goal.CHEAPEST, utilisation=0.5)) == {"slow": 2}


@pytest.mark.parametrize(
    ("limits", "flexible", "reason"),
    [
        (Limits(usd_per_hour=2.5), 0.0, "rent is at least 3.00 USD/h and the budget is 2.50"),
        (Limits(provisioned_w=300), 0.0, "at least 0.52 kW have to be provisioned at the site"),
        (NO_LIMITS, 0.0, ""),
    ],
)
def test_the_limit_that_binds_is_named(limits: Limits, flexible: float, reason: str) -> None:
    """With what it would have to be."""
    problem = sizing(35.0, SLOW, FAST, limits=limits, min_flexible=flexible)
    if not reason:
        assert size(problem, Goal.CHEAPEST).objective > 0
        return
    with pytest.raises(InfeasibleError):
        size(problem, Goal.CHEAPEST)
    assert reason in why_infeasible(problem).message


def test_rigid_devices_alone_are_not_flexible() -> None:
    """And the advice says so."""
    problem = sizing(35.0, RIGID, min_flexible=0.5)
    with pytest.raises(InfeasibleError):
        size(problem, Goal.CHEAPEST)
    assert "can load any model" in why_infeasible(problem).message


def test_an_objective_that_nobody_can_keep_is_named_with_every_reason() -> None:
    """By class and device."""
    asked = Asked((Timed(0.0, replace(TASK, ttft_s=0.01)),), 1.0, {"c": 1.0}, {})
    problem = sizing_of(asked, (SLOW, FAST), FREE_POWER)
    error = why_infeasible(problem)
    assert isinstance(error, ConfigError)
    assert "class 'c' cannot be served" in error.message
    assert "slow: the first token takes 0.1 s" in error.message
    assert "fast: the first token takes 0.025 s" in error.message


def test_the_min_cost_twin_is_the_inverse_of_the_capacity() -> None:
    """Divisible units: 35/s cost 35/40 of a fast one."""
    problem = sizing(35.0, FAST)
    plan = cheapest(problem.demands, problem.supplies, problem.efforts, Wish({"fast": 3.0}))
    assert plan.objective == pytest.approx(3.0 * 35 / 40)


def test_total_cost_counts_what_it_is_told_to() -> None:
    """Capital over its years in place of rent; racks by provisioned power; electricity at the wall."""
    spec = replace(SLOW.spec, count=2)
    bought = Prices(pue=1.5, usd_per_kwh=0.2, capital_usd={"slow": 8760.0}, years=2.0)
    assert bought.unit_usd_per_hour("slow", spec) == pytest.approx(1.0)
    assert bought.power_usd_per_hour(1000.0) == pytest.approx(0.3)
    racked = Prices(pue=1.0, rack_kw=1.0, usd_per_rack_month=730.0)
    assert racked.unit_usd_per_hour("slow", spec) == pytest.approx(1.0 + 0.1)


def test_prices_flip_where_two_verified_fleets_cost_the_same() -> None:
    """4 USD of a now and 5 USD of b: a may cost a quarter more, or b a fifth less."""
    a, b = Costed("2 x a", {"a": 4.0, "electricity": 0.0}), Costed("1 x b", {"b": 5.0, "electricity": 0.0})
    flips = {(flip.what, round(flip.at, 6)): flip.then for flip in price_flips(a, [b])}
    assert flips == {("price of a", 1.25): "1 x b", ("price of b", 0.8): "1 x b"}


def test_the_demand_of_a_closed_loop_is_that_of_a_fleet_that_just_holds() -> None:
    """Ten callers that wait 1 s and are answered in 1 s ask five times a second."""
    text = """
        requests = 400
        [[class]]
        name = "loop"
        lengths = { prompt = 10, output = 1 }
        arrivals = { process = "in_flight", callers = 10 }
        session = { pause_s = 1.0 }
        slo = { ttft_s = 1.0 }
    """
    from pathlib import Path

    asked = play(parse_workload(text, "loop", Path()), seed=1)
    assert asked.rates["loop"] == pytest.approx(5.0, rel=0.05)
    assert not asked.jobs


def test_a_job_asks_for_its_requests_within_its_deadline() -> None:
    """A closed loop without another objective: 4,000 documents in four hours."""
    asked = play(load_workload("batch"), seed=1)
    assert asked.jobs == {"batch": 14400.0}
    assert asked.rates["batch"] == pytest.approx(4000 / 14400)


def test_a_class_asks_at_its_rate() -> None:
    """The bundled chat: five requests a second."""
    asked = play(load_workload("chat"), seed=1, rate_scale=2.0)
    assert asked.rates["chat"] == pytest.approx(10.0, rel=0.1)
    assert isinstance(asked.tasks[0].task, Task)
