"""Tracked models against a made-up worker of known speed: changes, outliers, restarts, bad reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.models.laws import law_of
from backends.models.tracking import TrackedModels
from router.core.messages import BackendJoined, BackendLost, BackendRemoved, BackendReported
from router.core.ports import LearningModels, ModelSource
from router.model import (
    BackendSnapshot,
    BackendSpec,
    Phase,
    PhaseCost,
    PhaseSample,
    SchedulerKind,
    StepParameters,
)
from tests.tracking.plant import (
    H100,
    Load,
    Plant,
    anything,
    backend,
    decoding,
    mixing,
    prefilling,
)


def tracked(
    spec: BackendSpec | None = None, seed: int = 0, noise: float = 0.02
) -> tuple[TrackedModels, Plant]:
    """A source and a worker that joined."""
    models = TrackedModels()
    return models, Plant(models, spec or backend(), seed, noise)


def test_it_is_a_source_of_models_that_learns() -> None:
    """The ports, structurally."""
    models = TrackedModels()
    source: ModelSource = models
    learning: LearningModels = models
    assert isinstance(learning, LearningModels)
    assert source(backend()).prefill_s(1000) == law_of(backend()).prefill_s(1000)


# --- following -------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [anything, decoding, mixing])
@pytest.mark.parametrize("factor", [0.5, 1.3, 2.0, 6.0])
def test_a_change_of_speed_is_followed(load: Callable[[Random], Load], factor: float) -> None:
    """Within 40 intervals every reference time is right to 10 %, and 200 later to 6 %, whatever the work."""
    _, plant = tracked()
    plant.run(200, load)
    plant.becomes(factor)
    assert plant.error() > 0.2
    plant.run(40, load)
    assert plant.error() < 0.1
    plant.run(200, load)
    assert plant.error() < 0.06


def test_prefills_alone_tell_of_decodes_as_well() -> None:
    """Nothing decodes on a backend that became twice as slow; its decodes are expected to be, to 15 %."""
    models, plant = tracked()
    plant.run(200, prefilling)
    plant.becomes(2.0)
    plant.run(40, prefilling)
    assert models.drift(plant.spec)[Phase.PREFILL] == pytest.approx(2.0, rel=0.03)
    assert models.drift(plant.spec)[Phase.DECODE] == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("ratios", [(1.0, 1.0, 1.0, 2.0, 2.0), (2.0, 1.5, 3.0, 1.0, 1.0)])
def test_a_change_of_one_phase_is_not_put_on_the_other(ratios: tuple[float, ...]) -> None:
    """Compute is throttled and memory is not, or the other way round."""
    models, plant = tracked()
    plant.run(200)
    plant.becomes(*ratios)
    plant.run(60)
    assert plant.error() < 0.1
    slow, same = (Phase.PREFILL, Phase.DECODE) if ratios[3] > 1 else (Phase.DECODE, Phase.PREFILL)
    drift = models.drift(plant.spec)
    assert drift[slow] > 1.8
    assert drift[same] == pytest.approx(1.0, abs=0.08)


def test_a_slow_drift_is_followed_without_a_jump() -> None:
    """Half a per cent every 10 intervals, up to 1.5 times: never more than 5 % behind."""
    _, plant = tracked()
    plant.run(200)
    worst, factor = 0.0, 1.0
    while factor < 1.5:
        factor *= 1.005
        plant.becomes(factor)
        plant.run(10)
        worst = max(worst, plant.error())
    assert worst < 0.05


def test_the_saturating_term_goes_with_the_base() -> None:
    """A mixture of experts becomes twice as slow at batches of every size."""
    spec = backend(step=replace(H100, saturating_s=5e-3, saturation_tokens=20.0))
    _, plant = tracked(spec)
    plant.becomes(2.0)
    plant.run(100, decoding)
    for batch in (1, 8, 64):
        truth = plant.truth.decode_step_s(batch, 1000 * batch)
        assert plant.law.decode_step_s(batch, 1000 * batch) == pytest.approx(truth, rel=0.03)


@pytest.mark.parametrize("scheduler", list(SchedulerKind))
def test_every_kind_of_scheduler_is_as_declared_until_it_changes(scheduler: SchedulerKind) -> None:
    """No drift where there is none, and twice the time where there is; by steps of one kind."""
    spec = backend(scheduler=scheduler, max_num_seqs=64)
    models = TrackedModels()
    plant = Plant(models, spec, noise=0.01)
    one = scheduler is SchedulerKind.SINGLE

    def steps(rng: Random) -> Load:
        return Load(5, 1 if one else rng.choice((8, 64)), rng.randint(200, 8000))

    plant.run(100, steps)
    assert models.drift(spec)[Phase.DECODE] == pytest.approx(1.0, abs=0.02)
    plant.becomes(2.0)
    plant.run(100, steps)
    assert models.drift(spec)[Phase.DECODE] == pytest.approx(2.0, rel=0.05)


# --- outliers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_outliers_do_not_move_it(seed: int) -> None:
    """One interval in 20 seems 5 times longer or shorter: no reference time is ever off by 3 %."""
    _, plant = tracked(seed=seed)
    plant.run(200)
    errors: list[float] = []
    plant.run(600, outliers=0.05, watch=lambda: errors.append(plant.error()))
    assert max(errors) < 0.03


def test_outliers_from_the_start_do_not_mislead_it() -> None:
    """The first reports are no better than the others."""
    for seed in range(10):
        _, plant = tracked(seed=seed)
        plant.work(Load(5, 8, 1000), factor=5.0)
        assert plant.error() < 0.01
        plant.run(100, outliers=0.05)
        assert plant.error() < 0.03


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_change_among_outliers_is_followed(factor: float) -> None:
    """Both at once."""
    _, plant = tracked(seed=3)
    plant.run(200, outliers=0.05)
    plant.becomes(factor)
    plant.run(200, outliers=0.05)
    assert plant.error() < 0.06


# --- restarts and bad reports ----------------------------------------------------------------------


def test_a_restart_starts_from_what_is_declared() -> None:
    """The process was slow; the one after it is not known to be, and is learned anew."""
    models, plant = tracked()
    plant.becomes(3.0)
    plant.run(60)
    assert models.drift(plant.spec)[Phase.DECODE] == pytest.approx(3.0, rel=0.05)
    plant.becomes(1.0)
    plant.join("another boot")
    assert plant.error() == 0.0
    plant.run(100)
    assert plant.error() < 0.02


def test_counters_that_go_back_are_a_restart() -> None:
    """Nobody announced it: no negative interval is learned, and nothing of before is kept."""
    models, plant = tracked()
    plant.becomes(3.0)
    plant.run(60)
    plant.becomes(1.0)
    plant.snapshot = BackendSnapshot(plant.now, steps=1, busy_decode_s=0.01)
    plant.report()
    assert models.ratios("b") == (1.0,) * 5
    plant.run(100)
    assert plant.error() < 0.02


def test_a_lane_that_breaks_and_comes_back_loses_nothing() -> None:
    """The same process with the same counters; work it did meanwhile is not taken for one interval."""
    models, plant = tracked()
    plant.becomes(2.0)
    plant.run(60)
    before = models.ratios("b")
    models.observe(BackendLost("b"), plant.now)
    plant.snapshot = replace(plant.snapshot, steps=plant.snapshot.steps + 10, busy_decode_s=1e6)
    models.observe(BackendJoined(plant.spec, "boot"), plant.now)
    plant.report()
    assert models.ratios("b") == before
    plant.run(20)
    assert plant.error() < 0.05


def test_a_backend_that_left_leaves_nothing() -> None:
    """Neither a tracker nor a bound; facts that come late are ignored."""
    models, plant = tracked()
    plant.becomes(0.5)
    plant.run(60)
    models.observe(BackendRemoved("b"), plant.now)
    plant.report()
    models.phase_ended(PhaseSample("b", Phase.PREFILL, PhaseCost(0.0, 1.0), 100), plant.now)
    assert models.drift(plant.spec) == {}
    assert models.fit("b") == {}
    assert models(plant.spec) is models.bound(plant.spec)
    assert plant.law.prefill_s(1000) == law_of(plant.spec).prefill_s(1000)


def test_a_report_that_is_no_number_breaks_one_interval() -> None:
    """Before and after it, all is as usual."""
    _, plant = tracked()
    plant.becomes(2.0)
    for i in range(100):
        plant.run(1)
        if i % 10 == 0:
            good = plant.snapshot
            plant.snapshot = replace(good, busy_decode_s=math.nan if i % 20 else math.inf)
            plant.report()
            plant.snapshot = good
    assert plant.error() < 0.03


numbers = st.one_of(st.floats(), st.floats(0.0, 1e6), st.integers(-5, 1 << 64))
counts = st.integers(-5, 1 << 64)


@settings(max_examples=150, deadline=None)
@given(
    scheduler=st.sampled_from(SchedulerKind),
    reports=st.lists(st.tuples(numbers, numbers, counts, counts, numbers, counts, numbers), max_size=30),
    phases=st.lists(st.tuples(st.sampled_from(Phase), numbers, numbers, *[st.integers(0, 1 << 32)] * 4)),
)
def test_no_report_breaks_it(scheduler: SchedulerKind, reports: list, phases: list) -> None:  # type: ignore[type-arg]
    """Whatever a worker says: no exception, and a model with finite times above zero."""
    models, spec = TrackedModels(), backend(scheduler=scheduler)
    models.observe(BackendJoined(spec, "boot"), 0.0)
    for prefill_s, decode_s, steps, sequences, contexts, prompts, pairs in reports:
        snapshot = BackendSnapshot(
            0.0,
            busy_prefill_s=prefill_s,
            busy_decode_s=decode_s,
            steps=steps,
            decode_sequences=sequences,
            context_tokens=contexts,
            prefill_tokens=prompts,
            attention_pairs=pairs,
        )
        models.observe(BackendReported("b", snapshot), 1.0)
    for phase, device_s, lasted_s, prompt, cached, output, beside in phases:
        cost = PhaseCost(0.0, device_s)
        models.phase_ended(PhaseSample("b", phase, cost, prompt, cached, output, lasted_s, beside), 2.0)
    for law in (models(spec), models.bound(spec)):
        assert 0.0 < law.prefill_s(1000) < math.inf
        assert 0.0 < law.decode_step_s(8, 8000) < math.inf
    assert all(1 / 17 < ratio < 17 for ratio in models.drift(spec).values())


# --- models ----------------------------------------------------------------------------------------


def test_models_are_kept_until_something_is_learned() -> None:
    """The declared one while nothing has drifted, shared by equal backends; at most one in 8 observations."""
    models = TrackedModels()
    one, other = Plant(models, backend("a"), 1), Plant(models, backend("c"), 2)
    assert one.law is other.law is models(backend("never seen"))
    seen = [one.law]
    one.becomes(2.0)
    one.run(400, watch=lambda: seen.append(one.law))
    built = sum(a is not b for a, b in pairwise(seen))
    assert 1 <= built <= 400 / 8


def test_terms_that_are_zero_stay_zero_and_large_ones_stay_in_range() -> None:
    """A profile of one number is scaled by one number; one at the limit of the step model is not left."""
    models, plant = tracked(backend(step=StepParameters(base_s=0.02)))
    plant.becomes(2.0)
    plant.run(50, decoding)
    assert plant.law.decode_step_s(8, 100_000) == pytest.approx(0.04, rel=0.03)
    huge, slow = backend("h", step=StepParameters(base_s=3000.0)), BackendSnapshot(0.0)
    models.observe(BackendJoined(huge, "boot"), 0.0)
    for i in range(40):
        slow = replace(slow, steps=i, decode_sequences=i, busy_decode_s=9000.0 * i)
        models.observe(BackendReported("h", slow), float(i))
    assert models(huge).decode_step_s(1, 1) == 3600.0


def test_a_spec_without_a_sensible_model_is_left_to_the_policies() -> None:
    """It joins without a tracker, and asking for its model raises what it always raised."""
    models, broken = TrackedModels(), backend(step=StepParameters(base_s=0.0))
    models.observe(BackendJoined(broken, "boot"), 0.0)
    models.observe(BackendReported("b", BackendSnapshot(0.0, steps=5)), 0.1)
    with pytest.raises(Exception, match="base_s"):
        models(broken)


def test_the_bound_is_never_above_the_truth() -> None:
    """A backend that is faster than declared lowers it for its kind; one that is slower raises nothing."""
    models = TrackedModels()
    fast, slow = Plant(models, backend("fast"), 1), Plant(models, backend("slow"), 2)
    fast.becomes(0.5)
    slow.becomes(2.0)
    fast.run(80)
    slow.run(80)
    for spec in (fast.spec, slow.spec):
        assert models.bound(spec).prefill_s(4000) <= 1.01 * fast.truth.prefill_s(4000)
    fast.becomes(4.0)
    fast.run(80)
    declared = law_of(fast.spec)
    assert models.bound(fast.spec).prefill_s(4000) < 0.6 * declared.prefill_s(4000)
    alone = Plant(models, backend("other", step=replace(H100, base_s=0.01)), 3)
    alone.becomes(3.0)
    alone.run(80)
    assert models.bound(alone.spec).prefill_s(4000) == law_of(alone.spec).prefill_s(4000)


def test_how_well_it_fits_is_told_by_kind_of_work() -> None:
    """Right after a change the fit is off by it, and then near 1 again."""
    models, plant = tracked()
    assert models.fit("b") == {}
    plant.run(100)
    assert set(models.fit("b")) == {"decode", "prefill", "mixed"}
    assert all(fit == pytest.approx(1.0, abs=0.05) for fit in models.fit("b").values())


# --- phases ----------------------------------------------------------------------------------------


def prefill_phase(plant: Plant, rng: Random, factor: float) -> PhaseSample:
    """A prompt that had the backend to itself."""
    tokens = rng.randint(500, 8000)
    device_s = plant.truth.prefill_s(tokens) * rng.lognormvariate(0.0, 0.02) * factor
    return PhaseSample("b", Phase.PREFILL, PhaseCost(0.0, device_s), tokens, lasted_s=device_s)


def decode_phase(plant: Plant, rng: Random, factor: float) -> PhaseSample:
    """One of a batch of equals: its share of the base, and its own terms."""
    prompt, n, batch = rng.randint(200, 4000), rng.randint(20, 400), rng.randint(1, 32)
    step_s = plant.truth.decode_step_s(batch, batch * (prompt + n // 2))
    device_s = n * step_s / batch * rng.lognormvariate(0.0, 0.05) * factor
    return PhaseSample("b", Phase.DECODE, PhaseCost(0.0, device_s), prompt, 0, n, n * step_s, batch - 1)


@pytest.mark.parametrize("outliers", [0.0, 0.05])
def test_a_worker_that_counts_nothing_is_judged_by_its_phases(outliers: float) -> None:
    """It became twice as slow: tracked to 10 % after 200 phases."""
    models, plant = tracked()
    rng = Random(5)
    for begin, factor in ((0, 1.0), (200, 2.0)):
        plant.becomes(factor)
        for i in range(begin, begin + 200):
            wild = rng.choice((5.0, 0.2)) if rng.random() < outliers else 1.0
            sample = (prefill_phase, decode_phase)[i % 2](plant, rng, wild)
            models.phase_ended(sample, float(i))
        drift = models.drift(plant.spec)
        assert drift[Phase.PREFILL] == pytest.approx(factor, rel=0.05)
        assert drift[Phase.DECODE] == pytest.approx(factor, rel=0.1)


def test_phases_teach_nothing_where_work_is_counted() -> None:
    """The interval has them already, and without guesses."""
    models, plant = tracked()
    plant.run(50)
    before = models.ratios("b")
    for i in range(100):
        models.phase_ended(prefill_phase(plant, Random(i), 3.0), plant.now)
    assert models.ratios("b") == before
