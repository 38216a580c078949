"""Runs for the tests: simulated ones with known parameters, and their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

from backends.calibration.limits import BARE, Limits, Scheduling
from backends.calibration.runfile import COLUMNS, EngineRun
from backends.calibration.synthetic import synthetic_run
from router.model import BackendSpec, StepParameters

DENSE = StepParameters(
    base_s=11e-3,
    per_sequence_s=23e-6,
    per_context_token_s=86e-9,
    prefill_base_s=6e-3,
    prefill_floor_s=7e-3,
    per_prefill_token_s=38e-6,
    per_attention_pair_s=1.7e-9,
    noise_sigma=0.02,
)
KNOWN = Limits(64, 2048, 1 << 30, scheduling=Scheduling.ASYNC)
WALL_CLOCK = 1.7e9
"""What separates the two clocks of a file."""


def engine(step: StepParameters = DENSE, **changes: object) -> BackendSpec:
    """An engine with the limits of KNOWN."""
    spec = replace(BARE, step=step, max_num_seqs=64, max_num_batched_tokens=2048, async_scheduling=True)
    return replace(spec, **changes)  # type: ignore[arg-type]


def simulated(spec: BackendSpec | None = None, requests: int = 160, per_s: float = 6.0) -> EngineRun:
    """A run of a known engine."""
    return synthetic_run(spec or engine(), Random(1), requests=requests, per_s=per_s)


def write_run(run: EngineRun, path: Path) -> Path:
    """The file of a run, as an engine's recorder writes it."""
    lines = [",".join(COLUMNS)]
    for i in range(len(run)):
        stamps = (run.queued[i], run.scheduled[i], run.first[i], run.last[i])
        arrival = f"{run.arrived[i] + WALL_CLOCK:.6f}"
        cells = (f"r{i}", f"{run.prompts[i]:.0f}", f"{run.outputs[i]:.0f}", arrival)
        lines.append(",".join((*cells, *(f"{stamp:.9f}" for stamp in stamps))))
    path.write_text("\n".join(lines) + "\n")
    return path
