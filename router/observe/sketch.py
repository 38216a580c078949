"""A histogram with logarithmic buckets: quantiles within 1 %, in bounded memory.

Prometheus buckets are too coarse for a table of percentiles. The idea is that of DDSketch (Masson, Rim and
Lee, VLDB 2019, section 2): with ratio g = (1 + e) / (1 - e), a value x falls into bucket ceil(log_g x), whose
middle 2 g^i / (g + 1) is within a relative error e of x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

_ERROR: Final = 0.01
_RATIO: Final = (1 + _ERROR) / (1 - _ERROR)
_LOG_RATIO: Final = math.log(_RATIO)
_SMALLEST: Final = 1e-9
"""Anything below counts as zero: there are no nanoseconds in this domain."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of one latency, in seconds; zeros when nothing was counted."""

    count: int = 0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0


class Sketch:
    """Counts values of at least zero. Between 1 ns and a day there are at most about 1,600 buckets."""

    __slots__ = ("_buckets", "_zeros", "count")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._zeros = 0
        self.count = 0

    def add(self, value: float) -> None:
        """Count a value."""
        self.count += 1
        if value < _SMALLEST:
            self._zeros += 1
            return
        index = math.ceil(math.log(value) / _LOG_RATIO)
        self._buckets[index] = self._buckets.get(index, 0) + 1

    def quantile(self, q: float) -> float:
        """The value of rank ceil(q x count), within 1 %; 0 when nothing was counted. q is in [0, 1]."""
        rank = max(1, math.ceil(q * self.count))
        if rank <= self._zeros or not self._buckets:
            return 0.0
        seen = self._zeros
        for index in sorted(self._buckets):
            seen += self._buckets[index]
            if seen >= rank:
                return _middle(index)
        return _middle(max(self._buckets))

    def percentiles(self) -> Percentiles:
        """The three that tables show."""
        return Percentiles(self.count, self.quantile(0.5), self.quantile(0.9), self.quantile(0.99))


def _middle(index: int) -> float:
    return float(2 * _RATIO**index / (_RATIO + 1))
