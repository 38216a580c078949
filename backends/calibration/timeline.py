"""A first guess of the step parameters from the time stamps alone, without a replay and without a prior.

Between its first and its last token a request lives through (output - 1) steps. How many others decoded
meanwhile, over how much context, and how many prompt tokens went by, follows from the time stamps of the
others. So its duration is a linear equation in the step parameters. Only odd requests are looked at; with
half of the requests unseen the load of the seen ones is scaled up by requests per odd request.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from backends.calibration.regress import FloatArray, relative_fit
from backends.calibration.runfile import EngineRun
from router.model import StepParameters

BINS: Final = 400
MOST_REQUESTS: Final = 4000
"""Odd requests that are enough for a guess; the tables below grow with requests times bins."""


def guess(run: EngineRun, unseen: StepParameters) -> StepParameters:
    """Step parameters of a run. What it does not show is `unseen`'s, in proportion to the rest."""
    seen = np.flatnonzero(run.odd)[:MOST_REQUESTS]
    first, last, outputs = run.first[seen], run.last[seen], run.outputs[seen]
    usable = (outputs > 1) & (last > first)
    columns = _columns(run, seen)[usable]
    solution = relative_fit(columns, (last - first)[usable], linear_beyond=0.01)
    base, per_sequence, per_context, per_token = (float(value) for value in solution)
    base, per_token = max(base, 1e-6), max(per_token, 1e-9)
    step_scale = base / (unseen.base_s + unseen.saturating_s)
    pair_ratio = unseen.per_attention_pair_s / max(unseen.per_prefill_token_s, 1e-12)
    return replace(
        unseen,
        base_s=base,
        per_sequence_s=per_sequence,
        per_context_token_s=per_context,
        saturating_s=0.0,
        per_prefill_token_s=per_token,
        per_attention_pair_s=per_token * pair_ratio,
        prefill_base_s=unseen.prefill_base_s * step_scale,
        prefill_floor_s=unseen.prefill_floor_s * step_scale,
    )


def _columns(run: EngineRun, seen: NDArray[np.int64]) -> FloatArray:
    """Steps, and sums over steps of decodes, contexts and prompt tokens, per request in `seen`."""
    first, last, scheduled = run.first[seen], run.last[seen], run.scheduled[seen]
    prompts, outputs = run.prompts[seen], run.outputs[seen]
    edges = np.linspace(float(scheduled.min()), float(last.max()), BINS + 1)
    middles, width = 0.5 * (edges[1:] + edges[:-1]), float(edges[1] - edges[0])
    decoding = _overlap(first, last, edges) / width
    prefilling = _overlap(scheduled, first, edges) / np.maximum(first - scheduled, 1e-9)[:, None]
    age = (middles - first[:, None]) / np.maximum(last - first, 1e-9)[:, None]
    context = prompts[:, None] + outputs[:, None] * np.clip(age, 0.0, 1.0)
    others = len(run) / len(seen)
    batch, contexts = others * decoding.sum(axis=0), others * (decoding * context).sum(axis=0)
    tokens = others * (prefilling * prompts[:, None]).sum(axis=0)
    share = decoding / np.maximum(decoding.sum(axis=1, keepdims=True), 1e-9)
    steps = outputs - 1.0
    return np.column_stack([steps, steps * (share @ batch), steps * (share @ contexts), decoding @ tokens])


def _overlap(begin: FloatArray, end: FloatArray, edges: FloatArray) -> FloatArray:
    """Seconds that each interval shares with each bin."""
    low = np.maximum(begin[:, None], edges[None, :-1])
    high = np.minimum(end[:, None], edges[None, 1:])
    return np.asarray(np.maximum(high - low, 0.0), dtype=np.float64)
