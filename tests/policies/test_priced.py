"""`predicted` with prices: what they change, when there are none, and that stating the problem has no
effect."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from policies.price_problem import group_name
from policies.priced import Priced, PricedParameters, read_priced
from router.core.messages import DecodeDone, PrefillDone, PricesRevised, RequestArrived
from router.core.ports import Policy, PriceTaker
from router.errors import ConfigError
from router.model import BackendState, FinishReason, PhaseCost, Request, RoutePlan, StepParameters
from router.prices import MAX_GROUPS, GroupPrice, PriceProblem, Prices, Unpriced
from tests.policies.world import Models, Views, policy, request, spec, view

FAST = spec("fast", step_ms=10, prefill_us=100, kv_layout="A")
SLOW = spec("slow", step_ms=12, prefill_us=200, kv_layout="B")
FLEET = Views([view(FAST), view(SLOW)])
"""1,000 tokens in, 100 out: 0.1 + 0.99 s on the fast one, 0.2 + 1.188 s on the slow one. No pair of them."""


def priced(**params: object) -> Priced:
    made = policy("priced", **params)
    assert isinstance(made, Priced)
    return made


def revised(fast: float, slow: float, at: float = 0.0) -> PricesRevised:
    """Prices of device time on prompts."""
    groups = (GroupPrice(group_name(FAST), fast, 0.0), GroupPrice(group_name(SLOW), slow, 0.0))
    return PricesRevised(Prices(at, groups))


def plan(of: Policy, now: float = 0.0, fleet: Views = FLEET, asked: Request | None = None) -> RoutePlan:
    answer = of.plan(asked or request(), fleet, now)
    assert isinstance(answer, RoutePlan), answer
    return answer


def arrive(at: Priced, count: int, now: float = 0.0, **more: object) -> None:
    for i in range(count):
        at.observe(RequestArrived(replace(request(), id=f"r{now}-{i}", **more)), now + i * 1e-3)


def test_without_prices_it_is_predicted() -> None:
    """To the last field, its name included, so that the metrics tell them apart."""
    assert plan(priced()) == plan(policy("predicted"))
    assert plan(priced()).decision.policy == "predicted"


def test_a_request_goes_where_it_costs_least_in_all() -> None:
    """0.1 s on the fast one at 2 s of others' delay a second make 1.29 s; the slow one is still behind with
    1.388. At 4 it is ahead."""
    known = priced()
    known.observe(revised(2.0, 0.0), 0.0)
    chosen = plan(known)
    assert (chosen.prefill, chosen.decision.policy) == ("fast", "priced")
    assert chosen.decision.candidates[0].score == pytest.approx(-1.29)
    dearer = priced()
    dearer.observe(revised(4.0, 0.0), 0.0)
    chosen = plan(dearer)
    assert chosen.prefill == chosen.decode == "slow"
    assert chosen.decision.candidates[0].score == pytest.approx(-1.388)


def test_others_delay_can_weigh_less() -> None:
    """Half the weight is half the price."""
    known = priced(weight=0.5)
    known.observe(revised(4.0, 0.0), 0.0)
    assert plan(known).prefill == "fast"


def test_prices_that_are_too_old_are_not_used() -> None:
    """It is `predicted` again, and says so."""
    known = priced(max_age_s=30.0)
    known.observe(revised(4.0, 0.0), 0.0)
    assert plan(known, 30.0).decision.policy == "priced"
    later = plan(known, 31.0)
    assert (later.prefill, later.decision.policy) == ("fast", "predicted")


def test_a_kind_of_backend_without_a_price_costs_nothing() -> None:
    """A new kind joined since: it is judged by its times alone."""
    known = priced()
    known.observe(PricesRevised(Prices(0.0, (GroupPrice(group_name(FAST), 4.0, 0.0),))), 0.0)
    assert plan(known).prefill == "slow"


def test_the_problem_is_the_load_of_the_window() -> None:
    """50 requests in 10 s on one fast backend and two slow ones, of which one takes no work."""
    known = priced(window_s=20.0)
    arrive(known, 50)
    fleet = Views([view(FAST), view(SLOW), view(replace(SLOW, id="gone"), BackendState.LOST)])
    problem = known.price_problem(fleet, 10.0)
    assert isinstance(problem, PriceProblem)
    assert problem.at == 10.0
    assert [(group.name, group.units) for group in problem.groups] == [
        (group_name(FAST), 1),
        (group_name(SLOW), 1),
    ]
    (found,) = problem.classes
    assert found.rate == pytest.approx(5.0)
    assert found.uses[0].prefill_s == pytest.approx(0.1)
    assert found.uses[1].prefill_s == pytest.approx(0.2)


def test_lengths_and_hits_are_those_learned() -> None:
    """Answers of 30 tokens and half-cached prompts make a lighter load; nobody was told the true lengths."""
    known = priced(min_requests=10, predicted={"length_memory": 8})
    use = []
    for now in (0.0, 100.0):
        arrive(known, 20, now)
        problem = known.price_problem(FLEET, now + 10.0)
        assert isinstance(problem, PriceProblem)
        use.append(problem.classes[0].uses[0])
        for i in range(20):
            learned_from(known, f"r{now}-{i}")
    assert use[1].prefill_s == pytest.approx(use[0].prefill_s / 2, rel=0.1)
    assert use[1].decode_s == pytest.approx(use[0].decode_s * 30 / 100, rel=0.2)


def learned_from(known: Priced, request_id: str) -> None:
    """The request is placed and ends."""
    plan(known, asked=replace(request(), id=request_id))
    known.observe(PrefillDone(request_id, 1, PhaseCost(), cached_tokens=500), 50.0)
    known.observe(DecodeDone(request_id, 1, PhaseCost(), 30, FinishReason.STOP), 50.0)


def test_why_there_is_no_problem() -> None:
    """Too little came, prices are recent, nobody takes work, or there are too many kinds."""
    known = priced(min_requests=40, every_s=2.0)
    assert known.price_problem(FLEET, 0.0) == Unpriced("thin")
    arrive(known, 39)
    assert known.price_problem(FLEET, 1.0) == Unpriced("thin")
    arrive(known, 1)
    assert isinstance(known.price_problem(FLEET, 1.0), PriceProblem)
    assert known.price_problem(Views([view(FAST, BackendState.LOST)]), 1.0) == Unpriced("fleet")
    many = Views([view(replace(FAST, id=f"b{i}", usd_per_hour=float(i))) for i in range(MAX_GROUPS + 1)])
    assert known.price_problem(many, 1.0) == Unpriced("groups")
    known.observe(revised(1.0, 1.0, at=1.0), 1.0)
    assert known.price_problem(FLEET, 2.9) == Unpriced("fresh")
    assert isinstance(known.price_problem(FLEET, 3.0), PriceProblem)


def test_a_cap_and_a_dollar_are_part_of_the_problem() -> None:
    """Only where they are asked for."""
    plain, asked = priced(min_requests=1), priced(min_requests=1, power_cap_w=500.0, usd_s=3.0)
    for known in (plain, asked):
        arrive(known, 5)
    found = asked.price_problem(FLEET, 1.0)
    assert isinstance(found, PriceProblem)
    assert (found.power_cap_w, found.usd_s) == (500.0, 3.0)
    found = plain.price_problem(FLEET, 1.0)
    assert isinstance(found, PriceProblem)
    assert (found.power_cap_w, found.usd_s) == (float("inf"), 0.0)


def test_asking_for_the_problem_has_no_effect() -> None:
    """It is in no recording, so a replay that is never asked must decide the same."""
    asked, never = priced(), priced()
    for known in (asked, never):
        arrive(known, 60)
    problems = [asked.price_problem(FLEET, 5.0) for _ in range(3)]
    assert problems[0] == problems[1] == problems[2]
    for known in (asked, never):
        known.observe(revised(4.0, 0.0, at=5.0), 5.0)
    assert plan(asked, 6.0) == plan(never, 6.0)
    assert asked.price_problem(FLEET, 50.0) == never.price_problem(FLEET, 50.0)


def test_a_dry_run_sees_the_prices_and_leaves_no_trace() -> None:
    """A copy answers as the original would, and does not share what it learns; models are not copied."""
    known = priced()
    known.observe(revised(4.0, 0.0), 0.0)
    other = copy.deepcopy(known)
    assert plan(other).prefill == "slow"
    other.observe(revised(0.0, 0.0, at=1.0), 1.0)
    arrive(other, 60)
    assert plan(known).prefill == "slow"
    assert known.price_problem(FLEET, 10.0) == Unpriced("thin")


class Uncopied(Models):
    """Models that may not be copied."""

    def __deepcopy__(self, memo: dict[int, object]) -> Models:
        raise AssertionError("the models were copied")


def test_a_copy_shares_the_models() -> None:
    """A thousand trackers are not copied for one dry run."""
    known = Priced(PricedParameters(), Uncopied())
    arrive(known, 60)
    plan(known)
    assert isinstance(copy.deepcopy(known).price_problem(FLEET, 5.0), PriceProblem)


def test_it_takes_prices_and_others_do_not() -> None:
    """Drivers ask those alone."""
    assert isinstance(priced(), PriceTaker)
    assert not isinstance(policy("predicted"), PriceTaker)


def test_keys_of_predicted_are_in_a_table_of_their_own() -> None:
    """Wrong ones are named with it."""
    found = read_priced({"weight": 2.0, "predicted": {"candidates": 7}}, "here")
    assert (found.weight, found.predicted.candidates) == (2.0, 7)
    with pytest.raises(ConfigError, match="here predicted: unknown key"):
        read_priced({"predicted": {"candidate": 7}}, "here")
    with pytest.raises(ConfigError, match="a table with keys"):
        read_priced({"predicted": 7}, "here")


def test_a_backend_without_a_usable_model_is_priced_for_nobody() -> None:
    """Parameters that give no sensible times cost the others nothing."""
    broken = replace(FAST, id="broken", step=StepParameters(base_s=-1.0))
    known = priced(min_requests=1)
    arrive(known, 5)
    problem = known.price_problem(Views([view(broken), view(FAST)]), 1.0)
    assert isinstance(problem, PriceProblem)
    assert [use.prefills for use in problem.classes[0].uses] == [False, True]
