"""B4 knows what no policy knows, and uses it; the recorder sees what came and changes nothing."""

from __future__ import annotations

from backends.catalogue import load_fleet
from router.model import ServiceLevel
from router.plan.clairvoyant import LIMITS, clairvoyants
from router.plan.ladder import Question, climb
from router.plan.recording import recorded
from router.sim.classes import DrawnLengths, Renewal, Workload, WorkloadClass
from router.sim.contest import contestant
from router.sim.draws import Fixed, Uniform
from router.sim.run import simulate

MODEL = "llama-3.1-8b"


def workload(rate: float, requests: int) -> Workload:
    """Short and long answers in one class, so that means say little."""
    chat = WorkloadClass(
        "chat",
        Renewal(rate),
        DrawnLengths(Uniform(200, 2000), Uniform(1, 400)),
        MODEL,
        slo=ServiceLevel(0.5, 0.03),
        deadline_s=30.0,
    )
    return Workload("mix", (chat,), requests=requests)


def test_clairvoyants_serve_more_under_overload() -> None:
    """With lengths known, due times kept and the hopeless given up."""
    specs, load = load_fleet("homogeneous").backends, workload(rate=130.0, requests=900)
    online = simulate(specs, load, contestant("predicted"), 1, stop_when_unstable=False)
    best = max(
        simulate(specs, load, one, 1, limits=LIMITS, stop_when_unstable=False).met for one in clairvoyants()
    )
    assert online.met < 0.9 * online.arrived
    assert best > online.met


def test_a_clairvoyant_loses_no_request_to_its_order() -> None:
    """Earliest due first holds others back, and still everybody is served where there is room."""
    for one in clairvoyants():
        result = simulate(load_fleet("fast-slow").backends, workload(20.0, 200), one, 1, limits=LIMITS)
        assert (result.ok, result.policy_faults) == (200, 0)


def test_recording_changes_nothing_and_keeps_true_lengths() -> None:
    """The same run, and the tasks of its requests."""
    specs, load = load_fleet("fast-slow").backends, workload(20.0, 100)
    plain = simulate(specs, load, contestant("least_loaded"), 3)
    listened, recording = recorded(contestant("least_loaded"))
    assert simulate(specs, load, listened, 3).as_dict() == plain.as_dict()
    tasks = recording.tasks()
    assert len(tasks) == 100
    assert sum(one.task.output_tokens for one in tasks) == plain.output_tokens
    assert {one.task.ttft_s for one in tasks} == {0.5}


def test_requests_refused_on_arrival_are_recorded_too() -> None:
    """The bound is over all that came, not over what was let in."""
    one = WorkloadClass("c", Renewal(10.0), DrawnLengths(Fixed(50_000), Fixed(10)), MODEL, deadline_s=0.01)
    listened, recording = recorded(contestant("predicted"))
    result = simulate(load_fleet("homogeneous").backends, Workload("w", (one,), requests=20), listened, 1)
    assert result.failures == {"DEADLINE_INFEASIBLE": 20}
    assert len(recording.tasks()) == 20


def test_the_ladder_is_in_order() -> None:
    """online <= clairvoyant <= B2 <= B1 <= offered, and the ratios say how near."""
    question = Question(
        load_fleet("homogeneous").backends[:1], workload(130.0, 400), contestant("predicted"), window_s=1.0
    )
    ladder = climb(question)
    found = {rung.name: rung.requests for rung in ladder.rungs}
    assert list(found) == ["online", "clairvoyant", "B2", "B1"]
    assert found["online"] < found["clairvoyant"] <= found["B2"] <= found["B1"] <= ladder.offered == 400
    assert ladder.ratio("clairvoyant", "B2") == found["clairvoyant"] / found["B2"]
    assert ladder.as_dict()["capacity"]["requests_per_s"] > 0
