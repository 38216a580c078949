"""Fits laws to groups of points, chooses forms by their held-out error, and rejects what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from backends.calibration import laws
from backends.calibration.points import Group, Quantity, Series
from backends.calibration.regress import FloatArray, Law, LawFit, fit_law, held_out, mape

LEAST_POINTS: Final = 6
"""Fewer points than this say nothing about a law of three to five parameters."""
REJECT_ABOVE: Final = 0.15
"""A law that misses its own points by more than this is no model of them."""
KEEP_SIMPLE: Final = 0.9
"""A form with more parameters must cut the held-out error to this share of the simpler form's."""


@dataclass(frozen=True, slots=True)
class GroupFit:
    """A group with its law. Errors are mean absolute relative errors, as fractions."""

    series: Series
    fit: LawFit | None
    """None when there are too few points."""
    error: float
    held_out: float
    worst: float
    rejected: str = ""
    """Why the fit must not be used; empty when it may."""

    @property
    def group(self) -> Group:
        """Whose points these are."""
        return self.series.group


def fit_series(series: Series) -> GroupFit:
    """Fit one group."""
    inputs, seconds = np.array(series.inputs), np.array(series.seconds)
    if len(seconds) < LEAST_POINTS:
        return GroupFit(
            series, None, np.nan, np.nan, np.nan, f"{len(seconds)} points, fewer than {LEAST_POINTS}"
        )
    law, unseen = _chosen(_forms(series.group.quantity, inputs), inputs, seconds)
    fit = fit_law(law, inputs, seconds)
    predicted = fit.predict(inputs)
    error = mape(predicted, seconds)
    rejected = f"misses its own points by {error:.0%}" if error > REJECT_ABOVE else ""
    worst = float(np.max(np.abs(predicted / seconds - 1.0)))
    return GroupFit(series, fit, error, unseen, worst, rejected)


def _forms(quantity: Quantity, inputs: FloatArray) -> Sequence[Law]:
    """The laws of a quantity, simplest first."""
    match quantity:
        case Quantity.DECODE if np.ptp(inputs[:, 0]) == 0.0:
            return (laws.SINGLE_STREAM,)
        case Quantity.DECODE:
            return (laws.DECODE, laws.DECODE_SATURATING)
        case Quantity.PREFILL:
            return (laws.PREFILL, laws.PREFILL_SATURATING)
        case Quantity.SERVING:
            return (laws.SERVING, laws.SERVING_SATURATING)
        case Quantity.LINK:
            return (laws.LINK,)


def _chosen(forms: Sequence[Law], inputs: FloatArray, seconds: FloatArray) -> tuple[Law, float]:
    best, error = forms[0], held_out(forms[0], inputs, seconds)
    for law in forms[1:]:
        unseen = held_out(law, inputs, seconds)
        if unseen < KEEP_SIMPLE * error:
            best, error = law, unseen
    return best, error


def median_errors(fits: Sequence[GroupFit]) -> tuple[float, float]:
    """Medians over groups of the error and the held-out error, rejected groups left out; NaN without any."""
    used = [fit for fit in fits if not fit.rejected]
    if not used:
        return np.nan, np.nan
    return float(np.median([f.error for f in used])), float(np.median([f.held_out for f in used]))
