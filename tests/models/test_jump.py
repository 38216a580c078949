"""Jumping over uneventful steps gives exactly what stepping through them gives."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from backends.models.messages import DecodeFinished, StepTokens, Stop
from backends.models.metering import Work
from backends.models.stretch import Noise, Stretch
from router.model import BackendSnapshot, Seconds
from tests.models.drive import STEP, WATTS, backend, engine, of, prefill, run, until


def story(seed: int) -> list[tuple[Seconds, Any]]:
    """40 requests with some stops among them; bursts and pauses."""
    rng = Random(seed)
    at, commands = 0.0, list[tuple[Seconds, Any]]()
    for key in range(40):
        at += rng.choice((0.0, 0.003, 0.05, 0.4))
        hashes = tuple(rng.choice((1, 2)) * 100 + i for i in range(3))
        prompt, output = rng.randint(1, 40), rng.randint(1, 50)
        command = prefill(key, prompt, output, prefix_hashes=hashes, decode_here=rng.random() < 0.8)
        commands.append((at, command))
        if rng.random() < 0.4:
            commands.append((at + rng.random() * 0.5, Stop(rng.randint(0, key))))
    # Whatever was held for a peer is dropped in the end.
    commands += [(at + 100.0, Stop(key)) for key in range(40)]
    return sorted(commands, key=lambda pair: pair[0])


def telling(
    emit_tokens: bool, seed: int, sigma: float
) -> tuple[list[Any], dict[Any, Any], list[BackendSnapshot]]:
    """Ends, first tokens, and snapshots on the way."""
    spec = backend(step=replace(STEP, noise_sigma=sigma), power=replace(WATTS, cap_w=25.0))
    machine = engine(spec, emit_tokens=emit_tokens, seed=seed)
    events, snapshots = list[Any](), list[BackendSnapshot]()
    for at, command in story(seed):
        events += until(machine, at)
        snapshots.append(machine.snapshot(at))
        events += machine.handle(command, at)
    events += run(machine)
    ends = [event for event in events if not isinstance(event, StepTokens)]
    firsts: dict[int, tuple[Seconds, int]] = {}
    for step in of(events, StepTokens):
        for key, index in zip(step.keys, step.indices, strict=True):
            firsts.setdefault(key, (step.at, index))
    return ends, firsts, snapshots


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(12))
def test_jumping_equals_stepping(seed: int, sigma: float) -> None:
    """Costs, ends, first tokens, preemptions and snapshots at any time are equal to the last bit."""
    stepped, jumped = telling(True, seed, sigma), telling(False, seed, sigma)
    assert stepped == jumped
    assert of(stepped[0], DecodeFinished)


def test_the_stories_preempt() -> None:
    """The equality above is worth little unless blocks do run out in some of them."""
    assert sum(telling(False, seed, 0.0)[2][-1].preemptions for seed in range(12)) > 0


def test_a_jump_wakes_the_driver_for_events_only() -> None:
    """One answer of 1,001 tokens: the prefill, and one stretch of 1,000 steps."""
    machine, wakes = engine(backend(kv_capacity_tokens=4000), emit_tokens=False), 0
    machine.handle(prefill(1, output=1001), 0.0)
    events = list[Any]()
    while (due := machine.deadline()) is not None:
        events += machine.advance(due)
        wakes += 1
    assert wakes == 2
    assert [(step.keys, step.indices) for step in of(events, StepTokens)] == [((1,), (0,))]
    assert of(events, DecodeFinished)[0].output_tokens == 1001


@pytest.mark.parametrize("sigma", [0.0, 0.2])
def test_done_by_agrees_with_the_ends_of_steps(sigma: float) -> None:
    """A step is over exactly at its end, not a moment before."""
    work = Work(2, 100, (), 0, 0.01, 0.0001, 0.005)
    stretch = Stretch(5.0, work, 40, Noise(sigma, Random(3)))
    assert stretch.done_by(5.0) == 0
    for k in range(1, 41):
        end = stretch.end_of(k)
        assert stretch.done_by(end) == k
        assert stretch.done_by(end - 1e-9) == k - 1
    assert stretch.done_by(1e9) == 40


def test_the_end_of_a_noisy_step_is_the_sum_of_its_steps() -> None:
    """Step j lasts (first + j x growth) x draw j."""
    work, draws = Work(2, 100, (), 0, 0.01, 0.002, 0.005), Noise(0.2, Random(3))
    stretch = Stretch(5.0, work, 20, Noise(0.2, Random(3)))
    expected = 5.0
    for j in range(20):
        expected += (0.01 + j * 0.002) * draws.peek(j)
        assert stretch.end_of(j + 1) == pytest.approx(expected)
    quiet = Stretch(5.0, work, 20, Noise(0.0, Random(3)))
    assert quiet.end_of(20) == pytest.approx(5.0 + 20 * 0.01 + 190 * 0.002)


def test_looking_ahead_does_not_change_the_noise() -> None:
    """A stretch that was cut short leaves the draws of its other steps to the next one."""
    noise, reference = Noise(0.1, Random(1)), Noise(0.1, Random(1))
    expected = [reference.peek(i) for i in range(10)]
    noise.peek(9)
    noise.consume(4)
    assert [noise.peek(i) for i in range(6)] == expected[4:]
