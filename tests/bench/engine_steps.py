"""Steps of a batch engine per second of one core, at a batch of 64: steady, and with arrivals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from random import Random

from backends.catalogue import load_profile
from backends.models.engine import BatchEngine
from backends.models.messages import RunPrefill
from router.model import BackendSpec, Seconds

BATCH = 64
PROMPT = 200
"""Mean prompt, in tokens."""


def spec_of(sigma: float) -> BackendSpec:
    """An H100 with room for more than the batch."""
    spec = load_profile("h100-llama-3.1-8b").spec
    return replace(spec, step=replace(spec.step, noise_sigma=sigma))


def command(key: int, output: int, prompt: int = PROMPT) -> RunPrefill:
    """A request that both starts and ends here."""
    return RunPrefill(key, f"r{key}", 1, prompt, (), output, False, True, key)


def arrivals(rng: Random, rate: float, mean_output: int) -> Iterator[tuple[Seconds, RunPrefill]]:
    """Poisson arrivals; lengths are uniform from half to three halves of their means."""
    at, key = 0.0, 0
    while True:
        at += rng.expovariate(rate)
        key += 1
        yield (
            at,
            command(
                key,
                rng.randint(mean_output // 2, 3 * mean_output // 2),
                rng.randint(PROMPT // 2, 3 * PROMPT // 2),
            ),
        )


def steady(sigma: float, emit_tokens: bool, output: int) -> tuple[float, float]:
    """Steps per CPU second, and the mean batch, of 64 answers of the same length from one moment on."""
    machine = BatchEngine(spec_of(sigma), Random(1), 0.0, emit_tokens=emit_tokens)
    for key in range(BATCH):
        machine.handle(command(key, output), 0.0)
    begun = time.process_time()
    now = 0.0
    while (due := machine.deadline()) is not None:
        now = due
        machine.advance(now)
    took = time.process_time() - begun
    told = machine.snapshot(now)
    return told.steps / took, told.decode_sequences / told.steps


def loaded(sigma: float, emit_tokens: bool, mean_output: int, limit_s: Seconds) -> tuple[float, float]:
    """The same with Poisson arrivals at the rate that keeps about 64 answers under way."""
    spec = spec_of(sigma)
    machine = BatchEngine(spec, Random(1), 0.0, emit_tokens=emit_tokens)
    step = spec.step
    own_s = step.per_sequence_s + (PROMPT + mean_output / 2) * step.per_context_token_s
    prompts_s = BATCH / mean_output * PROMPT * step.per_prefill_token_s  # of the prompts that come in a step
    rate = BATCH / (mean_output * (step.base_s + BATCH * own_s + prompts_s))
    plan = arrivals(Random(2), rate, mean_output)
    begun = time.process_time()
    for at, one in plan:
        if at > limit_s:
            break
        while (due := machine.deadline()) is not None and due <= at:
            machine.advance(due)
        machine.handle(one, at)
    took = time.process_time() - begun
    told = machine.snapshot(limit_s)
    return told.steps / took, told.decode_sequences / told.steps


def _row(what: str, measured: tuple[float, float]) -> tuple[str, str]:
    rate, batch = measured
    return what, f"{rate:,.0f} steps/s, mean batch {batch:.0f}"


def rows() -> list[tuple[str, str]]:
    """Jumping over uneventful steps is what a simulation does; step by step is what a mock worker does."""
    return [
        _row("engine, steady, jumping, no noise", steady(0.0, False, 5_000)),
        _row("engine, steady, jumping, noise 2 %", steady(0.02, False, 5_000)),
        _row("engine, steady, every step's tokens", steady(0.02, True, 5_000)),
        _row("engine, arrivals, answers of 1,000, jumping", loaded(0.02, False, 1000, 500.0)),
        _row("engine, arrivals, answers of 500, jumping", loaded(0.02, False, 500, 400.0)),
        _row("engine, arrivals, answers of 200, jumping", loaded(0.02, False, 200, 200.0)),
        _row("engine, arrivals, answers of 200, every token", loaded(0.02, True, 200, 100.0)),
    ]
