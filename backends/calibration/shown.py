"""What a run shows of the engine that made it: slots, KV room, how it schedules. Nothing is fitted."""

from __future__ import annotations

from typing import Final

import numpy as np

from backends.calibration.regress import FloatArray
from backends.calibration.runfile import SLACK_S, EngineRun

MOST_LOOKED_AT: Final = 2000
"""Requests that are enough to tell how an engine schedules."""


def running_of(run: EngineRun) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Moments at which the number of running requests changes, how many run from then on, and how many wait.

    A request runs from its first scheduling to its last token; one that was preempted counts throughout.
    """
    moments = np.unique(np.concatenate([run.scheduled, run.last]))
    begun = np.searchsorted(np.sort(run.scheduled), moments, side="right")
    ended = np.searchsorted(np.sort(run.last), moments, side="right")
    queued = np.searchsorted(np.sort(run.queued), moments, side="right")
    return moments, (begun - ended).astype(np.float64), (queued - begun).astype(np.float64)


def slots_of(run: EngineRun) -> int | None:
    """The number of slots, when the run shows it: requests wait while always the same number runs.

    None when none waited for long, or when the number varies (then KV room is what they wait for).
    """
    moments, running, waiting = running_of(run)
    spans = np.diff(moments, append=moments[-1])
    most, crowded = int(running.max()), waiting > 0
    crowded_s = float(spans[crowded].sum())
    if most < 2 or crowded_s < 0.1 * float(moments[-1] - moments[0]):
        return None
    full_s = float(spans[crowded & (running >= most - 1)].sum())
    return most if full_s > 0.7 * crowded_s else None


def waits_for_room(run: EngineRun) -> bool:
    """Whether requests waited for KV room: long, and not for slots."""
    return float(np.mean(run.scheduled - run.queued > 1.0)) > 0.1 and slots_of(run) is None


def plans_ahead(run: EngineRun, max_num_batched_tokens: int) -> bool | None:
    """Whether the engine schedules asynchronously: then it wakes between a prompt's scheduling and its end.

    With synchronous scheduling a prompt that fits into one step lies between two neighbouring wake-ups. With
    asynchronous scheduling the end of the step in progress comes in between; it shows where something else
    was queued, scheduled or ended at it. None when too few prompts could show it, or the share of those that
    do is neither here nor there. Looks at odd requests only.
    """
    odd = np.flatnonzero(run.odd)[:MOST_LOOKED_AT]
    stamps = (run.queued, run.scheduled, run.first, run.last)
    wakes = np.unique(np.concatenate([stamp[odd] for stamp in stamps]))
    whole = [i for i in odd if _fits_one_step(run, int(i), max_num_batched_tokens)]
    if len(whole) < 10:
        return None
    between = [
        np.any((wakes > run.scheduled[i] + 2 * SLACK_S) & (wakes < run.first[i] - 2 * SLACK_S)) for i in whole
    ]
    share = float(np.mean(between))
    return True if share > 0.1 else False if share < 0.02 else None


def _fits_one_step(run: EngineRun, request: int, max_num_batched_tokens: int) -> bool:
    """Whether the prompts scheduled together, and a token of everything that ran, fit into one step."""
    moment = run.scheduled[request]
    together = np.abs(run.scheduled - moment) < SLACK_S
    decoding = np.sum((run.first <= moment) & (run.last > moment))
    return float(run.prompts[together].sum() + decoding) <= max_num_batched_tokens


def peak_tokens(run: EngineRun) -> int:
    """The most KV tokens that were in use at once, at least: prompts and answers of what ran and went on."""
    times = np.unique(np.concatenate([run.first, run.last]))
    most = 0.0
    for moment in times[:: max(1, len(times) // 500)]:
        here = (run.first <= moment) & (run.last > moment)
        share = (moment - run.first[here]) / np.maximum(run.last[here] - run.first[here], 1e-9)
        most = max(most, float(np.sum(run.prompts[here] + share * run.outputs[here])))
    return int(most)
