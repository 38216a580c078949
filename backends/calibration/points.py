"""Published measurements as points, one row each, and which of them a law can be fitted to.

The file has the columns of COLUMNS. What a context cell says depends on the metric: `8192`, `8192(cached
4096)` (a prompt of which a part was cached), `512+128` (prompt and answer), `1024/8192` (input and output
length of a serving run), or a word. Rows that no law covers are counted with the reason, not dropped.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from backends.calibration.csvfile import number, read_rows

COLUMNS: Final = (
    "device", "model", "precision", "tp", "metric", "batch", "context_or_prompt_tokens", "value", "unit",
    "source", "trust",
)  # fmt: skip
MAX_POINTS: Final = 1_000_000
_JITTER: Final = "jitter: the step model has no law for percentiles"
_POWER: Final = "input of the power law"
WITHOUT_LAW: Final[Mapping[str, str]] = {
    "ttft_agg": "tells which serving runs queued",
    "power_total": _POWER,
    "output_tput": _POWER,
    "itl_p50": _JITTER,
    "itl_p90": _JITTER,
    "itl_p99": _JITTER,
    "energy_per_token": "follows from power and throughput",
}
"""Metrics of whole series that no law is fitted to, with the reason."""


class Quantity(StrEnum):
    """What a law predicts."""

    DECODE = "decode"
    PREFILL = "prefill"
    SERVING = "serving"
    """Time per output token under a constant number of requests in flight."""
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Point:
    """One row."""

    line: int
    device: str
    model: str
    precision: str
    parallel: str
    """Tensor parallelism, or the words of the source for it."""
    metric: str
    batch: str
    context: str
    value: float
    unit: str
    source: str
    trust: str


@dataclass(frozen=True, slots=True)
class Group:
    """Points of one device, model, precision, parallelism and source."""

    device: str
    model: str
    precision: str
    parallel: str
    source: str
    quantity: Quantity

    @property
    def label(self) -> str:
        """For tables."""
        split = f"tp{self.parallel}" if self.parallel.isdigit() else self.parallel
        return " ".join(part for part in (self.device, self.model, self.precision, split) if part)


@dataclass(frozen=True, slots=True)
class Series:
    """The points of a group as numbers."""

    group: Group
    inputs: tuple[tuple[float, ...], ...]
    """DECODE: sequences, contexts; PREFILL: tokens, pairs; SERVING: in flight, isl, osl; LINK: bytes."""
    seconds: tuple[float, ...]
    trust: str


@dataclass(frozen=True, slots=True)
class Uncovered:
    """Rows that no law is fitted to."""

    metric: str
    source: str
    reason: str
    rows: int


def read_points(path: Path) -> tuple[Point, ...]:
    """All rows of a points file; raise ConfigError when it is wrong."""
    points: list[Point] = []
    for line, row in read_rows(path, COLUMNS):
        value = number(row, "value", f"{path} line {line}")
        points.append(
            Point(
                line, row["device"], row["model"], row["precision"], row["tp"], row["metric"], row["batch"],
                row["context_or_prompt_tokens"], value, row["unit"], row["source"], row["trust"],
            )
        )  # fmt: skip
        if len(points) >= MAX_POINTS:
            break
    return tuple(points)


def series_of(points: Iterable[Point]) -> tuple[tuple[Series, ...], tuple[Uncovered, ...]]:
    """Group the points that a law covers, and count the others by reason."""
    points = tuple(points)
    waits = _first_token_waits(points)
    grouped: dict[Group, list[tuple[tuple[float, ...], float, str]]] = defaultdict(list)
    uncovered: dict[tuple[str, str, str], int] = defaultdict(int)
    for point in points:
        read = _read(point, waits)
        if isinstance(read, str):
            uncovered[point.metric, point.source, read] += 1
            continue
        quantity, inputs, seconds = read
        group = Group(point.device, point.model, point.precision, point.parallel, point.source, quantity)
        grouped[group].append((inputs, seconds, point.trust))
    series = tuple(_series(group, rows) for group, rows in grouped.items())
    return series, tuple(Uncovered(*key, rows) for key, rows in sorted(uncovered.items()))


def _series(group: Group, rows: Sequence[tuple[tuple[float, ...], float, str]]) -> Series:
    inputs, seconds, trust = zip(*rows, strict=True)
    return Series(group, inputs, seconds, trust[0])


Read = tuple[Quantity, tuple[float, ...], float]


def _read(point: Point, waits: Mapping[int, float]) -> Read | str:
    """The numbers of a point, or why no law covers it."""
    match point.metric:
        case _ if point.value <= 0.0:
            return "the value is not above 0"
        case "decode_step_latency" | "output_tps":
            return _decode(point)
        case "prefill_latency" | "ttft_pd":
            return _prefill(point)
        case "tpot_agg":
            return _serving(point, waits)
        case "kv_transfer_time":
            return _link(point)
        case metric:
            return WITHOUT_LAW.get(metric, "a single figure: nothing to fit a law to")


def _decode(point: Point) -> Read | str:
    if point.metric == "output_tps" and point.batch != "1":
        return "tokens a second of a batch nobody states"
    seconds = 1.0 / point.value if point.metric == "output_tps" else point.value * 1e-3
    if (plain := _lengths(point.context)) is None or (batch := _whole(point.batch)) is None:
        return "batch or context is not a number"
    prompt, answer = plain
    # Published per-step times of a run with a growing context are means over the answer.
    return Quantity.DECODE, (batch, batch * (prompt + 0.5 * answer)), seconds


def _prefill(point: Point) -> Read | str:
    found = re.fullmatch(r"(\d+)(?:\(cached (\d+)\))?", point.context)
    batch = _whole(point.batch)
    if found is None or batch is None:
        return "batch or prompt is not a number"
    cached = float(found[2] or 0)
    new = float(found[1]) - cached
    if new <= 0:
        return "nothing of the prompt is new"
    return Quantity.PREFILL, (batch * new, batch * new * (cached + 0.5 * new)), point.value * 1e-3


def _serving(point: Point, waits: Mapping[int, float]) -> Read | str:
    found = re.fullmatch(r"(\d+)/(\d+)", point.context)
    flight = _whole(point.batch)
    if found is None or flight is None:
        return "concurrency or lengths are not numbers"
    prompt, answer = float(found[1]), float(found[2])
    wait = waits.get(point.line)
    if wait is None:
        return "no time to first token of the same run: it cannot be told whether requests queued"
    # A run that waits longer than this has a queue, so fewer sequences run than are in flight.
    if wait > 0.25 * answer * point.value + 200.0:
        return "requests queued: the batch is smaller than the number in flight"
    return Quantity.SERVING, (flight, prompt, answer), point.value * 1e-3


def _link(point: Point) -> Read | str:
    found = re.search(r"\((\d+(?:\.\d+)?) MB\)", point.unit)
    if found is None:
        return "the unit does not say how many bytes"
    return Quantity.LINK, (float(found[1]) * 1e6,), point.value * 1e-3


def _first_token_waits(points: Iterable[Point]) -> dict[int, float]:
    """Milliseconds to the first token, by the line of the time per token of the same run, before it."""
    waits: dict[int, float] = {}
    open_lines: dict[tuple[str, ...], deque[int]] = defaultdict(deque)
    for point in points:
        if point.metric == "tpot_agg":
            open_lines[_run_of(point)].append(point.line)
        elif point.metric == "ttft_agg" and (lines := open_lines[_run_of(point)]):
            waits[lines.popleft()] = point.value
    return waits


def _run_of(point: Point) -> tuple[str, ...]:
    return (
        point.device, point.model, point.precision, point.parallel, point.source, point.batch, point.context,
    )  # fmt: skip


def _lengths(context: str) -> tuple[float, float] | None:
    found = re.fullmatch(r"(\d+)(?:\+(\d+))?", context)
    return None if found is None else (float(found[1]), float(found[2] or 0))


def _whole(text: str) -> float | None:
    found = re.fullmatch(r"(\d+)(?:\.0)?", text)
    return float(found[1]) if found is not None and int(found[1]) > 0 else None
