"""Risks by the normal distribution, and how their spread is learned."""

from __future__ import annotations

import copy
import math

import pytest

from policies.residents import Residents
from policies.spread import Bet, Bets, Spreads
from policies.stakes import AtStake, Stake
from policies.standing import Standing
from router.core.messages import DecodeDone, FirstToken, RequestCancelled
from router.model import BackendView, FinishReason, Phase, PhaseCost, ServiceLevel
from tests.policies.world import Models, request, spec, view


def standing(of: BackendView) -> Standing:
    """A view's standing, as a screen works it out."""
    made = Standing(of.spec, Models()(of.spec), "", 0, 0)
    made.see(of, 32, 1.0)
    made.order = 0
    return made


def stakes(waited_s: float = 0.0, deviation: float = 0.1, **slo: float) -> AtStake:
    """Of a request with objectives, where predictions have one spread."""
    asked = request(slo=ServiceLevel(**slo))
    return AtStake(asked, waited_s, 1.0, Residents().at(0.0), lambda backend, phase: (0.0, deviation))


def test_half_is_lost_at_the_limit_and_one_in_six_a_deviation_below() -> None:
    """A first token predicted after 1 s, with an objective of 1 s, and of exp(0.1) s."""
    gpu = standing(view(spec("gpu")))
    assert stakes(ttft_s=1.0).first(gpu, 1.0) == pytest.approx(0.5)
    assert stakes(ttft_s=math.exp(0.1)).first(gpu, 1.0) == pytest.approx(0.1587, abs=1e-4)
    assert stakes(tpot_s=0.01).tokens(gpu, 0.02) == 1.0
    assert stakes(tpot_s=0.02).tokens(gpu, 0.01) == 0.0


def test_what_was_waited_is_off_the_objective() -> None:
    """After 0.6 s of 1 s the rest is 0.4 s; after 2 s nothing is left."""
    gpu = standing(view(spec("gpu")))
    assert stakes(waited_s=0.6, ttft_s=1.0).first(gpu, 0.4) == pytest.approx(0.5)
    assert stakes(waited_s=2.0, ttft_s=1.0).first(gpu, 1e-3) == 1.0


def test_without_objectives_there_is_no_risk() -> None:
    """However slow."""
    gpu = standing(view(spec("gpu")))
    assert stakes().first(gpu, math.inf) == stakes().tokens(gpu, math.inf) == 0.0
    assert stakes().jitter(gpu, 0.01, 100, None) == 0.0


def test_gain_is_what_is_won_less_what_others_lose() -> None:
    """0.9 x 0.8 x 1 of a request, less a half."""
    assert Stake(0.1, 0.2, 0.3, 0.5).gain == pytest.approx(0.9 * 0.8 - 0.5)


def test_a_spread_is_learned_from_its_prior() -> None:
    """With a memory of 2, a factor of e moves the mean half of the way; the deviation grows with it."""
    spreads = Spreads(2)
    assert spreads("gpu", Phase.PREFILL) == (0.0, 0.15)
    spreads.observed("gpu", Phase.PREFILL, 1.0, math.e)
    mean, deviation = spreads("gpu", Phase.PREFILL)
    assert mean == pytest.approx(0.5)
    assert deviation == pytest.approx(math.sqrt((0.15**2 + 0.25) / 2))
    assert spreads("gpu", Phase.DECODE) == (0.0, 0.08)
    spreads.forget("gpu")
    assert spreads("gpu", Phase.PREFILL) == (0.0, 0.15)


@pytest.mark.parametrize(("predicted", "observed"), [(0.0, 1.0), (1.0, -1.0), (math.inf, 1.0), (1.0, 100.0)])
def test_nonsense_and_accidents_teach_no_spread(predicted: float, observed: float) -> None:
    """Neither what is no time, nor a hundred times what was predicted."""
    spreads = Spreads(2)
    spreads.observed("gpu", Phase.DECODE, predicted, observed)
    assert spreads("gpu", Phase.DECODE) == (0.0, 0.08)


def test_predictions_are_compared_with_what_came() -> None:
    """First token after 0.2 s instead of 0.1 s, then ten steps of 30 ms instead of 10 ms; a cancelled request
    teaches nothing, and neither does a copy for a dry run."""
    spreads = Spreads(1)
    bets = Bets(spreads)
    bets.place("r", Bet(1.0, "gpu", 0.1, "lpu", 0.01))
    copy.deepcopy(bets).observe(FirstToken("r", 1), 1.2)
    assert spreads("gpu", Phase.PREFILL)[0] == 0.0
    bets.observe(FirstToken("r", 1), 1.2)
    bets.observe(DecodeDone("r", 1, PhaseCost(), 11, FinishReason.STOP), 1.5)
    assert spreads("gpu", Phase.PREFILL)[0] == pytest.approx(math.log(2))
    assert spreads("lpu", Phase.DECODE)[0] == pytest.approx(math.log(3))
    bets.place("s", Bet(2.0, "tpu", 0.1, "tpu", 0.01))
    bets.observe(RequestCancelled("s"), 2.1)
    bets.observe(FirstToken("s", 1), 2.2)
    assert spreads("tpu", Phase.PREFILL) == (0.0, 0.15)
