"""The power law, fitted to published power of GPUs that serve at a steady rate.

    P = min(idle + joule_per_byte x bytes/s + joule_per_flop x FLOP/s, cap)      per GPU

Bytes and FLOPs follow from the published throughput and batch and from the model (moved.py). Prompt lengths
were not published; PROMPTS are assumptions.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import least_squares

from backends.calibration.moved import ANATOMIES, WEIGHT_BYTES, Anatomy
from backends.calibration.points import Point
from backends.calibration.regress import FOLDS, FloatArray, mape

PROMPTS: Final[Mapping[str, float]] = {"lm-arena-chat": 150.0, "gpqa": 250.0}
"""Assumed mean prompt tokens by published workload."""
LEAST_POINTS: Final = 12


@dataclass(frozen=True, slots=True)
class Draw:
    """One configuration at work, per GPU."""

    gpu: str
    family: str
    tera_bytes_per_s: float
    tera_flop_per_s: float
    watts: float


@dataclass(frozen=True, slots=True)
class PowerFit:
    """The law of one GPU with dense models, or with one mixture of experts. Errors are fractions."""

    gpu: str
    family: str
    points: int
    idle_w: float
    joule_per_tera_byte: float
    """Also pJ per byte."""
    joule_per_tera_flop: float
    """Also pJ per FLOP."""
    cap_w: float
    error: float
    held_out: float


def draws_of(points: Iterable[Point]) -> tuple[Draw, ...]:
    """The configurations whose model and workload are known."""
    runs: dict[tuple[str, ...], dict[str, Point]] = defaultdict(dict)
    for point in points:
        if point.metric in ("power_total", "output_tput"):
            key = (point.device, point.model, point.precision, point.parallel, point.batch, point.context)
            runs[key][point.metric] = point
    drawn = (_draw(run) for run in runs.values())
    return tuple(draw for draw in drawn if draw is not None)


def _draw(run: Mapping[str, Point]) -> Draw | None:
    power, throughput = run.get("power_total"), run.get("output_tput")
    if power is None or throughput is None:
        return None
    device = re.fullmatch(r"(\w+?)x(\d+)", power.device)
    load = re.fullmatch(r"([\w-]+) out~(\d+)", power.context)
    anatomy, width = ANATOMIES.get(power.model), WEIGHT_BYTES.get(power.precision)
    if device is None or load is None or anatomy is None or width is None or load[1] not in PROMPTS:
        return None
    gpus, batch = int(device[2]), float(power.batch)
    moved, computed = _work(anatomy, width, batch, throughput.value, PROMPTS[load[1]], float(load[2]))
    return Draw(device[1], anatomy.family, moved / gpus, computed / gpus, power.value / gpus)


def _work(
    anatomy: Anatomy, width: float, batch: float, tokens_per_s: float, prompt: float, answer: float
) -> tuple[float, float]:
    """Terabytes and teraFLOPs a second of the whole configuration; the KV cache is in 16 bits."""
    weights = anatomy.weights_read_b(batch) * 1e9 * width
    context = batch * (prompt + 0.5 * answer) * anatomy.kv_elements * 2.0
    moved = tokens_per_s / batch * (weights + context)
    computed = 2.0 * anatomy.active_b * 1e9 * tokens_per_s * (1.0 + prompt / answer)
    return moved * 1e-12, computed * 1e-12


def fit_power(draws: Sequence[Draw]) -> tuple[PowerFit, ...]:
    """One law per GPU and family of models with at least LEAST_POINTS configurations."""
    groups: dict[tuple[str, str], list[Draw]] = defaultdict(list)
    for draw in draws:
        groups[draw.gpu, draw.family].append(draw)
    return tuple(
        _fit(gpu, family, group)
        for (gpu, family), group in sorted(groups.items())
        if len(group) >= LEAST_POINTS
    )


def _fit(gpu: str, family: str, draws: Sequence[Draw]) -> PowerFit:
    work = np.array([(draw.tera_bytes_per_s, draw.tera_flop_per_s) for draw in draws])
    watts = np.array([draw.watts for draw in draws])
    law = _law(work, watts)
    idle, per_byte, per_flop, cap = (float(value) for value in law)
    error, unseen = mape(_watts(law, work), watts), _held_out(work, watts)
    return PowerFit(gpu, family, len(draws), idle, per_byte, per_flop, cap, error, unseen)


def _watts(law: FloatArray, work: FloatArray) -> FloatArray:
    return np.asarray(np.minimum(law[0] + work @ law[1:3], law[3]), dtype=np.float64)


def _law(work: FloatArray, watts: FloatArray) -> FloatArray:
    """Best of a few starts: the cap makes the error surface uneven."""
    scale = np.array([watts.min(), 100.0, 1.0, watts.max()])
    starts = [(idle, 1.0, 1.0, cap) for idle in (0.3, 0.8) for cap in (0.9, 1.0)]
    found = [
        least_squares(
            lambda x: np.log(_watts(x * scale, work) / watts),
            start,
            bounds=(1e-6, np.inf),
            loss="soft_l1",
            f_scale=0.02,
        )
        for start in starts
    ]
    best = min(found, key=lambda result: float(result.cost))
    return np.asarray(best.x * scale, dtype=np.float64)


def _held_out(work: FloatArray, watts: FloatArray) -> float:
    order = np.random.default_rng(7).permutation(len(watts))
    predicted = np.empty(len(watts))
    for fold in range(FOLDS):
        out = order[fold::FOLDS]
        seen = np.setdiff1d(order, out)
        predicted[out] = _watts(_law(work[seen], watts[seen]), work[out])
    return mape(predicted, watts)
