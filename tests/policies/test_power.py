"""Power caps: what is predicted to be drawn, who fits, and that a simulated fleet stays below its cap."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from backends.catalogue import load_fleet
from policies.filters import Screen
from policies.power import FLEET, HIGHEST, MEASURED_S, PowerCaps, draw_w
from policies.predicted import Predicted
from policies.registry import build
from router.core.messages import BackendJoined, BackendReported
from router.errors import ConfigError
from router.model import (
    BackendSnapshot,
    BackendSpec,
    BackendView,
    Phase,
    PowerParameters,
    Reject,
    RoutePlan,
    ServiceLevel,
    Wait,
)
from router.sim.network import Network
from router.sim.result import SimResult
from router.sim.run import Contestant, simulate
from router.sim.workload_file import load_workload
from tests.policies.world import BOTH, DECODE, PREFILL, Models, Views, policy, request, spec, view

# A step of 10 ms sweeps 1e9 bytes at 2e-9 J: 200 W. A prompt of 1,000 tokens takes 0.1 s at 1e-3 J a token.
POWER = PowerParameters(
    idle_w=50.0, joule_per_byte=2e-9, joule_per_flop=1e-6, weight_bytes=1e9, flop_per_token=1e3
)


def hungry(name: str, phases: frozenset[Phase] = BOTH, **more: Any) -> BackendSpec:
    """A backend that draws 50 W idle, and 250 W with one decode."""
    return spec(name, phases, **{"power": POWER, "kv_bytes_per_token": 0.0, **more})


def drawn(of: BackendView, prompt_tokens: int = 0) -> float:
    """What one view draws."""
    return draw_w(Screen(Models(), 8).standing(of), prompt_tokens)


def plan(
    views: list[BackendView], now: float = 0.0, slo: ServiceLevel | None = None, **params: Any
) -> object:
    """One decision of a policy that knows nothing yet."""
    return policy("predicted", **params).plan(request(slo=slo or ServiceLevel()), Views(views), now)


def test_the_draw_follows_the_step_that_the_load_forms() -> None:
    """Idle power; a decode adds the sweep of the weights over its step, a prompt what it computes."""
    assert drawn(view(hungry("a"))) == 50.0
    assert drawn(view(hungry("a"), decodes=1)) == pytest.approx(50 + (2.0 + 1e-3) / 0.010)
    assert drawn(view(hungry("a")), 1000) == pytest.approx(50 + (2.0 + 1.0) / 0.100)
    assert drawn(view(hungry("a"), decodes=1), 1000) == drawn(view(hungry("a"), decodes=1))


def test_a_backend_draws_no_more_than_its_own_cap() -> None:
    """Its power parameters cap it."""
    power = PowerParameters(idle_w=50.0, joule_per_byte=2e-9, weight_bytes=1e9, cap_w=120.0)
    assert drawn(view(hungry("a", power=power), decodes=1)) == 120.0


def test_a_request_joins_who_is_awake_when_the_cap_has_no_room_for_another() -> None:
    """Without the cap the idle backend finishes it sooner."""
    busy, idle = (
        view(hungry("busy"), prefills=2, prefill_tokens=4000, decodes=2),
        view(hungry("idle")),
    )
    free = plan([busy, idle])
    assert isinstance(free, RoutePlan) and free.prefill == "idle"
    capped = plan([busy, idle], power_cap_w=drawn(busy) + 60.0)
    assert isinstance(capped, RoutePlan) and (capped.prefill, capped.decode) == ("busy", "busy")
    assert ("power_cap", ("idle",)) in [(one.reason, one.backends) for one in capped.decision.exclusions]


def test_a_request_waits_for_power_and_is_asked_again() -> None:
    """What waits says when to ask again, for a draw may fall without any fact; its record says why."""
    full = hungry("full", max_num_seqs=1)
    answer = plan([view(full, decodes=1), view(hungry("idle"))], power_cap_w=310.0)
    assert isinstance(answer, Wait) and answer.reason == "power_cap" and 0.0 < answer.until < 1.0
    assert not answer.no_room and answer.decision is not None and "power_cap" in answer.decision.reason


def test_who_waited_for_power_past_its_first_token_is_refused() -> None:
    """Its answer would help nobody and draw power; it may try again."""
    views = Views([view(hungry("full", max_num_seqs=1), decodes=1), view(hungry("idle"))])
    one = policy("predicted", power_cap_w=310.0)
    asks = request(slo=ServiceLevel(ttft_s=1.0))
    assert isinstance(one.plan(asks, views, 0.0), Wait)
    late = one.plan(asks, views, 1.5)
    assert isinstance(late, Reject) and late.retry_after_s > 0


def test_a_cap_below_what_one_request_draws_says_so() -> None:
    """Waiting would never end: nothing runs that could end."""
    answer = plan([view(hungry("a")), view(hungry("b"))], power_cap_w=110.0)
    assert isinstance(answer, Reject) and "power_cap_w" in answer.reason


def test_both_phases_of_a_split_have_to_fit_together() -> None:
    """Each alone would; where nothing else serves, the request waits."""
    views = [view(hungry("p", PREFILL)), view(hungry("d", DECODE))]
    assert isinstance(plan(views, power_cap_w=400.0), RoutePlan)
    assert isinstance(plan(views, power_cap_w=320.0), Wait)


def test_a_split_that_draws_too_much_gives_way_to_one_backend() -> None:
    """The best four places may all be splits."""
    fast = [view(hungry(f"d{i}", DECODE, step_ms=9.0)) for i in range(6)]
    answer = plan([view(hungry("both", step_ms=10.0)), *fast], power_cap_w=7 * 50 + 210.0)
    assert isinstance(answer, RoutePlan) and (answer.prefill, answer.decode) == ("both", "both")


def test_a_rack_holds_its_own_cap() -> None:
    """The other rack takes what the first has no power for."""
    first, second = hungry("a", zone="r1"), hungry("b", zone="r2", step_ms=20.0)
    free = plan([view(first), view(second)])
    assert isinstance(free, RoutePlan) and free.prefill == "a"
    capped = plan([view(first), view(second)], rack_cap_w={"r1": 100.0})
    assert isinstance(capped, RoutePlan) and (capped.prefill, capped.decode) == ("b", "b")


def test_an_objective_is_worth_the_joules_of_a_hungry_device() -> None:
    """The cheap backend is late for sure: a thousand times the joules do not count a thousand times."""
    late = view(hungry("late"), prefills=2, prefill_tokens=60_000)
    dear = view(hungry("dear", power=replace(POWER, idle_w=5e5)))
    slo = ServiceLevel(ttft_s=1.0, tpot_s=0.05)
    answer = plan([late, dear], slo=slo, objective="energy")
    assert isinstance(answer, RoutePlan) and answer.prefill == "dear"
    relaxed = plan([late, dear], slo=ServiceLevel(ttft_s=60.0, tpot_s=0.05), objective="energy")
    assert isinstance(relaxed, RoutePlan) and relaxed.prefill == "late"


def looked(caps: PowerCaps, of: BackendView, now: float) -> None:
    """One decision's look at a fleet of one."""
    caps.look(request(), Views([of]), Screen(Models(), 8), now)


def test_the_price_of_a_joule_rises_near_the_cap_and_falls_again() -> None:
    """It is bounded, so that nothing is sent where it would be late at any price."""
    caps, one = PowerCaps(260.0, {}), hungry("a")
    for second in range(100):
        looked(caps, view(one, decodes=1), float(second))
    assert 0.0 < caps.price <= HIGHEST
    high = caps.price
    for second in range(100, 103):
        looked(caps, view(one), float(second))
    assert caps.price < high
    for second in range(103, 120):
        looked(caps, view(one), float(second))
    assert caps.price == 0.0


def test_measured_power_above_the_cap_takes_room_away_until_it_is_below() -> None:
    """The law may be wrong for a device; its energy counter is not. Counters that are none change nothing."""
    caps, one = PowerCaps(300.0, {}), hungry("a")
    room = caps.over(one)[0]
    caps.observe(BackendJoined(one, "boot"), 0.0)

    def report(at: float, joules: float) -> None:
        caps.observe(BackendReported("a", BackendSnapshot(observed_at=at, energy_j=joules)), at)
        looked(caps, view(one, decodes=1), at)

    report(0.0, 0.0)
    report(MEASURED_S, 300.0 * MEASURED_S)
    assert room.margin == 1.0
    report(2 * MEASURED_S, 700.0 * MEASURED_S)
    report(2 * MEASURED_S + 0.1, float("nan"))
    low = room.margin
    assert 0.5 <= low < 1.0
    for i in range(3, 30):
        report(i * MEASURED_S, (600.0 + 50 * i) * MEASURED_S)
    assert low < room.margin == 1.0


@pytest.mark.parametrize("racks", [3, {"r": 0}, {"r": "much"}, {"r": float("nan")}])
def test_a_rack_cap_that_is_no_power_is_refused(racks: object) -> None:
    """The message names the key."""
    with pytest.raises(ConfigError, match="rack_cap_w"):
        build("predicted", {"rack_cap_w": racks}, Models(), Random(1))


def test_a_policy_without_a_cap_has_no_limits() -> None:
    """0 is no cap; priced hands its own on."""
    assert isinstance(policy("predicted"), Predicted)
    assert caps_in(policy("predicted")) is None
    assert FLEET in caps_in(policy("predicted", power_cap_w=9.0))  # type: ignore[operator]


def caps_in(of: object) -> object:
    """The limits of a policy."""
    caps = of._caps  # type: ignore[attr-defined]
    return None if caps is None else caps._limits


CAP_W = 1500.0


def ran(cap_w: float) -> SimResult:
    """Twelve seconds of chat on fast and slow GPUs, with load reports a second old."""
    who = Contestant(
        "capped", lambda given: build("predicted", {"power_cap_w": cap_w}, given.models, given.rng)
    )
    fleet, stale = load_fleet("fast-slow"), Network(report_every_s=1.0, heartbeat_s=2.0)
    chat = replace(load_workload("chat"), duration_s=12.0, requests=None)
    return simulate(fleet, chat, who, 1, rate_scale=9.0, network=stale, stop_when_unstable=False)


def most_w(result: SimResult, over_s: float = 10.0) -> float:
    """The highest mean power of the fleet over any ten seconds, by the workers' own energy counters."""
    steps = round(over_s / result.timeline.step_s)
    fleet: list[float] = [sum(each) for each in zip(*result.timeline.power_w.values(), strict=True)]
    means = [sum(fleet[i : i + steps]) / steps for i in range(len(fleet) - steps + 1)]
    return max(means)


def test_a_simulated_fleet_stays_below_its_cap_with_old_reports() -> None:
    """Within 2 % over any ten seconds, where it draws far more without, and none is the worse for it."""
    free, capped = ran(0.0), ran(CAP_W)
    assert most_w(free) > 1.2 * CAP_W
    assert most_w(capped) <= 1.02 * CAP_W
    assert free.attainment > 0.99 and capped.attainment > 0.99
