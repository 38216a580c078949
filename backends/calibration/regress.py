"""Robust regression with the signs of physics: coefficients are at least 0, errors are relative.

Step times span three orders of magnitude, so a fit of absolute errors would see the long steps only. Points
that the form cannot reach must not drag the others along, so large errors count linearly, not squared
(iteratively reweighted least squares).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar, nnls

FloatArray = NDArray[np.float64]

ROUNDS: Final = 20
FOLDS: Final = 5


def relative_fit(
    columns: FloatArray,
    measured: FloatArray,
    *,
    weights: FloatArray | None = None,
    linear_beyond: float = 1e-3,
) -> FloatArray:
    """Coefficients x >= 0 with columns @ x near `measured` (above 0), in relative terms.

    Relative errors beyond `linear_beyond`, or beyond 1.5 times their median where that is less, count
    linearly. `columns` must have at least one positive entry in each column that matters.
    """
    rows = columns / measured[:, None]
    scale = np.maximum(rows.mean(axis=0), 1e-300)
    rows, base = rows / scale, np.ones(len(measured)) if weights is None else weights
    robust = np.ones(len(measured))
    solution = np.zeros(columns.shape[1])
    for _ in range(ROUNDS):
        factor = base * robust
        solution = nnls(rows * factor[:, None], factor)[0]
        error = np.abs(rows @ solution - 1.0)
        knee = max(linear_beyond, 1e-6)
        before, robust = robust, 1.0 / np.sqrt(np.maximum(1.0, error / knee))
        if np.max(np.abs(before - robust)) < 1e-3:
            break
    return np.asarray(solution / scale, dtype=np.float64)


def mape(predicted: FloatArray, measured: FloatArray) -> float:
    """Mean absolute relative error, as a fraction."""
    return float(np.mean(np.abs(predicted / measured - 1.0)))


@dataclass(frozen=True, slots=True)
class Law:
    """A form that is linear but for one shape parameter."""

    name: str
    terms: tuple[str, ...]
    """Names of the coefficients, one per column of the design."""
    design: Callable[[FloatArray, float], FloatArray]
    """From the inputs (one row per point) and the shape to the columns."""
    shape: str = ""
    """Name of the shape parameter; empty when there is none."""
    grid: tuple[float, ...] = (1.0,)
    """Shapes to begin the search at, rising."""


@dataclass(frozen=True, slots=True)
class LawFit:
    """A law with numbers."""

    law: Law
    coefficients: FloatArray
    shape: float

    def predict(self, inputs: FloatArray) -> FloatArray:
        """The law's values."""
        return np.asarray(self.law.design(inputs, self.shape) @ self.coefficients, dtype=np.float64)

    @property
    def values(self) -> dict[str, float]:
        """The parameters by name."""
        named = {term: float(value) for term, value in zip(self.law.terms, self.coefficients, strict=True)}
        return named | ({self.law.shape: self.shape} if self.law.shape else {})


def fit_law(law: Law, inputs: FloatArray, measured: FloatArray) -> LawFit:
    """The best coefficients and shape by mean absolute relative error."""
    errors = [_at_shape(law, inputs, measured, shape)[1] for shape in law.grid]
    best = int(np.argmin(errors))
    shape = law.grid[best]
    if law.shape:
        shape = _refined(law, inputs, measured, best)
        if _at_shape(law, inputs, measured, shape)[1] > errors[best]:
            shape = law.grid[best]
    return LawFit(law, _at_shape(law, inputs, measured, shape)[0], shape)


def _refined(law: Law, inputs: FloatArray, measured: FloatArray, best: int) -> float:
    low, high = law.grid[max(0, best - 1)], law.grid[min(len(law.grid) - 1, best + 1)]
    found = minimize_scalar(
        lambda logged: _at_shape(law, inputs, measured, float(np.exp(logged)))[1],
        bounds=(np.log(low), np.log(high)),
        method="bounded",
        options={"maxiter": 12},
    )
    return float(np.exp(found.x))


def _at_shape(law: Law, inputs: FloatArray, measured: FloatArray, shape: float) -> tuple[FloatArray, float]:
    columns = law.design(inputs, shape)
    coefficients = relative_fit(columns, measured)
    return coefficients, mape(columns @ coefficients, measured)


def held_out(law: Law, inputs: FloatArray, measured: FloatArray, folds: int = FOLDS) -> float:
    """MAPE over points that the fit did not see: each of `folds` parts is predicted from the others."""
    order = np.random.default_rng(7).permutation(len(measured))
    predicted = np.empty(len(measured))
    for fold in range(folds):
        out = order[fold::folds]
        seen = np.setdiff1d(order, out)
        predicted[out] = fit_law(law, inputs[seen], measured[seen]).predict(inputs[out])
    return mape(predicted, measured)
