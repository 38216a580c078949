"""The result of `calibrate fit` for machines: errors are fractions, parameters in base units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from backends.calibration.fit import GroupFit, median_errors
from backends.calibration.points import Quantity, Uncovered
from backends.calibration.power import PowerFit


def fits_as_json(
    fits: Sequence[GroupFit], powers: Sequence[PowerFit], uncovered: Sequence[Uncovered]
) -> dict[str, Any]:
    """Medians, groups, power laws, and the rows that no law covers. What is undefined is null."""
    return {
        "median_error": {q: _finite(median_errors(_of(fits, q))[0]) for q in Quantity},
        "median_held_out": {q: _finite(median_errors(_of(fits, q))[1]) for q in Quantity},
        "groups": [_group(fit) for fit in fits],
        "power": [asdict(power) for power in powers],
        "uncovered": [asdict(one) for one in uncovered],
    }


def _of(fits: Sequence[GroupFit], quantity: Quantity) -> list[GroupFit]:
    return [fit for fit in fits if fit.group.quantity is quantity]


def _group(fit: GroupFit) -> dict[str, Any]:
    return {
        **asdict(fit.group),
        "trust": fit.series.trust,
        "points": len(fit.series.seconds),
        "law": None if fit.fit is None else fit.fit.law.name,
        "parameters": {} if fit.fit is None else fit.fit.values,
        "error": _finite(fit.error),
        "held_out": _finite(fit.held_out),
        "worst": _finite(fit.worst),
        "rejected": fit.rejected,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
