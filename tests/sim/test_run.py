"""Whole simulations: what they find, that they end, and that they find the same again."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from router.errors import ConfigError
from router.model import ServiceLevel
from router.sim.classes import AtOnce, InFlight, Renewal, SessionShape
from router.sim.contest import contestant
from router.sim.draws import Fixed
from router.sim.experiment import Plan, carry_out
from router.sim.page.page import page
from router.sim.run import Failure, Progress, simulate
from tests.sim.sets import a_class, fleet, workload

PREDICTED = contestant("predicted")

SCRIPT = """
import hashlib, json, sys
from router.sim.contest import contestant
from router.sim.experiment import Plan, carry_out
from router.sim.page.page import page
from tests.sim.sets import a_class, fleet, workload
from router.sim.classes import Renewal, SessionShape
from router.sim.draws import Uniform
from router.model import ServiceLevel

mix = workload(
    a_class("chat", Renewal(10.0)),
    a_class("agents", Renewal(1.0, 3.0), session=SessionShape(Uniform(2, 5), Uniform(0, 2), True, 64)),
    a_class("voice", Renewal(2.0), slo=ServiceLevel(jitter_ratio=1.5)),
    requests=120,
)
policies = tuple(map(contestant, ("predicted", "scored", "round_robin")))
found = carry_out(Plan(fleet(), mix, policies, (1,)))
text = json.dumps(found.as_dict()) + page(found)
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_same_seed_gives_the_same_report_byte_for_byte_in_another_process() -> None:
    """Neither the hash seed of the interpreter nor the order of sets reaches a result."""
    digests = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in sys.path if p)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "4711")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def test_every_request_ends_and_is_counted_once() -> None:
    """By class, by backend and by pair the same total."""
    result = simulate(fleet(), workload(a_class(), a_class("code", Renewal(3.0))), PREDICTED)
    assert result.arrived == result.ok == 200
    assert sum(one.arrived for one in result.classes) == 200
    assert sum(one.prefills for one in result.backends) == 200
    assert sum(one.decodes for one in result.backends) == 200
    assert sum(flow.requests for flow in result.flows) == 200
    assert result.output_tokens == sum(one.output_tokens for one in result.backends)
    assert len(result.fates) == 200
    assert not result.stopped


def test_phases_add_up_and_energy_includes_idling() -> None:
    """Means of queue, prefill, handoff and decode add up to that of the whole; idle backends draw power."""
    result = simulate(fleet("homogeneous"), workload(), PREDICTED)
    parts = sum(result.times(name).total for name in ("queue", "prefill", "handoff", "decode"))
    assert parts == pytest.approx(result.times("e2e").total, rel=1e-6)
    idle = sum(spec.power.idle_w for spec in fleet("homogeneous").backends) * result.duration_s
    assert result.energy_j > idle > 0
    rent = sum(spec.usd_per_hour for spec in fleet("homogeneous").backends) * result.duration_s / 3600
    assert result.rent_usd == pytest.approx(rent)


def test_the_timeline_agrees_with_the_totals() -> None:
    """Shares of device time, integrated, are the busy times; power, integrated, is the energy."""
    result = simulate(fleet(), workload(requests=400), PREDICTED)
    line = result.timeline
    for phase, field in (("prefill", "busy_prefill_s"), ("decode", "busy_decode_s")):
        sizes = {g: sum(b.group == g for b in result.backends) for g in {b.group for b in result.backends}}
        seen = sum(
            sum(values) * line.step_s * sizes[group] for (group, p), values in line.busy.items() if p == phase
        )
        assert seen == pytest.approx(sum(getattr(b, field) for b in result.backends), rel=0.05, abs=0.1)
    power = sum(sum(values) * line.step_s for values in line.power_w.values())
    assert power == pytest.approx(result.energy_j, rel=0.05)
    assert max(line.live) > 0
    # A step is booked when it is over, so a single sample may exceed its length; their mean may not.
    assert all(sum(values) / len(values) <= 1.02 for values in line.busy.values())


def test_objectives_are_judged_one_by_one() -> None:
    """An objective that nothing meets fails alone; the others are counted as met."""
    hard = a_class(slo=ServiceLevel(ttft_s=1e-6, tpot_s=10.0), deadline_s=100.0)
    (one,) = simulate(fleet(), workload(hard), PREDICTED).classes
    assert one.kept == {"ttft": (0, 200), "tpot": (200, 200), "deadline": (200, 200)}
    assert one.met == 0
    assert one.ok == 200


def test_jitter_is_measured_token_by_token_where_it_is_asked_for() -> None:
    """The other times are the same as without looking at every token, by a policy that ignores objectives."""
    asked, policy = a_class(slo=ServiceLevel(1.0, 0.05, 1.5)), contestant("least_loaded")
    watched = simulate(fleet("homogeneous"), workload(asked), policy)
    blind = simulate(fleet("homogeneous"), workload(), policy)
    (one,) = watched.classes
    assert one.times["jitter"].count == 200
    assert one.times["itl"].count == one.output_tokens - one.ok
    assert 1.0 <= one.times["jitter"].quantile(0.5) < 3.0
    assert "jitter" in one.kept
    for name in ("ttft", "tpot", "e2e"):
        assert watched.times(name).summary() == blind.times(name).summary()


def test_two_policies_see_the_same_arrivals_and_are_compared_on_them() -> None:
    """The same requests with the same lengths; differences have intervals over the seeds."""
    policies = (PREDICTED, contestant("round_robin"))
    found = carry_out(Plan(fleet(), workload(requests=150), policies, (1, 2, 3)))
    assert len(found.results) == 6
    (comparison,) = found.comparisons
    by_name = {one.metric: one for one in comparison.differences}
    assert comparison.sampled == 150
    assert by_name["e2e_mean_s"].better is False  # round robin also decodes on the slowest backend
    assert by_name["e2e_mean_s"].change.half_width is not None
    assert comparison.worst[0].ratio >= comparison.worst[-1].ratio > 1.0
    tokens = {run.policy: run.output_tokens for run in found.results if run.seed == 2}
    assert len(set(tokens.values())) == 1


def test_an_agents_prefix_is_cached_where_it_went_before() -> None:
    """Sessions that grow on one backend compute each block once: less device time than without a past."""
    shape = SessionShape(turns=Fixed(6), pause_s=Fixed(0.5), grows=True, shared_prefix_tokens=2048)
    one_backend = fleet("homogeneous").backends[:1]
    grows = a_class(arrivals=AtOnce(1), session=shape)
    cached = simulate(one_backend, workload(grows, requests=None), PREDICTED)
    prompt_tokens = sum(one.prompt_tokens for one in cached.classes)
    alone = workload(a_class(arrivals=AtOnce(1), prompt=prompt_tokens // 6), requests=6)
    many = dataclasses.replace(alone.classes[0], arrivals=AtOnce(6))
    fresh = simulate(one_backend, workload(many, requests=None), PREDICTED)
    assert cached.arrived == fresh.arrived == 6
    assert cached.backends[0].busy_prefill_s < 0.7 * fresh.backends[0].busy_prefill_s


def test_a_fleet_that_cannot_serve_the_model_is_refused_with_the_reason() -> None:
    """Nothing is simulated."""
    with pytest.raises(ConfigError, match=r"class 'chat': no backend of the fleet serves model 'gpt-9'"):
        simulate(fleet(), workload(a_class(model="gpt-9")), PREDICTED)
    prefill_only = [spec for spec in fleet("gpu-lpu").backends if spec.id.startswith("h100")]
    with pytest.raises(ConfigError, match="no backend offers decode"):
        simulate(prefill_only, workload(), PREDICTED)


def test_a_load_above_capacity_ends_with_the_reason() -> None:
    """Ten thousand requests a second on one GPU: the run stops early and says what it saw."""
    heavy = workload(a_class(arrivals=Renewal(400.0), prompt=4000), requests=200_000)
    result = simulate(fleet("homogeneous").backends[:1], heavy, contestant("least_loaded"))
    assert "above what the fleet does" in result.stopped
    assert result.arrived < 100_000


def test_a_burst_is_no_overload() -> None:
    """Many requests at one moment make a backlog that shrinks: the run goes to its end."""
    burst = workload(a_class(arrivals=AtOnce(800), deadline_s=600.0), requests=None)
    result = simulate(fleet("homogeneous"), burst, PREDICTED)
    assert not result.stopped
    assert result.arrived == 800


def test_a_closed_loop_is_no_overload() -> None:
    """Callers wait for their answers: however many there are, the load follows the fleet."""
    loop = workload(a_class(arrivals=InFlight(200)), requests=1500)
    result = simulate(fleet("homogeneous"), loop, PREDICTED)
    assert not result.stopped
    assert result.ok == 1500


def test_a_backend_that_dies_costs_its_requests_and_comes_back_empty() -> None:
    """What was in decode there fails with a reason, what had no token yet goes elsewhere."""
    mix = workload(a_class(arrivals=Renewal(30.0)), requests=600)
    result = simulate(
        fleet("homogeneous"), mix, contestant("least_loaded"), failures=[Failure("h100-1", 5.0, 5.0)]
    )
    assert set(result.failures) <= {"BACKEND_LOST", "RETRIES_EXHAUSTED"}
    assert result.arrived == 600
    assert result.ok + sum(result.failures.values()) == 600
    assert result.failures.get("BACKEND_LOST", 0) + result.retries > 0
    lost = next(one for one in result.backends if one.id == "h100-1")
    assert lost.decodes > 0
    assert lost.busy_decode_s > 0
    assert len(result.backends) == 4
    with pytest.raises(ConfigError, match="no backend 'h100-9' can fail"):
        simulate(fleet("homogeneous"), mix, PREDICTED, failures=[Failure("h100-9", 5.0)])


def test_progress_is_told() -> None:
    """Shares grow to the end."""
    heard: list[Progress] = []
    simulate(fleet(), workload(requests=1500), PREDICTED, progress=heard.append)
    assert [one.requests for one in heard] == [500, 1000, 1500]
    assert heard[-1].share == 1.0


def test_goodput_counts_while_requests_come_and_done_counts_the_drain_too() -> None:
    """The second is what bounds on capacity are compared with."""
    result = simulate(fleet(), workload(), PREDICTED)
    assert result.goodput_per_s == pytest.approx(result.attainment * result.offered_per_s)
    assert result.done_per_s <= result.goodput_per_s
    assert result.offered_s <= result.duration_s


def test_the_page_is_one_file_that_needs_nothing_else() -> None:
    """No address, no script, nothing from elsewhere; names are escaped; every picture is well formed."""
    import re
    from xml.etree import ElementTree

    named = dataclasses.replace(workload(a_class("<b>&chat")), name="a<i>&b")
    policies = (PREDICTED, contestant("round_robin"))
    found = carry_out(Plan(fleet(), named, policies, (1, 2), rate_scales=(1.0, 2.0)))
    text = page(found)
    assert not re.search(r"https?:|<script|<link|url\(|@import", text)
    assert "<b>&chat" not in text
    pictures = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(pictures) > 15
    for picture in pictures:
        ElementTree.fromstring(picture)  # noqa: S314 - made here, a moment ago
    assert "nan" not in text.lower().replace("nanosecond", "")
    assert json.loads(json.dumps(found.as_dict()))["runs"]
