"""Finds the step parameters under which the engine reproduces a run.

Under a fixed schedule the step model is linear: what a request lives through is a sum over steps, so

    last - first token   = base x steps + per_sequence x decodes + per_context_token x contexts + ...
    first token - queued = the same over the steps before it

and the engine counts those sums. The schedule in turn depends on the parameters, so the search alternates:
replay the run, regress the measured durations of the odd requests on the sums of the replay, replay with the
result. A dozen replays suffice from any start. Only durations of odd requests enter; of the even ones only
arrivals and lengths, as load.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np

from backends.calibration.judge import Errors, judge
from backends.calibration.regress import FloatArray, relative_fit
from backends.calibration.replay import BUSY, REGRESSORS, Replay, replay
from backends.calibration.runfile import EngineRun
from router.model import BackendSpec, StepParameters

REPLAYS: Final = 24
LEAST_STRIDE: Final = 1.0 / 16.0
ENOUGH: Final = 0.999
"""A step must cut the loss to this share, or the search would creep."""
TTFT_WEIGHT: Final = 0.5
"""Of a relative error of a time to first token against one of a decode."""
SATURATIONS: Final = (4.0, 10.0, 25.0, 60.0, 150.0)
"""Shapes tried for the saturating term, in tokens; published fits of mixtures of experts lie between."""
SATURATION_GAIN: Final = 0.9
"""The saturating term stays only if it cuts the loss to this share: noise alone cuts it a little."""
_FINITE_SHARE: Final = 0.2
"""A duration that is mostly explained by what is held fixed says little about the rest."""

GENERIC: Final = StepParameters(
    base_s=10e-3,
    per_sequence_s=20e-6,
    per_context_token_s=50e-9,
    prefill_base_s=5e-3,
    prefill_floor_s=6e-3,
    per_prefill_token_s=40e-6,
    per_attention_pair_s=1.2e-9,
)
"""Where a search starts without a prior: a data-centre GPU with an 8B model, to within a factor of ten. What
a run does not show keeps its proportion to the rest, which is typical of the fits to published kernels."""


@dataclass(frozen=True, slots=True)
class Found:
    """A set of parameters, how it replays, and how far off it is."""

    spec: BackendSpec
    played: Replay
    fitted_on: Errors
    """Over the odd requests."""
    replays: int


def search(run: EngineRun, spec: BackendSpec, starts: tuple[StepParameters, ...]) -> Found:
    """The best parameters from any start, with a saturating term where the run shows one."""
    found = [_descend(run, _with(spec, start)) for start in starts]
    best = min(found, key=_loss)
    replays = sum(one.replays for one in found)
    curved = [_descend(run, _with(best.spec, _curved(best.spec.step, shape))) for shape in SATURATIONS]
    middle = min(curved, key=_loss).spec.step.saturation_tokens
    for shape in (0.63 * middle, 1.6 * middle):
        curved.append(_descend(run, _with(best.spec, _curved(best.spec.step, shape))))
    replays += sum(one.replays for one in curved)
    bent = min(curved, key=_loss)
    return replace(bent if _loss(bent) < SATURATION_GAIN * _loss(best) else best, replays=replays)


def _loss(found: Found) -> float:
    return found.fitted_on.loss


def rough(run: EngineRun, spec: BackendSpec) -> Found:
    """The best parameters without a saturating term; for comparing engine limits."""
    return _descend(run, _with(spec, spec.step))


def quiet(step: StepParameters) -> StepParameters:
    """The same parameters without noise: a fit looks for means."""
    return replace(step, noise_sigma=0.0, stall_probability=0.0)


def _with(spec: BackendSpec, step: StepParameters) -> BackendSpec:
    return replace(spec, step=quiet(step))


def _curved(step: StepParameters, saturation_tokens: float) -> StepParameters:
    """The same parameters with a part of the base as a saturating term."""
    whole = step.base_s + step.saturating_s
    return replace(step, base_s=0.7 * whole, saturating_s=0.3 * whole, saturation_tokens=saturation_tokens)


def _descend(run: EngineRun, spec: BackendSpec) -> Found:
    """Replay and regress in turn, from the best point so far; a step that does not help is halved.

    Where requests hardly queue, the batch itself depends on how long steps take: full steps then swing from
    too slow to too fast and back.
    """
    best = _found(run, spec)
    replays, stride = 1, 1.0
    target = regressed(run, best.played, best.spec.step)
    while replays < REPLAYS and stride >= LEAST_STRIDE:
        tried = _found(run, _with(spec, _between(best.spec.step, target, stride)))
        replays += 1
        if tried.fitted_on.loss < ENOUGH * best.fitted_on.loss:
            best, stride = tried, min(1.0, 2.0 * stride)
            target = regressed(run, best.played, best.spec.step)
        else:
            stride *= 0.5
    return replace(best, replays=replays)


def _found(run: EngineRun, spec: BackendSpec) -> Found:
    played = replayed(run, spec)
    return Found(spec, played, judge(run, played, run.odd), 1)


def replayed(run: EngineRun, spec: BackendSpec) -> Replay:
    """A replay; with prefix caching where something is preempted, since only there does it matter."""
    played = replay(run, spec)
    return replay(run, spec, own_prefixes=True) if played.preemptions else played


def _between(start: StepParameters, end: StepParameters, share: float) -> StepParameters:
    """`share` of the way from one set of parameters to another; the shape is the end's."""
    mixed = {
        each.name: (1.0 - share) * getattr(start, each.name) + share * getattr(end, each.name)
        for each in fields(StepParameters)
    }
    return StepParameters(**{**mixed, "saturation_tokens": end.saturation_tokens})


def regressed(run: EngineRun, played: Replay, step: StepParameters) -> StepParameters:
    """Parameters that explain the measured durations of the odd requests under a replay's schedule."""
    odd = run.odd
    decode = (played.done_at_last - played.done_at_first)[odd]
    prefill = (played.done_at_first - played.done_at_queued)[odd]
    sums = np.vstack([decode, prefill])
    durations = np.concatenate([(run.last - run.first)[odd], (run.first - run.queued)[odd]])
    weights = np.concatenate([np.ones(len(decode)), np.full(len(prefill), TTFT_WEIGHT)])
    columns, fixed = _columns(sums, step)
    rest = durations - fixed
    usable = rest > _FINITE_SHARE * np.maximum(durations, 1e-9)
    if usable.sum() < columns.shape[1]:
        return step
    solution = relative_fit(columns[usable], rest[usable], weights=weights[usable], linear_beyond=0.01)
    return _renewed(step, solution)


def _columns(sums: FloatArray, step: StepParameters) -> tuple[FloatArray, FloatArray]:
    """What the coefficients multiply, and the part of the durations that none of them explains.

    Attention pairs go with prompt tokens at the ratio of the start: short prompts cannot tell them apart, and
    a pair cost of 0 would make long prompts far too cheap.
    """
    steps, decodes, contexts, tokens, pairs = sums[:, :REGRESSORS].T
    prompt = tokens + _pair_ratio(step) * pairs
    linear = (
        step.base_s * steps
        + step.per_sequence_s * decodes
        + step.per_context_token_s * contexts
        + step.per_prefill_token_s * prompt
    )
    # The saturating term, and steps that only prefill: those are not the sum of the terms.
    other = sums[:, BUSY] - linear
    if step.saturating_s > 0.0:
        curved = np.maximum(other, 0.0) / step.saturating_s
        return np.column_stack([steps, decodes, contexts, prompt, curved]), np.zeros(len(sums))
    return np.column_stack([steps, decodes, contexts, prompt]), other


def _pair_ratio(step: StepParameters) -> float:
    per_token = step.per_prefill_token_s
    return step.per_attention_pair_s / per_token if per_token > 0.0 else 0.0


def _renewed(step: StepParameters, solution: FloatArray) -> StepParameters:
    base, per_sequence, per_context, per_token = (float(value) for value in solution[:4])
    saturating = float(solution[4]) if len(solution) > 4 else 0.0
    ratio = _pair_ratio(step)
    base = max(base, 1e-6)
    scale = (base + saturating) / (step.base_s + step.saturating_s)
    return replace(
        step,
        base_s=base,
        per_sequence_s=per_sequence,
        per_context_token_s=per_context,
        per_prefill_token_s=max(per_token, 1e-9),
        per_attention_pair_s=ratio * max(per_token, 1e-9),
        # No run tells the fixed costs of a prefill on an idle device: they go with those of a step.
        prefill_base_s=step.prefill_base_s * scale,
        prefill_floor_s=step.prefill_floor_s * scale,
        saturating_s=saturating,
    )
