"""Tells noise, outliers and changes apart, from the last surprises of one kind of work. Pure.

A surprise is the logarithm of observed over predicted time. One large surprise is an outlier: a stall, a
report that came at a bad moment. If half of the last ones are large, and alike, the device has changed. The
median and the median absolute deviation do not move when a few of the values are wild.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, NamedTuple

from backends.models.evidence import Evidence, Work
from router.model import Seconds

WINDOW: Final = 15
"""Observations looked back on. A change is seen when 8 of them agree; 8 of 15 at an outlier rate of 5 % come
together once in 6 million observations (binomial)."""
ENOUGH: Final = 7
"""Observations from which on a change can be told."""
GATE: Final = 4.0
"""Surprises beyond this many spreads are outliers."""
CLIP: Final = 2.0
"""Surprises beyond this many spreads count as if they were there (Huber)."""
SHIFT: Final = 1.2
"""A median beyond this many spreads is a change: the median of 15 has a standard deviation of 0.32."""
LEAST_SHIFT: Final = 0.08
"""Changes below 8 % are followed by the ordinary gain."""
WIDEST: Final = 0.35
"""Largest spread believed: with more, an observation five times too long would pass the gate."""
FEW: Final = 3
"""Observations from which on one that is wild can be told from the others."""
_MAD: Final = 1.4826
"""Standard deviation over median absolute deviation, of a normal distribution."""

FLOORS: Final = {
    Work.DECODE: 0.02,
    Work.PREFILL: 0.03,
    Work.MIXED: 0.05,
    Work.DECODE_PHASE: 0.1,
    Work.PREFILL_PHASE: 0.1,
}
"""Least spread: errors of the step model itself (2 to 4 % on public measurements; mixed steps and the shares
of single sequences are assumptions)."""


class Surprise(NamedTuple):
    """One observation with its surprise, by the ratios of its time."""

    evidence: Evidence
    value: float


class Surprises:
    """The last observations of one kind of work."""

    __slots__ = ("_last", "centre", "floor", "spread")

    def __init__(self, work: Work) -> None:
        self.floor = FLOORS[work]
        self.spread = self.floor
        """Standard deviation of ordinary surprises."""
        self.centre = 0.0
        """Median surprise."""
        self._last: deque[Surprise] = deque(maxlen=WINDOW)

    def __len__(self) -> int:
        return len(self._last)

    def add(self, evidence: Evidence, value: float) -> None:
        """Remember an observation."""
        self._last.append(Surprise(evidence, value))
        values = sorted([value for _, value in self._last])
        middle = len(values) // 2
        self.centre = centre = values[middle]
        if len(values) >= ENOUGH:
            distances = sorted([abs(value - centre) for value in values])
            self.spread = min(WIDEST, max(self.floor, _MAD * distances[middle]))

    @property
    def shifted(self) -> bool:
        """Whether most of the last observations say that the device has changed."""
        enough = len(self._last) >= ENOUGH
        return enough and abs(self.centre) > max(LEAST_SHIFT, SHIFT * self.spread)

    def ordinary(self, value: float) -> bool:
        """Whether a surprise is no outlier."""
        return abs(value) <= max(GATE * self.spread, LEAST_SHIFT)

    def clipped(self, value: float) -> float:
        """A surprise as far as it may move the ratios."""
        limit = CLIP * self.spread
        return math.copysign(min(abs(value), limit), value)

    @property
    def level(self) -> list[Evidence]:
        """The last observations that agree with their median, in order; none while there are too few."""
        return [] if len(self._last) < FEW else [each.evidence for each in self._last if self._agrees(each)]

    def take_since(self, onset: Seconds) -> list[Evidence]:
        """Forget all observations; return the level of those from `onset` on."""
        last = list(self._last)
        self._last.clear()
        for each in last:
            if each.evidence.at >= onset:
                self.add(each.evidence, each.value)
        level = self.level
        self._last.clear()
        return level

    def _agrees(self, surprise: Surprise) -> bool:
        return abs(surprise.value - self.centre) <= GATE * self.spread
