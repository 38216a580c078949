"""A histogram of times with logarithmic buckets: quantiles within 0.25 %, sums exact, memory bounded.

Finer than router/observe/sketch.py, because simulations are compared with each other: with ratio
g = (1 + e) / (1 - e) a value x falls into bucket ceil(log_g x), whose middle 2 g^i / (g + 1) is within a
relative error e of x (DDSketch: Masson, Rim and Lee, VLDB 2019, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

ERROR: Final = 0.0025
_RATIO: Final = (1 + ERROR) / (1 - ERROR)
_PER_LOG: Final = 1.0 / math.log(_RATIO)
_SMALLEST: Final = 1e-7
"""Anything below counts as zero."""


class Histogram:
    """Counts values of at least zero. Between 100 ns and a day there are at most about 5,500 buckets."""

    __slots__ = ("_buckets", "_zeros", "count", "most", "total")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._zeros = 0
        self.count = 0
        self.total = 0.0
        self.most = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.count += 1
        if value < _SMALLEST:
            self._zeros += 1
            return
        self.total += value
        self.most = max(self.most, value)
        index = math.ceil(math.log(value) * _PER_LOG)
        buckets = self._buckets
        buckets[index] = buckets.get(index, 0) + 1

    def merge(self, other: Histogram) -> None:
        """Count everything that another histogram has counted."""
        self.count += other.count
        self.total += other.total
        self.most = max(self.most, other.most)
        self._zeros += other._zeros
        for index in sorted(other._buckets):
            self._buckets[index] = self._buckets.get(index, 0) + other._buckets[index]

    @property
    def mean(self) -> float:
        """0 when nothing was counted."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """The value of rank ceil(q x count), within ERROR; 0 when nothing was counted. q is in [0, 1]."""
        return self.quantiles((q,))[0]

    def quantiles(self, qs: Sequence[float]) -> list[float]:
        """Several quantiles, in ascending order of q, in one pass."""
        found: list[float] = []
        ranks = [max(1, math.ceil(q * self.count)) for q in qs]
        seen, value = self._zeros, 0.0
        indices = iter(sorted(self._buckets))
        for rank in ranks:
            while seen < rank and (index := next(indices, None)) is not None:
                seen += self._buckets[index]
                value = 2 * _RATIO**index / (_RATIO + 1)
            found.append(min(value, self.most))
        return found

    def summary(self) -> Mapping[str, float]:
        """What tables and files show; seconds but for the count."""
        p50, p90, p95, p99 = self.quantiles((0.5, 0.9, 0.95, 0.99))
        return {
            "count": self.count,
            "mean": self.mean,
            "p50": p50,
            "p90": p90,
            "p95": p95,
            "p99": p99,
            "max": self.most,
        }

    def curve(self, points: int = 60) -> list[tuple[float, float]]:
        """The distribution function as (value, share of values up to it), for charts."""
        if not self.count:
            return []
        qs = [i / points for i in range(1, points)] + [0.99, 0.995, 0.999, 1.0]
        qs = sorted(set(qs))
        return list(zip(self.quantiles(qs), qs, strict=True))
