"""Replays a run on the engine of the mock and of the simulator, in virtual time.

Same arrivals, same lengths, no other code: what a calibrated profile promises is what a mock with it does.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np

from backends.calibration.regress import FloatArray
from backends.calibration.runfile import EngineRun
from backends.models.engine import BatchEngine, EngineEvent
from backends.models.messages import DecodeFinished, Failed, PrefillFinished, RunPrefill, StepTokens
from router.errors import ConfigError
from router.model import BackendSnapshot, BackendSpec, Seconds

REGRESSORS: Final = 5
"""Steps, decoding sequences, their contexts, prompt tokens, attention pairs; see BackendSnapshot.steps."""
BUSY: Final = REGRESSORS
"""Column of the busy time behind the regressors."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What the simulated engine did with each request, in the order of the run."""

    queued: FloatArray
    """When the engine looked into its inbox: at the end of the step in which the request arrived."""
    first: FloatArray
    last: FloatArray
    started: FloatArray
    """When the first step that worked on the request began."""
    done_at_queued: FloatArray
    """Rows of what the engine had done by then since its boot: REGRESSORS columns and its busy time."""
    done_at_first: FloatArray
    done_at_last: FloatArray
    preemptions: int


def replay(run: EngineRun, spec: BackendSpec, *, own_prefixes: bool = False) -> Replay:
    """Replay a run; raise ConfigError when a request can never run on the spec.

    With own_prefixes the prompts of preempted requests may be found again in the prefix cache, as in an
    engine that caches prefixes; it costs time and changes nothing where nothing is preempted.
    """
    return _Player(run, spec, own_prefixes).play()


class _Player:
    def __init__(self, run: EngineRun, spec: BackendSpec, own_prefixes: bool) -> None:
        self._run = run
        self._own_prefixes = own_prefixes
        self._engine = BatchEngine(spec, Random(0), 0.0, emit_tokens=False)
        self._block = spec.block_tokens
        self._times = np.zeros((3, len(run)))
        self._started = np.zeros(len(run))
        self._done = np.zeros((3, len(run), REGRESSORS + 1))
        self._inbox: list[tuple[Seconds, int]] = []

    def play(self) -> Replay:
        for request in np.argsort(self._run.arrived, kind="stable"):
            self._arrive(int(request), float(self._run.arrived[request]))
        while (due := self._engine.deadline()) is not None:
            self._see(self._engine.advance(due), due)
        preemptions = self._engine.snapshot(float(self._times.max())).preemptions
        queued, first, last = self._times
        at_queued, at_first, at_last = self._done
        return Replay(queued, first, last, self._started, at_queued, at_first, at_last, preemptions)

    def _arrive(self, request: int, now: Seconds) -> None:
        while (due := self._engine.deadline()) is not None and due <= now:
            self._see(self._engine.advance(due), due)
        is_idle = self._engine.deadline() is None
        self._see(self._engine.handle(self._command(request), now), now)
        # An arrival cuts the stretch short, so the engine's next deadline is the end of the step in progress.
        seen = now if is_idle else self._engine.deadline()
        heapq.heappush(self._inbox, (now if seen is None else seen, request))
        self._see((), now)

    def _command(self, request: int) -> RunPrefill:
        prompt = int(self._run.prompts[request])
        blocks = range(prompt // self._block) if self._own_prefixes else ()
        hashes = tuple(request << 32 | block for block in blocks)
        output = int(self._run.outputs[request])
        return RunPrefill(request, "", 0, prompt, hashes, output, True, True, 0)

    def _see(self, events: Sequence[EngineEvent], now: Seconds) -> None:
        marks: list[tuple[int, int]] = []
        for event in events:
            match event:
                case StepTokens(keys=keys, indices=indices):
                    marks += [(1, key) for key, index in zip(keys, indices, strict=True) if index == 0]
                case DecodeFinished(key=key):
                    marks.append((2, key))
                case PrefillFinished(key=key, cost=cost):
                    self._started[key] = self._run.arrived[key] + cost.queued_s
                case Failed(message=message):
                    raise ConfigError(f"the run cannot be replayed: {message}")
                case _:
                    pass
        while self._inbox and self._inbox[0][0] <= now:
            marks.append((0, heapq.heappop(self._inbox)[1]))
        if marks:
            done = _done(self._engine.snapshot(now))
            for mark, request in marks:
                self._times[mark, request] = now
                self._done[mark, request] = done


def _done(snapshot: BackendSnapshot) -> tuple[float, ...]:
    return (
        snapshot.steps,
        snapshot.decode_sequences,
        snapshot.context_tokens,
        snapshot.prefill_tokens,
        snapshot.attention_pairs,
        snapshot.busy_prefill_s + snapshot.busy_decode_s,
    )
