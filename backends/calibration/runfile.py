"""Reads a run of a real engine: per request its lengths, and when it was queued, scheduled and answered.

Two clocks are in such a file. arrival_time is the front end's wall clock; queued_ts, scheduled_ts,
first_token_ts and last_token_ts are the engine's monotonic clock. A difference across them means nothing, but
their offset is constant, and no request is queued before it arrived: the least queued_ts - arrival_time of a
run is the offset (plus the shortest way from front end to engine, which cannot be told from it). So arrivals
are known on the engine's clock. A request is queued up to a step later than it arrives, because an engine
looks at its inbox between steps only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from backends.calibration.csvfile import count, number, read_rows
from backends.calibration.regress import FloatArray
from router.errors import ConfigError

COLUMNS: Final = (
    "request_id", "input_toks", "output_toks", "arrival_time", "queued_ts", "scheduled_ts", "first_token_ts",
    "last_token_ts",
)  # fmt: skip
LEAST_REQUESTS: Final = 20
MAX_REQUESTS: Final = 200_000
_TIMES: Final = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
SLACK_S: Final = 1e-3
"""Time stamps of one moment may be out of order by this much."""


@dataclass(frozen=True, slots=True)
class EngineRun:
    """One entry per request, in the file's order; seconds on the engine's clock, 0 at the first arrival."""

    name: str
    prompts: FloatArray
    """Tokens, whole numbers."""
    outputs: FloatArray
    arrived: FloatArray
    queued: FloatArray
    scheduled: FloatArray
    first: FloatArray
    last: FloatArray
    notes: tuple[str, ...] = ()
    """What was inferred or corrected."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def odd(self) -> NDArray[np.bool_]:
        """The requests at odd places of the file, counted from 0: those that a fit may look at."""
        return np.asarray(np.arange(len(self)) % 2 == 1)


def read_run(path: Path) -> EngineRun:
    """A run from its CSV file; raise ConfigError naming the line when it is wrong."""
    rows: list[tuple[float, ...]] = []
    for line, row in read_rows(path, COLUMNS):
        where = f"{path} line {line}"
        lengths = (float(count(row, "input_toks", where)), float(count(row, "output_toks", where)))
        times = tuple(number(row, column, where) for column in ("arrival_time", *_TIMES))
        _check_order(times[1:], where)
        rows.append((*lengths, *times))
        if len(rows) > MAX_REQUESTS:
            raise ConfigError(f"{path} has more than {MAX_REQUESTS} requests; cut it down.")
    if len(rows) < LEAST_REQUESTS:
        raise ConfigError(
            f"{path} has {len(rows)} requests; a fit on half of them says nothing below {LEAST_REQUESTS}. "
            "Record a longer run."
        )
    answers = np.array([outputs for _, outputs, *_ in rows])
    if min(np.sum(answers[0::2] > 1), np.sum(answers[1::2] > 1)) < LEAST_REQUESTS // 2:
        raise ConfigError(
            f"{path}: hardly any answer has a second token, so there is no time per output token to fit. "
            "Record a run with longer answers."
        )
    return _on_one_clock(path.name, np.array(rows).T)


def _check_order(times: Sequence[float], where: str) -> None:
    stamps = list(zip(_TIMES, times, strict=True))
    for (earlier, a), (later, b) in pairwise(stamps):
        if b < a - SLACK_S:
            raise ConfigError(
                f"{where}: {later} is {a - b:.6f} s before {earlier}; the time stamps of a request must "
                "rise. Correct the line or leave it out."
            )


def _on_one_clock(name: str, columns: FloatArray) -> EngineRun:
    prompts, outputs, arrival, queued, scheduled, first, last = columns
    offset = float(np.min(queued - arrival))
    arrived = arrival + offset
    zero = float(np.min(arrived))
    run = EngineRun(
        name, prompts, outputs, arrived - zero, queued - zero, scheduled - zero, first - zero, last - zero,
        (f"clocks: arrival_time + {offset:.6f} s is the engine's clock",),
    )  # fmt: skip
    return _without_front_end_waits(run)


def _without_front_end_waits(run: EngineRun) -> EngineRun:
    """Let no request arrive more than a step before it is queued: the engine does not know of it before."""
    inbox = run.queued - run.arrived
    step = float(np.quantile(run.first - run.scheduled, 0.9))
    late = int(np.sum(inbox > step))
    if not late:
        return run
    note = f"{late} requests reached the engine's inbox over {step:.3f} s late: taken as later arrivals"
    return replace(run, arrived=np.maximum(run.arrived, run.queued - step), notes=(*run.notes, note))
