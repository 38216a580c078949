"""Notices that a load is more than the fleet can do, so that a run ends with a reason and not never.

The sign is the backlog: requests that no backend works on. Under a load that the fleet sustains it goes up
and down; above it, it grows for as long as requests come. Requests in decode are not counted: while long
answers start, their number grows under any load.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from router.model import Seconds

WINDOWS: Final = 6
"""Windows in a row that must look alike."""
GROWTH: Final = 0.05
"""Share of the arrivals by which the backlog must have grown over them."""
LEAST: Final = 50
"""A smaller backlog is no overload."""
SHED: Final = 0.25
"""Share of the arrivals that are refused or late, in every window, above which the load is too high."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Counts at the end of a window, since the start."""

    at: Seconds
    arrived: int
    ended: int
    crowded: int
    """Of the ended, those that failed for want of room or time."""
    backlog: int


class Stability:
    """Looks at readings in windows of equal length."""

    def __init__(self, horizon_s: Seconds | None) -> None:
        """`horizon_s` is how long requests come, if known: windows are a fortieth of it, 5 to 120 s."""
        self.window_s = 10.0 if horizon_s is None else min(max(horizon_s / 40.0, 5.0), 120.0)
        self._readings: deque[Reading] = deque([Reading(0.0, 0, 0, 0, 0)], maxlen=WINDOWS + 1)

    def verdict(self, reading: Reading) -> str:
        """Why the load is too high, or nothing."""
        self._readings.append(reading)
        if len(self._readings) <= WINDOWS:
            return ""
        readings = list(self._readings)
        pairs = list(pairwise(readings))
        if any(after.arrived == before.arrived for before, after in pairs):
            return ""
        return self._growing(pairs) or self._shedding(pairs)

    def _growing(self, pairs: list[tuple[Reading, Reading]]) -> str:
        first, last = pairs[0][0], pairs[-1][1]
        growth, came = last.backlog - first.backlog, last.arrived - first.arrived
        steady = all(after.backlog > before.backlog for before, after in pairs)
        if not steady or growth < GROWTH * came or last.backlog < LEAST:
            return ""
        span = last.at - first.at
        return (
            f"the load is above what the fleet does with this policy: {came / span:.3g} requests/s came and"
            f" {(last.ended - first.ended) / span:.3g}/s ended, and the backlog grew from {first.backlog} to"
            f" {last.backlog} in the last {span:.0f} s. Lower the rate, add backends, or try another policy"
        )

    def _shedding(self, pairs: list[tuple[Reading, Reading]]) -> str:
        if any(b.crowded - a.crowded < SHED * (b.arrived - a.arrived) for a, b in pairs):
            return ""
        first, last = pairs[0][0], pairs[-1][1]
        share = (last.crowded - first.crowded) / (last.arrived - first.arrived)
        return (
            f"the load is above what the fleet does with this policy: in the last {last.at - first.at:.0f} s"
            f" {share:.0%} of the requests were refused or late. Lower the rate, add backends, or relax the"
            " deadlines"
        )
