"""Jumping over uneventful steps gives exactly what stepping through them gives."""

import math
from dataclasses import fields, replace
from random import Random
from typing import Any

import pytest

from backends.models.latency import Price, StepModel
from backends.models.messages import DecodeFinished, StepTokens, Stop
from backends.models.metering import Tariff, Work
from backends.models.schedule import Schedule
from backends.models.stretch import Cap, Noise, Stretch
from router.model import BackendSnapshot, PhaseCost, Seconds
from tests.models.drive import KINDS, STEP, WATTS, backend, engine, of, prefill, run, until

TARIFF = Tariff(StepModel(STEP), WATTS, 1000.0)
UNCAPPED = Cap(0.0, math.inf)


def work(first_s: Seconds, growth_s: Seconds, dynamic_j: float = 0.0, dynamic_growth_j: float = 0.0) -> Work:
    """Two sequences."""
    return Work(2, 100, (), Price(0.005, 0.0, 0.0), first_s, growth_s, dynamic_j, dynamic_growth_j, 2)


def noise(sigma: float, seed: int) -> Noise:
    """Lognormal, without stalls."""
    return Noise(replace(STEP, noise_sigma=sigma), Random(seed))


def story(seed: int, two_models: bool = False) -> list[tuple[Seconds, Any]]:
    """40 requests with some stops among them; bursts and pauses."""
    rng = Random(seed)
    at, commands = 0.0, list[tuple[Seconds, Any]]()
    for key in range(40):
        at += rng.choice((0.0, 0.003, 0.05, 0.4))
        hashes = tuple(rng.choice((1, 2)) * 100 + i for i in range(3))
        prompt, output = rng.randint(1, 40), rng.randint(1, 50)
        command = prefill(key, prompt, output, prefix_hashes=hashes, decode_here=rng.random() < 0.8)
        if two_models and rng.random() < 0.3:
            command = replace(command, model="n")
        commands.append((at, command))
        if rng.random() < 0.4:
            commands.append((at + rng.random() * 0.5, Stop(rng.randint(0, key))))
    # Whatever was held for a peer is dropped in the end.
    commands += [(at + 100.0, Stop(key)) for key in range(40)]
    return sorted(commands, key=lambda pair: pair[0])


def telling(
    emit_tokens: bool, seed: int, sigma: float, kind: str = "continuous"
) -> tuple[list[Any], dict[Any, Any], list[BackendSnapshot]]:
    """Ends, first tokens, and snapshots on the way."""
    spec = backend(step=replace(STEP, noise_sigma=sigma), power=replace(WATTS, cap_w=25.0), **KINDS[kind])
    machine = engine(spec, emit_tokens=emit_tokens, seed=seed)
    events, snapshots = list[Any](), list[BackendSnapshot]()
    for at, command in story(seed, len(spec.models) > 1):
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
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_jumping_equals_stepping(seed: int, kind: str, sigma: float) -> None:
    """Costs, ends, first tokens, preemptions and snapshots at any time are equal to the last bit."""
    stepped, jumped = telling(True, seed, sigma, kind), telling(False, seed, sigma, kind)
    assert stepped == jumped
    assert of(stepped[0], DecodeFinished)


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_closed_forms_equal_sums_over_single_steps(
    seed: int, kind: str, sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that never takes two steps at once tells the same story, to rounding."""
    jumped = telling(False, seed, sigma, kind)
    monkeypatch.setattr(Schedule, "uneventful_steps", lambda self, at_most: 1)
    single = telling(True, seed, sigma, kind)
    assert [type(event) for event in single[0]] == [type(event) for event in jumped[0]]
    for one, other in zip(single[0], jumped[0], strict=True):
        assert numbers_of(one) == pytest.approx(numbers_of(other))
    assert single[1].keys() == jumped[1].keys()
    for key, (at, index) in single[1].items():
        assert (at, index) == pytest.approx(jumped[1][key])
    for one, other in zip(single[2], jumped[2], strict=True):
        assert numbers_of(one) == pytest.approx(numbers_of(other))


def numbers_of(value: Any) -> list[float]:
    """The numbers in an event or a snapshot, in order."""
    found: list[float] = []
    for field in fields(value):
        part = getattr(value, field.name)
        if isinstance(part, PhaseCost):
            found += numbers_of(part)
        elif isinstance(part, int | float):
            found.append(part)
    return found


def test_the_regressors_grow_with_every_step() -> None:
    """Prompt of 8, then contexts 9, 10 and 11 in three steps of one sequence, seen after each of them."""
    machine, seen = engine(backend(), emit_tokens=False), list[tuple[int, int, float, int, float]]()
    machine.handle(prefill(1, prompt=8, output=4), 0.0)
    for at in (0.0, 0.0081, 0.0191 + 0.0001, 0.0302 + 0.0001, 1.0):
        until(machine, at)
        one = machine.snapshot(at)
        work = (one.steps, one.decode_sequences, one.context_tokens)
        seen.append((*work, one.prefill_tokens, one.attention_pairs))
    assert seen == [
        (0, 0, 0.0, 0, 0.0),
        (1, 0, 0.0, 8, 32.0),
        (2, 1, 9.0, 8, 32.0),
        (3, 2, 19.0, 8, 32.0),
        (4, 3, 30.0, 8, 32.0),
    ]


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
    stretch = Stretch(5.0, work(0.01, 0.0001), 40, noise(sigma, 3), UNCAPPED)
    assert stretch.done_by(5.0) == 0
    for k in range(1, 41):
        end = stretch.end_of(k)
        assert stretch.done_by(end) == k
        assert stretch.done_by(end - 1e-9) == k - 1
    assert stretch.done_by(1e9) == 40


def test_the_end_of_a_noisy_step_is_the_sum_of_its_steps() -> None:
    """Step j lasts (first + j x growth) x draw j."""
    draws = noise(0.2, 3).ahead(20)
    stretch = Stretch(5.0, work(0.01, 0.002), 20, noise(0.2, 3), UNCAPPED)
    expected = 5.0
    for j in range(20):
        expected += (0.01 + j * 0.002) * draws[j]
        assert stretch.end_of(j + 1) == pytest.approx(expected)
    quiet = Stretch(5.0, work(0.01, 0.002), 20, noise(0.0, 3), UNCAPPED)
    assert quiet.end_of(20) == pytest.approx(5.0 + 20 * 0.01 + 190 * 0.002)


def test_looking_ahead_does_not_change_the_noise() -> None:
    """A stretch that was cut short leaves the draws of its other steps to the next one."""
    noisy, reference = noise(0.1, 1), noise(0.1, 1)
    expected = list(reference.ahead(10)[:10])
    noisy.ahead(10)
    noisy.consume(4)
    assert noisy.ahead(6)[:6] == expected[4:]


@pytest.mark.parametrize("sigma", [0.0, 0.2])
@pytest.mark.parametrize("cap_w", [9.0, 14.0, 15.0, 16.0, 20.0, 1e9])
@pytest.mark.parametrize("dynamic_growth_j", [0.0, 0.003])
def test_the_cap_holds_in_each_step(sigma: float, cap_w: float, dynamic_growth_j: float) -> None:
    """A stretch's energy is the sum of its steps', each of which draws at most the cap."""
    one = work(0.01, 0.0001, dynamic_j=0.05, dynamic_growth_j=dynamic_growth_j)
    stretch = Stretch(0.0, one, 30, noise(sigma, 3), Cap(9.0, cap_w))
    draws = noise(sigma, 3).ahead(30)
    for steps in (1, 2, 7, 30):
        expected = 0.0
        for j in range(steps):
            took_s = (0.01 + 0.0001 * j) * draws[j]
            expected += min(9.0 * took_s + 0.05 + dynamic_growth_j * j, cap_w * took_s)
        bill = TARIFF.bill(one, stretch.span(steps))
        assert bill.energy_j == pytest.approx(expected)


def test_stalls_are_rare_and_long() -> None:
    """Of 20,000 steps, about 2 % last 2 to 3 times as long, and the others exactly once."""
    stalling = Noise(replace(STEP, stall_probability=0.02), Random(1))
    factors = stalling.ahead(20_000)
    stalled = [factor for factor in factors if factor != 1.0]
    assert all(2.0 <= factor <= 3.0 for factor in stalled)
    assert 300 < len(stalled) < 500
