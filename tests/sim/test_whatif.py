"""Recordings as material: replays prove determinism, fidelity is stated, and what is close is not ranked."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from router.errors import ConfigError
from router.model import PhaseTimes, Report
from router.observe.codec import RecordingError
from router.sim.contest import contestant
from router.sim.network import Network, beyond, spread_of
from router.sim.recorded import Recorded, read_recording
from router.sim.recorded_workload import is_recording, workload_of_recording
from router.sim.run import simulate
from router.sim.whatif import Candidate, Fidelity, Row, WhatIf, delays, rank
from router.sim.workload import bundled_trace
from router.sim.world import World
from tests.sim.recordings import LATE, record
from tests.sim.sets import fleet


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a machine with varying delays."""
    network = Network(one_way_s=0.001, up=LATE, pull=LATE)
    return record(tmp_path_factory.mktemp("recording") / "r.jsonl", requests=600, network=network)


@pytest.fixture(scope="module")
def recorded(recording: Path) -> Recorded:
    """It, read."""
    return read_recording(recording)


def test_a_recording_replays_to_the_same_actions_and_gives_fleet_arrivals_and_lengths(
    recorded: Recorded,
) -> None:
    """Everything that a simulation needs is in it, and the measurement besides."""
    assert recorded.replayed.same
    assert [spec.id for spec in recorded.specs] == [spec.id for spec in fleet().backends]
    assert len(recorded.arrivals) == len(recorded.measured) == 600
    assert recorded.guessed == 0
    lengths = recorded.lengths()
    assert all(lengths[r.request.id] == r.usage.output_tokens for r, _ in recorded.measured)


def test_another_policy_is_found_out_by_the_replay(recording: Path, tmp_path: Path) -> None:
    """The first difference is named."""
    text = recording.read_text().replace('\\"predicted\\"', '\\"round_robin\\"', 1)
    (other := tmp_path / "other.jsonl").write_text(text)
    result = read_recording(other).replayed
    assert not result.same
    assert result.first_difference is not None
    assert result.first_difference.fact == "RequestArrived"


def test_delays_are_measured_on_half_and_fidelity_is_judged_on_the_rest(recorded: Recorded) -> None:
    """With the measured delays the simulation is within a few percent; without them it is not."""
    measured = WhatIf(recorded).fidelity()
    assert measured.calibrated_on > 200
    assert measured.requests + measured.calibrated_on <= 600
    # At least 2 ms there and back, and what the machine takes at the least.
    assert 0.001 <= measured.network.one_way_s <= 0.002
    assert _typical_error(measured) < 0.05
    assert measured.error < 0.2  # a p99 of 300 requests is that of three of them
    blind = WhatIf(recorded, Network(one_way_s=0.0)).fidelity()
    assert blind.calibrated_on == 0
    assert _typical_error(blind) > 2 * _typical_error(measured)


def _typical_error(fidelity: Fidelity) -> float:
    """Of p50 and p90 of what a caller sees."""
    rows = [row for row in fidelity.rows if row.name in ("ttft", "tpot", "e2e")]
    return max(abs(row.error) for row in rows if row.statistic in ("p50", "p90"))


def test_candidates_are_ranked_only_when_they_differ_by_more_than_the_error(recorded: Recorded) -> None:
    """The policy as recorded and itself under another name share a rank; round robin has one of its own."""
    what_if = WhatIf(recorded)
    fidelity = what_if.fidelity()
    candidates = [Candidate(contestant("predicted", "twin")), Candidate(contestant("round_robin"))]
    answer = what_if.ask(candidates, fidelity, "e2e_mean_s")
    ranks = {one.label: one.rank for one in answer.standings}
    assert ranks["as recorded"] == ranks["twin"] == 1
    assert ranks["round_robin"] == 3
    assert answer.told_apart
    assert json.dumps(answer.as_dict())


def test_another_fleet_can_be_asked_about(recorded: Recorded) -> None:
    """The same arrivals on four equal GPUs: slower tokens than on the pipeline of the recorded fleet."""
    what_if = WhatIf(recorded)
    gpus = Candidate(contestant("predicted"), "homogeneous", fleet("homogeneous").backends)
    answer = what_if.ask([gpus], what_if.fidelity(), "tpot_p50_s")
    assert [one.label for one in answer.standings] == ["as recorded", "predicted on homogeneous"]
    with pytest.raises(ConfigError, match="no metric 'speed'"):
        what_if.ask([], what_if.fidelity(), "speed")


def test_what_happened_to_the_fleet_happens_again(tmp_path: Path) -> None:
    """A worker was lost: in the simulation it is lost at the same time; unanswered lengths are guessed."""

    def lose(world: World) -> None:
        world.at(2.0, lambda: world.kill("lpu"))
        world.cancel(3.0, "chat-40")

    found = read_recording(record(tmp_path / "r.jsonl", requests=200, happen=lose))
    assert found.replayed.same
    assert [type(change.fact).__name__ for change in found.changes] == ["BackendLost"]
    fidelity = WhatIf(found, Network()).fidelity()
    assert fidelity.guessed == sum(report.finish is None for report, _ in found.measured)
    assert fidelity.error < 0.1


def test_a_damaged_recording_is_refused(recording: Path, tmp_path: Path) -> None:
    """No head, a head without the core's origin, no file at all."""
    lines = recording.read_text().splitlines(keepends=True)
    (headless := tmp_path / "headless.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(RecordingError, match="does not begin like a recording"):
        read_recording(headless)
    with pytest.raises(ConfigError, match="there is no recording"):
        read_recording(tmp_path / "absent.jsonl")
    (gap := tmp_path / "gap.jsonl").write_text("".join([*lines[:50], *lines[60:]]))
    with pytest.raises(RecordingError, match="lines are missing"):
        read_recording(gap)


def test_spreads_draw_what_was_measured() -> None:
    """Quantiles in, quantiles out; what comes on top of a part has the difference of the means."""
    rng = Random(1)
    values = [rng.expovariate(100.0) for _ in range(2000)]
    spread = spread_of(values)
    assert spread is not None
    drawn = sorted(spread.draw(rng) for _ in range(4000))
    ordered = sorted(values)
    assert drawn[2000] == pytest.approx(ordered[1000], rel=0.1)
    assert sum(drawn) / 4000 == pytest.approx(sum(values) / 2000, rel=0.1)
    twice = spread_of([2 * value for value in values])
    assert twice is not None
    assert beyond(twice, spread).quantiles == pytest.approx(spread.quantiles)
    assert spread_of([]) is None


def test_too_few_requests_measure_no_delays(recorded: Recorded) -> None:
    """Forty-nine are not enough."""
    some = [report for report, _ in recorded.measured][:49]
    assert delays(some, some) is None


def test_a_recording_is_a_workload_too(recording: Path, recorded: Recorded) -> None:
    """The same requests at the same times, for simulations at other loads; a trace is no recording."""
    assert is_recording(recording)
    assert not is_recording(bundled_trace("azure"))
    workload = workload_of_recording(recording)
    (kind,) = workload.classes
    result = simulate(fleet("homogeneous"), workload, contestant("predicted"), rate_scale=2.0)
    assert kind.name == "chat"
    assert result.ok == 600
    assert result.output_tokens == sum(report.usage.output_tokens for report, _ in recorded.measured)
    assert result.offered_s == pytest.approx(recorded.arrivals[-1][0] / 2.0)


def test_shares_of_a_rank_follow_from_the_error() -> None:
    """1.00 and 1.04 cannot be told apart at 5 %, 1.06 can; higher is better for goodput."""
    found = [("a", 1.0, ()), ("b", 1.04, ()), ("c", 1.06, ())]
    assert [one.rank for one in rank(found, "e2e_mean_s", 0.05)] == [1, 1, 3]
    assert [one.label for one in rank(found, "goodput_per_s", 0.001)] == ["c", "b", "a"]


def test_the_error_is_that_of_the_worst_percentile_of_what_a_caller_sees() -> None:
    """Phases are shown, but do not count; a mean does not count."""
    rows = (Row("prefill", "p50", 1.0, 2.0), Row("ttft", "mean", 1.0, 2.0), Row("ttft", "p99", 1.0, 0.9))
    fidelity = Fidelity(10, 10, 10, 0, Network(), 0, rows)
    assert fidelity.error == pytest.approx(0.1)


def test_reports_read_back_from_a_replay_are_whole(recorded: Recorded) -> None:
    """Their phases add up: they are the core's own."""

    def whole(report: Report) -> float:
        times: PhaseTimes = report.times
        return times.queue_s + times.prefill_s + times.handoff_s + times.decode_s

    assert all(whole(report) == pytest.approx(report.times.e2e_s) for report, _ in recorded.measured)
