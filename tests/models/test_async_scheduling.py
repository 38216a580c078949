"""An engine that puts a step together while the one before runs: what comes or ends counts a step later."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from backends.models.engine import BatchEngine
from backends.models.messages import DecodeFinished, RunPrefill, StepTokens, Stop
from router.model import BackendKind, BackendSpec, Phase, StepParameters

STEP = 0.010
SPEC = BackendSpec(
    id="x",
    kind=BackendKind.GPU,
    device="d",
    models=("m",),
    phases=frozenset(Phase),
    step=StepParameters(base_s=STEP, prefill_base_s=STEP),
    max_num_seqs=2,
    kv_capacity_tokens=1024,
    async_scheduling=True,
)


def prefill(key: int, output: int) -> RunPrefill:
    """A prompt of 8 tokens."""
    return RunPrefill(key, str(key), 0, 8, (), output, True, True, 0)


def play(
    spec: BackendSpec, arrivals: dict[int, tuple[float, int]], *, emit_tokens: bool = False
) -> tuple[dict[int, float], dict[int, float], BatchEngine]:
    """First and last token of each key, with every step taking STEP."""
    engine = BatchEngine(spec, Random(0), 0.0, emit_tokens=emit_tokens)
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    todo = sorted(arrivals.items(), key=lambda item: item[1][0])
    while todo or engine.deadline() is not None:
        due = engine.deadline()
        if todo and (due is None or todo[0][1][0] < due):
            key, (now, output) = todo.pop(0)
            events = engine.handle(prefill(key, output), now)
        else:
            assert due is not None
            now, events = due, engine.advance(due)
        for event in events:
            if isinstance(event, StepTokens):
                first |= {key: event.at for key, i in zip(event.keys, event.indices, strict=True) if i == 0}
            elif isinstance(event, DecodeFinished):
                last[event.key] = now
    return first, last, engine


def test_what_arrives_during_a_step_misses_the_next_one() -> None:
    """It arrives in step 1, is seen at its end, and runs in step 3; without lookahead it runs in step 2."""
    arrivals = {1: (0.0, 10), 2: (0.3 * STEP, 2)}
    ahead, _, _ = play(SPEC, arrivals)
    assert ahead[2] == pytest.approx(3 * STEP)
    at_once, _, _ = play(replace(SPEC, async_scheduling=False), arrivals)
    assert at_once[2] == pytest.approx(2 * STEP)


def test_an_idle_engine_starts_at_once() -> None:
    """Nothing is put together ahead when nothing runs, at the first request and after a pause."""
    first, _, _ = play(SPEC, {1: (0.0, 2), 2: (1.0, 2)})
    assert first == {1: pytest.approx(STEP), 2: pytest.approx(1.0 + STEP)}


def test_a_slot_is_free_a_step_after_its_sequence_ended() -> None:
    """The step after an end was put together before the end: the waiting one runs in the step after that."""
    arrivals = {1: (0.0, 3), 2: (0.0, 9), 3: (0.0, 2)}
    first, last, _ = play(SPEC, arrivals)
    assert first[3] == pytest.approx(last[1] + 2 * STEP)
    first, last, _ = play(replace(SPEC, async_scheduling=False), arrivals)
    assert first[3] == pytest.approx(last[1] + STEP)


def test_the_last_sequence_leaves_an_idle_engine_and_no_blocks() -> None:
    """When everything has ended, no room is held back for a step that does not come."""
    _, last, engine = play(SPEC, {1: (0.0, 3), 2: (0.001, 5)})
    snapshot = engine.snapshot(max(last.values()))
    assert (snapshot.running, snapshot.waiting, snapshot.kv_used_tokens) == (0, 0, 0)


def test_one_that_arrives_as_the_last_one_ends_is_not_forgotten() -> None:
    """It arrives in the last step of the only sequence and runs right after it."""
    first, last, _ = play(SPEC, {1: (0.0, 3), 2: (2.5 * STEP, 2)})
    assert last[1] == pytest.approx(3 * STEP)
    assert first[2] == pytest.approx(4 * STEP)


def test_a_stopped_newcomer_leaves_nothing() -> None:
    """A sequence that is stopped before the scheduler saw it is gone."""
    engine = BatchEngine(SPEC, Random(0), 0.0, emit_tokens=False)
    engine.handle(prefill(1, 4), 0.0)
    engine.handle(prefill(2, 4), 0.5 * STEP)
    assert engine.snapshot(0.5 * STEP).waiting == 1
    engine.handle(Stop(2), 0.6 * STEP)
    assert engine.snapshot(0.6 * STEP).waiting == 0
    assert 2 not in engine


def test_jumping_gives_the_times_of_stepping() -> None:
    """Looking at every step, or only where something happens, gives the same times to the last bit."""
    rng = Random(4)
    arrivals = {key: (rng.uniform(0.0, 2.0), rng.randint(1, 60)) for key in range(40)}
    spec = replace(SPEC, max_num_seqs=6, step=replace(SPEC.step, per_context_token_s=1e-7, noise_sigma=0.05))
    stepped, jumped = play(spec, arrivals, emit_tokens=True), play(spec, arrivals)
    assert stepped[:2] == jumped[:2]


def test_room_is_given_back_under_preemption() -> None:
    """With room for few, sequences lose and regain it, all of them end, and none of it is lost."""
    arrivals = {key: (0.001 * key, 100) for key in range(12)}
    _, last, engine = play(replace(SPEC, max_num_seqs=12, kv_capacity_tokens=320), arrivals)
    assert len(last) == 12
    snapshot = engine.snapshot(max(last.values()))
    assert snapshot.preemptions > 0
    assert snapshot.kv_used_tokens == 0
