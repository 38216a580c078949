"""Runs of an engine whose parameters are known: what a calibration must find again."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np

from backends.calibration.regress import FloatArray
from backends.calibration.replay import replay
from backends.calibration.runfile import EngineRun
from router.model import BackendSpec


def synthetic_run(
    spec: BackendSpec, rng: Random, *, requests: int = 300, per_s: float = 10.0, name: str = "synthetic"
) -> EngineRun:
    """A run on `spec`, with its noise: chat-like lengths (lognormal), Poisson arrivals at `per_s`."""
    prompts = _lengths(rng, requests, median=700.0, sigma=0.7, most=4000)
    outputs = _lengths(rng, requests, median=400.0, sigma=0.5, most=1024)
    arrived = np.cumsum([rng.expovariate(per_s) for _ in range(requests)])
    nothing = np.zeros(requests)
    load = EngineRun(name, prompts, outputs, arrived - arrived[0], nothing, nothing, nothing, nothing)
    played = replay(load, spec)
    stamped = replace(load, queued=played.queued, first=played.first, last=played.last)
    return replace(stamped, scheduled=_scheduled(stamped, played.started, spec))


def _lengths(rng: Random, count: int, *, median: float, sigma: float, most: int) -> FloatArray:
    drawn = [rng.lognormvariate(np.log(median), sigma) for _ in range(count)]
    return np.asarray(np.clip(np.round(drawn), 16, most), dtype=np.float64)


def _scheduled(run: EngineRun, started: FloatArray, spec: BackendSpec) -> FloatArray:
    """When a scheduler stamps the requests: as their first step begins, or as the one before it does."""
    if not spec.async_scheduling:
        return started
    wakes = np.unique(np.concatenate([run.queued, run.first, run.last]))
    before = wakes[np.maximum(np.searchsorted(wakes, started - 1e-9) - 1, 0)]
    return np.asarray(np.minimum(np.maximum(before, run.queued), started), dtype=np.float64)
