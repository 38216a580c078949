"""Recursive least squares on the five linear terms of the step model, as ratios to a prior. Pure.

The state is the logarithm of each term's ratio r_i to the prior, with a covariance; an observation says that
the work took y seconds where the prior says x_i for each term. The model is linear in r,

    y = sum of r_i x_i,    noise in proportion to y

and is linearised in log r: the sensitivity of log y to log r_i is the term's share r_i x_i / sum. In
logarithms a ratio cannot become negative, twice and half as fast are equally far, and a device that became
slower as a whole is followed exactly, in one step.

The ridge is in the covariance: the ratios are taken to be one common factor times small deviations,

    covariance = spread^2 (1 + DEVIATION^2 on the diagonal)

so a term on which no observation bears follows the common factor and keeps the prior's proportion to the
others. Forgetting adds to the covariance at each observation, in the same form and up to its initial value:
unlike exponential forgetting it does not blow up in directions that are not excited (the wind-up problem;
Kulhavy and Zarrop, Int. J. Control 58 (1993) 905).
"""

from __future__ import annotations

import math
from typing import Final

from backends.models.evidence import Terms

LIMIT: Final = math.log(16.0)
"""No term is taken to be more than 16 times slower or faster than the prior says."""
SPREAD: Final = 1.0
"""Initial standard deviation of the common factor's logarithm: a prior may be wrong by 2.7 (assumption)."""
DEVIATION: Final = 0.15
"""Standard deviation of a term's own deviation, relative to that of the common factor (assumption)."""
FORGETTING: Final = 0.05
"""Growth of the standard deviation per observation, relative to its noise; the gain settles near this."""

_N: Final = 5
_INDICES: Final = range(_N)
_CAP: Final = SPREAD * SPREAD * (1.0 + DEVIATION * DEVIATION)


class Ratios:
    """Ratios of the five terms to the prior, each within 1/16 and 16."""

    __slots__ = ("_covariance", "logs", "values")

    def __init__(self) -> None:
        self.logs: list[float] = [0.0] * _N
        self.values: list[float] = [1.0] * _N
        self._covariance: list[list[float]] = []
        self.loosen()

    def loosen(self) -> None:
        """Be as unsure as at the start, without moving."""
        self._covariance = [[_CAP if i == j else SPREAD * SPREAD for j in _INDICES] for i in _INDICES]

    def surprise(self, terms: Terms, observed_s: float) -> float:
        """Logarithm of observed over predicted seconds; 0 is a perfect prediction."""
        r0, r1, r2, r3, r4 = self.values
        x0, x1, x2, x3, x4 = terms
        return math.log(observed_s / (r0 * x0 + r1 * x1 + r2 * x2 + r3 * x3 + r4 * x4))

    def update(self, terms: Terms, surprise: float, noise: float) -> None:
        """Move by an observation. `noise` is the standard deviation of its logarithm, above 0."""
        p0, p1, p2, p3, p4 = [r * x for r, x in zip(self.values, terms, strict=True)]
        whole = p0 + p1 + p2 + p3 + p4
        gains = self._correct((p0 / whole, p1 / whole, p2 / whole, p3 / whole, p4 / whole), noise)
        moved = [log + gain * surprise for log, gain in zip(self.logs, gains, strict=True)]
        self.logs = [log if -LIMIT <= log <= LIMIT else math.copysign(LIMIT, log) for log in moved]
        self.values = [math.exp(log) for log in self.logs]

    def _correct(self, shares: Terms, noise: float) -> list[float]:
        """Forget a little, then count the observation; returns the gains. Shares add up to 1.

        Written out over the five columns: this is done at every load report, and loops cost thrice as much.
        """
        common = (FORGETTING * noise) ** 2
        own = common * DEVIATION * DEVIATION
        h0, h1, h2, h3, h4 = shares
        bearing = [  # the covariance, forgetting included, times the shares
            p0 * h0 + p1 * h1 + p2 * h2 + p3 * h3 + p4 * h4 + common + own * share
            for (p0, p1, p2, p3, p4), share in zip(self._covariance, shares, strict=True)
        ]
        b0, b1, b2, b3, b4 = bearing
        variance = noise * noise + (b0 * h0 + b1 * h1 + b2 * h2 + b3 * h3 + b4 * h4)
        gains = [b / variance for b in bearing]
        self._covariance = rows = [
            [
                p0 + common - g * b0,
                p1 + common - g * b1,
                p2 + common - g * b2,
                p3 + common - g * b3,
                p4 + common - g * b4,
            ]
            for (p0, p1, p2, p3, p4), g in zip(self._covariance, gains, strict=True)
        ]
        for i, row in enumerate(rows):
            row[i] += own
            if row[i] > _CAP:
                self._cap(i)
        return gains

    def _cap(self, i: int) -> None:
        """Scale a row and its column so that the variance is the initial one: stays positive definite."""
        rows = self._covariance
        scale = math.sqrt(_CAP / rows[i][i])
        for j in _INDICES:
            rows[i][j] *= scale
            rows[j][i] *= scale
