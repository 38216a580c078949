"""The whole router in virtual time, on mock workers whose true speed changes while they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from backends.catalogue import load_fleet
from backends.models.estimate import scaled
from backends.models.laws import StepModels, law_of
from backends.models.tracking import TrackedModels
from policies.registry import build
from router.core.core import RouterCore
from router.core.messages import (
    Action,
    BackendRemoved,
    BackendReported,
    DecodeDone,
    Fact,
    PrefillDone,
    StartDecode,
    StartPrefill,
)
from router.core.ports import ModelSource
from router.model import BackendSpec, Phase, Report, Request
from router.observe.metrics import Metrics
from router.observe.record import Recorder
from router.observe.replay import replay
from router.sim.world import World

MODEL = "llama-3.1-8b"
CHANGE_S = 20.0
RATE = 20.0


def core_on(models: ModelSource, policy: str = "predicted") -> RouterCore:
    """A core whose policy, fallback and bounds share the models."""
    return RouterCore(
        build(policy, {}, models, Random(1)), build("round_robin", {}, models, Random(2)), models
    )


def set_speed(world: World, backend: str, factor: float) -> None:
    """From its next step on, a mock takes so many times as long; it says nothing of it."""
    machine: Any = next(w.machine for w in world.workers if w.machine.spec.id == backend)
    machine._engine._tariff._law = law_of(scaled(machine.spec, (factor,) * 5))


class Watch:
    """Counts what runs where after the change, and says when the victim's phases reached a number."""

    def __init__(self, core: RouterCore, victim: str, phases: int = 200) -> None:
        self.share: Counter[str] = Counter()
        self.after: dict[Phase, float] = {}
        self.phases = 0
        self._core = core
        self._victim = victim
        self._wanted = phases
        self._place: dict[str, str] = {}
        self.models: TrackedModels | None = None

    def seen(self, fact: Fact | None, now: float, actions: Sequence[Action]) -> None:
        """A tap."""
        for action in actions:
            if isinstance(action, StartPrefill | StartDecode):
                self._place[action.request_id] = action.backend
                if isinstance(action, StartPrefill) and now > CHANGE_S:
                    self.share[action.backend] += 1
        if isinstance(fact, PrefillDone | DecodeDone) and now > CHANGE_S:
            self.phases += self._place[fact.request_id] == self._victim
            if self.phases == self._wanted and not self.after and self.models is not None:
                known = self._core.fleet.find(self._victim)
                assert known is not None
                self.after = dict(self.models.drift(known.spec))


def world_of(
    core: RouterCore, specs: Sequence[BackendSpec], taps: Sequence[Any], requests: int, seed: int = 5
) -> World:
    """A fleet under Poisson traffic of chats; the true length is in the request's name."""
    rng, at = Random(seed), 0.0
    world = World(core, specs, lambda request: int(request.id.split("-")[1]), seed=3, taps=taps)
    for i in range(requests):
        at += rng.expovariate(RATE)
        request = Request(f"r{i}-{rng.randint(20, 300)}", MODEL, rng.randint(200, 3000), 512, at + 300.0)
        world.arrive(at, request)
    return world


def homogeneous(count: int = 2) -> tuple[BackendSpec, ...]:
    """Equal GPUs."""
    return load_fleet("homogeneous").backends[:count]


def without_counts(core: RouterCore) -> None:
    """Let workers count no regressors, as engines that are not ours may not."""
    handle = core.handle
    nothing = {"steps": 0, "decode_sequences": 0, "context_tokens": 0.0, "prefill_tokens": 0}

    def handle_less(fact: Fact, now: float) -> Sequence[Action]:
        if isinstance(fact, BackendReported):
            snapshot = replace(fact.snapshot, attention_pairs=0.0, **nothing)
            fact = BackendReported(fact.backend, snapshot)
        return handle(fact, now)

    core.handle = handle_less  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "phases only"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_mock_whose_speed_changes_is_tracked(factor: float, counted: bool) -> None:
    """Twofold in mid-run: known to 10 % after 200 phases, by what it counts or by its phases alone."""
    models, specs = TrackedModels(), homogeneous()
    core = core_on(models, "round_robin")
    if not counted:
        without_counts(core)
    watch = Watch(core, specs[0].id)
    watch.models = models
    world = world_of(core, specs, [watch], 700)
    before: dict[Phase, float] = {}

    def change() -> None:
        before.update(models.drift(specs[0]))
        set_speed(world, specs[0].id, factor)

    world.at(CHANGE_S, change)
    world.run()
    assert len(world.reports) == 700
    assert watch.phases >= 200
    for phase in Phase:
        assert before[phase] == pytest.approx(1.0, abs=0.1)
        assert watch.after[phase] == pytest.approx(factor, rel=0.1)
        assert models.drift(specs[1])[phase] == pytest.approx(1.0, abs=0.1)


def placed_after_change(models: ModelSource) -> tuple[Counter[str], list[Report]]:
    """Where prefills go on two equal GPUs, one of which becomes three times as slow."""
    specs = homogeneous()
    core = core_on(models)
    watch = Watch(core, specs[0].id)
    world = world_of(core, specs, [watch], 1000)
    world.at(CHANGE_S, lambda: set_speed(world, specs[0].id, 3.0))
    world.run()
    return watch.share, world.reports


def test_decisions_follow_the_tracked_models() -> None:
    """The slow GPU gets less than it does by its profile alone, and requests are faster for it."""
    slow, fast = (spec.id for spec in homogeneous())
    blind, blind_reports = placed_after_change(StepModels())
    seeing, seeing_reports = placed_after_change(TrackedModels())
    assert seeing[slow] < 0.8 * blind[slow]
    assert seeing[slow] < 0.3 * seeing[fast]
    late = [sum(r.times.e2e_s for r in reports[500:]) for reports in (seeing_reports, blind_reports)]
    assert late[0] < 0.9 * late[1]


def test_a_fleet_of_every_kind_stays_as_declared() -> None:
    """Where mocks run at the speed of their profiles, nothing is learned that is not so."""
    specs, models = load_fleet("mixed").backends, TrackedModels()
    world = world_of(core_on(models), specs, [], 600)
    world.run()
    for spec in specs:
        drift = models.drift(spec)
        assert drift.keys() == spec.phases
        for phase, ratio in drift.items():
            assert ratio == pytest.approx(1.0, abs=0.08), (spec.id, phase)


def test_a_replay_rebuilds_the_models(tmp_path: Path) -> None:
    """Decisions depend on what was learned, and the recording of facts is enough to make them again."""
    specs, models = homogeneous(), TrackedModels()
    path = tmp_path / "run.jsonl"
    recorder = Recorder(path)
    world = world_of(core_on(models), specs, [recorder], 500)
    world.at(5.0, lambda: set_speed(world, specs[0].id, 2.0))
    world.run()
    assert recorder.close()
    lines = path.read_text().splitlines(keepends=True)
    again: list[TrackedModels] = []

    def fresh() -> RouterCore:
        again.append(TrackedModels())
        return core_on(again[-1])

    assert replay(lines, fresh).same
    assert models.ratios(specs[0].id) == again[0].ratios(specs[0].id) != (1.0,) * 5
    assert not replay(lines, lambda: core_on(StepModels())).same


def test_drift_is_a_metric_that_leaves_with_its_backend() -> None:
    """Ratios by phase and by kind of work while the backend is there, and no series after it."""
    specs, models, registry = homogeneous(), TrackedModels(), CollectorRegistry()
    metrics = Metrics(registry, learning=models)
    core = core_on(models)
    world = world_of(core, specs, [metrics], 400)
    set_speed(world, specs[0].id, 2.0)
    world.run()
    labels = {"backend": specs[0].id, "kind": "gpu"}
    for phase in Phase:
        drift = registry.get_sample_value("polyphase_backend_model_drift_ratio", {**labels, "phase": phase})
        assert drift == pytest.approx(2.0, rel=0.1)
    fits = [
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "polyphase_backend_model_fit_ratio" and sample.labels["backend"] == specs[0].id
    ]
    assert fits
    assert fits == pytest.approx([1.0] * len(fits), abs=0.15)
    gone = BackendRemoved(specs[0].id)
    metrics.seen(gone, world.now, core.handle(gone, world.now))
    named = {sample.labels.get("backend") for family in registry.collect() for sample in family.samples}
    assert specs[0].id not in named
    assert specs[1].id in named
