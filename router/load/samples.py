"""Exact percentiles of everything that was measured."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Final

Summary = dict[str, float | None]
QUANTILES: Final = {"p50": 0.50, "p90": 0.90, "p99": 0.99}


def percentile(ordered: Sequence[float], q: float) -> float:
    """The smallest sample that at least the share q of the samples does not exceed (nearest rank).

    `ordered` is ascending and not empty; q lies in (0, 1]. The result is always a value that was measured.
    """
    # The tolerance keeps 0.99 x 100 = 99.00000000000001 from becoming rank 100.
    rank = math.ceil(q * len(ordered) - 1e-9)
    return ordered[max(rank, 1) - 1]


class Samples:
    """Measured values in 8 bytes each; how many is bounded by the requests of the run."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values = array("d")

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        """Take one value."""
        self._values.append(value)

    def summary(self) -> Summary:
        """p50, p90, p99 and mean; all None without samples."""
        return summarise(self._values)

    def recent(self, count: int) -> Summary:
        """The same over the last `count` values, for a display while the run goes on."""
        return summarise(self._values[-count:])


def summarise(values: Sequence[float]) -> Summary:
    """p50, p90, p99 and mean of values in any order."""
    if not values:
        return dict.fromkeys((*QUANTILES, "mean"))
    ordered = sorted(values)
    result: Summary = {name: percentile(ordered, q) for name, q in QUANTILES.items()}
    result["mean"] = math.fsum(ordered) / len(ordered)
    return result
