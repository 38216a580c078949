"""How far a replay is from the run it replays, request by request.

TTFT      first_token_ts - queued_ts (the engine's own clock; simulated: from the end of the step in which the
          request arrives, when an engine looks into its inbox)
TPOT      (last_token_ts - first_token_ts) / (output tokens - 1), of answers of at least two tokens
latency   last_token_ts - queued_ts
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.calibration.regress import FloatArray
from backends.calibration.replay import Replay
from backends.calibration.runfile import EngineRun

Mask = NDArray[np.bool_]
SHORTEST_S = 1e-4
"""Times below the resolution of the stamps count as this, or a relative error would mean nothing."""


@dataclass(frozen=True, slots=True)
class Times:
    """Measured or modelled, per request; NaN where there is none."""

    ttft_s: FloatArray
    tpot_s: FloatArray
    latency_s: FloatArray


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean absolute and mean signed relative errors over some requests, as fractions."""

    requests: int
    latency_mape: float
    tpot_mape: float
    ttft_mape: float
    latency_bias: float
    tpot_bias: float
    ttft_bias: float

    @property
    def loss(self) -> float:
        """What a fit minimises. TTFT counts a third: it is short, so the same seconds weigh more in it."""
        return self.latency_mape + self.tpot_mape + self.ttft_mape / 3.0

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {name: getattr(self, name) for name in self.__slots__}


def measured(run: EngineRun) -> Times:
    """What the real engine did."""
    return _times(run.queued, run.first, run.last, run.outputs)


def modelled(run: EngineRun, played: Replay) -> Times:
    """What the simulated engine did."""
    return _times(played.queued, played.first, played.last, run.outputs)


def _times(queued: FloatArray, first: FloatArray, last: FloatArray, outputs: FloatArray) -> Times:
    steps = np.where(outputs > 1, outputs - 1, np.nan)
    return Times(first - queued, (last - first) / steps, last - queued)


def judge(run: EngineRun, played: Replay, which: Mask) -> Errors:
    """Errors over the requests that `which` selects."""
    real, simulated = measured(run), modelled(run, played)
    latency = _relative(simulated.latency_s, real.latency_s, which)
    tpot = _relative(simulated.tpot_s, real.tpot_s, which)
    ttft = _relative(simulated.ttft_s, real.ttft_s, which)
    return Errors(
        int(which.sum()),
        *(float(np.nanmean(np.abs(error))) for error in (latency, tpot, ttft)),
        *(float(np.nanmean(error)) for error in (latency, tpot, ttft)),
    )


def _relative(simulated: FloatArray, real: FloatArray, which: Mask) -> FloatArray:
    return np.asarray((simulated / np.maximum(real, SHORTEST_S) - 1.0)[which], dtype=np.float64)
