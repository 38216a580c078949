"""`make hardware`: the roofline prior's error against published times, as the tables of docs/hardware.md.

Composed: grids of AIConfigurator 0.12, to which the GPU families' factors were fitted; kernels alone. The
column `cold` takes another generation's factors instead, as for a device that nobody has measured. Served:
runs of vLLM by InferenceX and NVIDIA, to which nothing here was fitted; time per output token, engine
included.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backends import calibration
from backends.calibration.points import Quantity, Series, read_points, series_of
from backends.hardware import load_device, load_shape
from backends.models.device import Device
from backends.models.latency import StepModel
from backends.models.roofline import step_law
from backends.models.shape import Dtype
from router.model import StepParameters

POINTS = Path(calibration.__file__).parent / "data" / "points.csv.gz"
DEVICES: Mapping[str, str] = {
    "a100_sxm": "a100", "h100_sxm": "h100", "h200_sxm": "h200", "b200_sxm": "b200", "b300_sxm": "b300",
    "gb200": "gb200-nvl72", "gb300": "gb300-nvl72", "l40s": "l40s", "rtx_pro_6000_server": "rtx-pro-6000",
    "b60": "arc-b60",
}  # fmt: skip
MODELS: Mapping[str, str] = {
    "Meta-Llama-3.1-8B": "llama-3.1-8b", "Meta-Llama-3.1-70B": "llama-3.1-70b",
    "Meta-Llama-3.1-405B": "llama-3.1-405b", "Llama-3.1-70B": "llama-3.1-70b",
    "Llama-3.1-8B-Instruct": "llama-3.1-8b", "Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "Qwen3-32B": "qwen3-32b", "Qwen3-30B-A3B": "qwen3-30b-a3b", "Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
    "gpt-oss-120b": "gpt-oss-120b", "DeepSeek-R1": "deepseek-r1",
}  # fmt: skip
FORMATS: Mapping[tuple[str, str], Dtype] = {("gpt-oss-120b", "fp4"): Dtype.MXFP4, ("", "fp4"): Dtype.NVFP4}
COLD: Mapping[str, str] = {
    "ampere": "hopper", "hopper": "blackwell", "blackwell": "hopper", "blackwell-rtx": "ada",
    "ada": "blackwell-rtx", "xe2": "ada",
}  # fmt: skip
NO_LAW_FITS = ("deepseek-r1", "qwen3-235b-a22b")
"""Models whose grids are out of line with their sizes; left out of the fit and of the medians."""


@dataclass(frozen=True, slots=True)
class Row:
    """One combination. Errors are mean absolute, as fractions; None where there is no such data."""

    device: str
    model: str
    dtype: Dtype
    count: int
    decode: float | None = None
    prefill: float | None = None
    cold_decode: float | None = None
    cold_prefill: float | None = None
    served: float | None = None
    served_bias: float | None = None
    points: int = 0


def composed() -> tuple[Row, ...]:
    """A row for each combination of the composed grids."""
    rows: dict[tuple[str, str, Dtype, int], Row] = {}
    for series in _series(("AIConfigurator 0.12",), (Quantity.DECODE, Quantity.PREFILL)):
        device, shape, dtype, count = _combination(series)
        key = (device.name, shape, dtype, count)
        row = rows.setdefault(key, Row(*key))
        warm, cold = _law(device, shape, dtype, count), _law(_cold(device), shape, dtype, count)
        if series.group.quantity is Quantity.DECODE:
            row = replace(row, decode=_error(series, warm), cold_decode=_error(series, cold))
        else:
            row = replace(row, prefill=_error(series, warm), cold_prefill=_error(series, cold))
        rows[key] = row
    return tuple(rows[key] for key in sorted(rows))


def served() -> tuple[Row, ...]:
    """A row for each series of measured vLLM serving that the law can speak of: tensor parallel only."""
    rows: list[Row] = []
    for series in _series(("InferenceX", "NVIDIA AIC team"), (Quantity.SERVING,)):
        if "(vllm" in series.group.source and re.fullmatch(r"tp\d+ep1", series.group.parallel):
            device, shape, dtype, count = _combination(series)
            ratios = list(_serving(series, _law(device, shape, dtype, count, engine="vllm")))
            error, bias = _mean(abs(r - 1.0) for r in ratios), _mean(r - 1.0 for r in ratios)
            row = Row(device.name, shape, dtype, count, served=error, served_bias=bias, points=len(ratios))
            rows.append(row)
    return tuple(sorted(rows, key=lambda row: (row.device, row.model, row.dtype, row.count)))


def _series(sources: tuple[str, ...], quantities: Sequence[Quantity]) -> Iterator[Series]:
    for series in series_of(read_points(POINTS))[0]:
        group = series.group
        known = group.device in DEVICES and group.model in MODELS
        if known and group.source.startswith(sources) and group.quantity in quantities:
            yield series


Combination = tuple[Device, str, Dtype, int]


def _combination(series: Series) -> Combination:
    group = series.group
    model = MODELS[group.model]
    named = FORMATS.get((model, group.precision)) or FORMATS.get(("", group.precision))
    dtype = named or Dtype(group.precision or "bf16")
    count = int(re.findall(r"\d+", group.parallel)[0])
    return load_device(DEVICES[group.device]), model, dtype, count


def _cold(device: Device) -> Device:
    family = replace(device.efficiency, value=COLD[device.efficiency.value])
    return replace(device, efficiency=family)


def _law(device: Device, model: str, dtype: Dtype, count: int, engine: str = "kernels") -> StepParameters:
    cache = Dtype.FP8 if dtype in {Dtype.FP8, Dtype.NVFP4} else Dtype.BF16
    return step_law(device, load_shape(model), count, dtype, cache, engine)


def _error(series: Series, step: StepParameters) -> float:
    law = StepModel(step)
    ratios: list[float] = []
    for inputs, seconds in zip(series.inputs, series.seconds, strict=True):
        first, second = inputs
        if series.group.quantity is Quantity.DECODE:
            predicted = law.decode_step_s(int(first), int(second))
        else:
            predicted = law.mixed_step_s(0, 0, int(first), second)
        ratios.append(predicted / seconds)
    return _mean(abs(ratio - 1.0) for ratio in ratios)


def _serving(series: Series, step: StepParameters) -> Iterator[float]:
    """Predicted over measured: a decode step of all requests, and each answer's share of a prompt's "
    "prefill."""
    law = StepModel(step)
    for (flight, prompt, answer), seconds in zip(series.inputs, series.seconds, strict=True):
        decode = law.decode_step_s(int(flight), int(flight * (prompt + 0.5 * answer)))
        chunk = prompt * step.per_prefill_token_s + 0.5 * prompt * prompt * step.per_attention_pair_s
        yield (decode + flight / answer * chunk) / seconds


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def medians(rows: Sequence[Row]) -> tuple[float, float, float, float]:
    """Of decode, prefill, and both cold, over the combinations a law fits."""
    kept = [row for row in rows if row.model not in NO_LAW_FITS]
    columns = ("decode", "prefill", "cold_decode", "cold_prefill")
    first, second, third, fourth = (statistics.median(getattr(r, name) for r in kept) for name in columns)
    return first, second, third, fourth


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def report() -> str:
    """Both tables as markdown."""
    return f"{_composed_table()}\n\n{_served_table()}"


def _composed_table() -> str:
    rows = composed()
    lines = [
        "| device | model | format | devices | decode | prefill | cold decode | cold prefill |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        errors = (row.decode, row.prefill, row.cold_decode, row.cold_prefill)
        lines.append(f"| {_what(row)} | {' | '.join(map(_percent, errors))} |")
    kept = sum(row.model not in NO_LAW_FITS for row in rows)
    lines.append(f"| **median of {kept}** | | | | {' | '.join(map(_percent, medians(rows)))} |")
    return "\n".join(lines)


def _served_table() -> str:
    rows = served()
    lines = ["| device | model | format | devices | runs | error | bias |", "|---|---|---|--:|--:|--:|--:|"]
    for row in rows:
        bias = "-" if row.served_bias is None else f"{row.served_bias:+.1%}"
        lines.append(f"| {_what(row)} | {row.points} | {_percent(row.served)} | {bias} |")
    median = statistics.median(row.served or 0.0 for row in rows)
    lines.append(f"| **median of {len(rows)}** | | | | | {_percent(median)} | |")
    return "\n".join(lines)


def _what(row: Row) -> str:
    return f"{row.device} | {row.model} | {row.dtype} | {row.count}"


if __name__ == "__main__":
    print(report())
