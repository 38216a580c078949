"""`calibrate run` and `calibrate check`: a real run against the engine, with or without a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from backends.calibration.judge import Errors, judge
from backends.calibration.limits import (
    BARE,
    CLEARLY,
    Limits,
    schedulings,
    with_budget,
    with_capacity,
    with_limits,
)
from backends.calibration.replay import Replay
from backends.calibration.runfile import EngineRun
from backends.calibration.search import GENERIC, Found, replayed, search
from backends.calibration.timeline import guess
from backends.models.profile import Profile
from router.model import BackendSpec, StepParameters


@dataclass(frozen=True, slots=True)
class Calibration:
    """A run and the spec that replays it."""

    run: EngineRun
    spec: BackendSpec
    played: Replay
    fitted_on: Errors | None
    """Over the odd requests; None when nothing was fitted."""
    held_out: Errors
    """Over the even requests."""
    every: Errors
    """Over all requests."""
    before: Errors | None
    """Of the prior as it stood, over the even requests."""
    notes: tuple[str, ...]
    replays: int

    def as_json(self) -> dict[str, Any]:
        """For --json: errors are fractions, parameters in seconds."""
        spec, step = self.spec, self.spec.step
        return {
            "run": self.run.name,
            "requests": len(self.run),
            "held_out": self.held_out.as_json(),
            "fitted_on": None if self.fitted_on is None else self.fitted_on.as_json(),
            "all": self.every.as_json(),
            "prior": None if self.before is None else self.before.as_json(),
            "step": {each.name: getattr(step, each.name) for each in fields(step)},
            "engine": {
                "max_num_seqs": spec.max_num_seqs,
                "max_num_batched_tokens": spec.max_num_batched_tokens,
                "kv_capacity_tokens": spec.kv_capacity_tokens,
                "block_tokens": spec.block_tokens,
                "async_scheduling": spec.async_scheduling,
            },
            "preemptions": self.played.preemptions,
            "replays": self.replays,
            "notes": list(self.notes),
        }


def calibrate(run: EngineRun, prior: Profile | None, limits: Limits) -> Calibration:
    """Fit on the odd requests, judge on the even ones; raise ConfigError when the run cannot be replayed."""
    start = BARE if prior is None else _of_prior(prior)
    base, notes = with_limits(run, start, limits)
    modes = schedulings(run, base, limits)
    tries = [_searched(run, replace(base, async_scheduling=mode), limits) for mode in modes]
    best, inferred = min(tries, key=lambda one: one[0].fitted_on.loss)
    notes = (*run.notes, *notes, *inferred, *_remarks(best.spec, best.played))
    before = None
    if prior is not None:
        before = judge(run, replayed(run, replace(best.spec, step=base.step)), ~run.odd)
    replays = sum(one.replays for one, _ in tries)
    return _result(run, best.spec, best.played, best.fitted_on, before, notes, replays)


def _of_prior(prior: Profile) -> BackendSpec:
    return replace(BARE, step=prior.spec.step, kv_capacity_tokens=prior.spec.kv_capacity_tokens)


def _searched(run: EngineRun, spec: BackendSpec, limits: Limits) -> tuple[Found, tuple[str, ...]]:
    """The best fit with one way of scheduling, and the limits that were inferred for it."""
    prior = spec.step
    spec = replace(spec, step=guess(run, prior))
    spec, room = with_capacity(run, spec, limits)
    spec, budget = with_budget(run, spec, limits)
    found, notes = search(run, spec, (prior, spec.step)), (*room, *budget)
    bar = _bar_for_usual(prior)
    if bar <= 0.0:
        return found, notes
    usual = search(run, spec, (guess(run, GENERIC),))
    if usual.fitted_on.loss < bar * found.fitted_on.loss:
        return usual, (*notes, "what the run does not show is as GPUs usually have it, not as the prior")
    return found, notes


def _bar_for_usual(prior: StepParameters) -> float:
    """The share of the loss below which a GPU's usual proportions replace the prior's; 0 keeps the prior's.

    What a run does not show is scaled from such proportions. A prior without them has nothing to scale.
    """
    if prior.per_attention_pair_s <= 0.0 or prior.prefill_floor_s <= 0.0:
        return 1.0 / CLEARLY
    pairs, usual = (
        step.per_attention_pair_s / max(step.per_prefill_token_s, 1e-12) for step in (prior, GENERIC)
    )
    return 0.0 if 0.25 < pairs / usual < 4.0 else CLEARLY


def check(run: EngineRun, profile: Profile, limits: Limits) -> Calibration:
    """Replay a run with the step model of a profile as it stands; how the engine schedules is the run's.

    Raise ConfigError when the run cannot be replayed.
    """
    base, notes = with_limits(run, profile.spec, limits)
    if len(modes := schedulings(run, base, limits)) == 1:
        base = replace(base, async_scheduling=modes[0])
    played = replayed(run, base)
    return _result(run, base, played, None, None, (*run.notes, *notes, *_remarks(base, played)), 1)


def _result(
    run: EngineRun,
    spec: BackendSpec,
    played: Replay,
    fitted_on: Errors | None,
    before: Errors | None,
    notes: Sequence[str],
    replays: int,
) -> Calibration:
    held_out = judge(run, played, ~run.odd)
    every = judge(run, played, np.ones(len(run), dtype=np.bool_))
    return Calibration(run, spec, played, fitted_on, held_out, every, before, tuple(notes), replays)


def _remarks(spec: BackendSpec, played: Replay) -> tuple[str, ...]:
    how = "while the one before runs" if spec.async_scheduling else "when the one before is over"
    remarks = (f"scheduling: a step is put together {how}",)
    if not played.preemptions:
        return remarks
    return (
        *remarks,
        f"{played.preemptions} preemptions: which request loses its room depends on single blocks, so single "
        "requests cannot be reproduced exactly",
    )
