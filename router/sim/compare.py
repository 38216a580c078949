"""Compares policies on the same arrivals, in pairs: what differs on average, how sure that is, and for which
requests most. Pure.

A difference is taken per seed and then averaged, with a 95 % interval of Student's t over the seeds: both
policies saw the same requests, so what the arrivals do to both cancels out. One seed gives no interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from router.sim.result import Fate, SimResult

SHOWN: Final = 10
"""Requests shown of those whose fate changed most."""
HIGHER_IS_BETTER: Final = frozenset({"goodput_per_s", "attainment"})

_T975: Final = (
    *(
        12.706,
        4.303,
        3.182,
        2.776,
        2.571,
        2.447,
        2.365,
        2.306,
        2.262,
        2.228,
        2.201,
        2.179,
        2.160,
        2.145,
        2.131,
    ),
    *(
        2.120,
        2.110,
        2.101,
        2.093,
        2.086,
        2.080,
        2.074,
        2.069,
        2.064,
        2.060,
        2.056,
        2.052,
        2.048,
        2.045,
        2.042,
    ),
)
"""97.5 % quantiles of Student's t for 1 to 30 degrees of freedom (standard tables); beyond, 1.96."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    half_width: float | None
    """Of the 95 % interval; None with a single seed."""

    @property
    def sure(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.half_width is not None and abs(self.mean) > self.half_width


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric under two policies."""

    metric: str
    base: float
    other: float
    change: Estimate
    """other - base."""

    @property
    def better(self) -> bool | None:
        """Whether the other policy is better; None when that cannot be told."""
        if not self.change.sure:
            return None
        return (self.change.mean > 0) is (self.metric in HIGHER_IS_BETTER)


@dataclass(frozen=True, slots=True)
class FateChange:
    """One request under two policies."""

    request: str
    base: Fate
    other: Fate

    @property
    def ratio(self) -> float:
        """End-to-end time under the other policy over that under the base; infinite or 0 for a failure."""
        if self.base.e2e_s == self.other.e2e_s:
            return 1.0
        return self.other.e2e_s / self.base.e2e_s if math.isfinite(self.base.e2e_s) else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two policies at one load."""

    base: str
    other: str
    rate_scale: float
    seeds: int
    differences: tuple[Difference, ...]
    sampled: int
    """Requests whose fate was kept under both policies, of the first seed."""
    gained: int
    """Of these, the ones that meet their objectives only under the other policy."""
    lost: int
    """And only under the base."""
    worst: tuple[FateChange, ...]
    best: tuple[FateChange, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "base": self.base,
            "other": self.other,
            "rate_scale": self.rate_scale,
            "seeds": self.seeds,
            "differences": {d.metric: _difference(d) for d in self.differences},
            "fates": {
                "sampled": self.sampled,
                "gained": self.gained,
                "lost": self.lost,
                "worst": [_change(one) for one in self.worst],
                "best": [_change(one) for one in self.best],
            },
        }


def compare_all(results: Sequence[SimResult]) -> tuple[Comparison, ...]:
    """The first policy against every other, at every load."""
    groups: dict[tuple[float, str], list[SimResult]] = {}
    for result in results:
        groups.setdefault((result.rate_scale, result.policy), []).append(result)
    policies = list(dict.fromkeys(result.policy for result in results))
    scales = list(dict.fromkeys(result.rate_scale for result in results))
    return tuple(
        compare(groups[scale, policies[0]], groups[scale, other])
        for scale in scales
        for other in policies[1:]
    )


def compare(base: Sequence[SimResult], other: Sequence[SimResult]) -> Comparison:
    """Runs of two policies, seed by seed in the same order."""
    before, after = [r.metrics() for r in base], [r.metrics() for r in other]
    differences = tuple(
        Difference(
            metric,
            _mean([m[metric] for m in before]),
            _mean([m[metric] for m in after]),
            estimate([b[metric] - a[metric] for a, b in zip(before, after, strict=True)]),
        )
        for metric in before[0]
    )
    changes = _changes(base[0].fates, other[0].fates)
    ranked = sorted(changes, key=lambda one: (one.ratio, one.request))
    return Comparison(
        base[0].policy,
        other[0].policy,
        base[0].rate_scale,
        len(base),
        differences,
        len(changes),
        sum(one.other.met and not one.base.met for one in changes),
        sum(one.base.met and not one.other.met for one in changes),
        tuple(one for one in reversed(ranked[-SHOWN:]) if one.ratio > 1.0),
        tuple(one for one in ranked[:SHOWN] if one.ratio < 1.0),
    )


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of independent values, one a seed."""
    n, mean = len(values), _mean(values)
    if n < 2:
        return Estimate(mean, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    quantile = _T975[n - 2] if n - 2 < len(_T975) else 1.96
    return Estimate(mean, quantile * deviation / math.sqrt(n))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _changes(base: Mapping[str, Fate], other: Mapping[str, Fate]) -> list[FateChange]:
    """Of the requests that are in both samples; in closed loops some come under one policy only."""
    return [FateChange(name, fate, other[name]) for name, fate in base.items() if name in other]


def _difference(one: Difference) -> dict[str, Any]:
    return {
        "base": one.base,
        "other": one.other,
        "change": one.change.mean,
        "half_width_95": one.change.half_width,
    }


def _change(one: FateChange) -> dict[str, Any]:
    return {"request": one.request, "base": _fate(one.base), "other": _fate(one.other)}


def _fate(fate: Fate) -> dict[str, Any]:
    e2e_s = fate.e2e_s if math.isfinite(fate.e2e_s) else None
    return {"met": fate.met, "e2e_s": e2e_s, "ttft_s": fate.ttft_s, "where": fate.where}
