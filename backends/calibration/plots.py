"""Draws measured against modelled, as SVG or PNG. Nothing global: no pyplot, no state between figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from backends.calibration.fit import GroupFit
from backends.calibration.judge import measured, modelled
from backends.calibration.points import Quantity
from backends.calibration.regress import FloatArray
from backends.calibration.run import Calibration
from router.errors import ConfigError

FORMATS: Final = (".svg", ".png")
BAND: Final = 0.10
"""Half-width of the grey band, as a fraction of the measured value."""


def check_plot_path(path: Path) -> None:
    """Raise ConfigError for a name that is no picture; before the work, not after it."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: a plot is written as {' or '.join(FORMATS)}; choose such a name.")


def plot_run(found: Calibration, path: Path) -> None:
    """TTFT, TPOT and latency of every request, measured and modelled."""
    real, simulated = measured(found.run), modelled(found.run, found.played)
    figure = Figure(figsize=(12.0, 4.2), layout="constrained")
    panels = (
        ("time to first token", "ttft_s"),
        ("time per output token", "tpot_s"),
        ("latency", "latency_s"),
    )
    for place, (title, name) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, 3, place)
        x, y = getattr(real, name), getattr(simulated, name)
        _diagonal(axes, x[np.isfinite(x)], title)
        for odd, label in ((True, "odd (fitted on)"), (False, "even (held out)")):
            which = found.run.odd == odd
            axes.plot(x[which], y[which], "o", ms=3, mfc="none" if odd else None, label=label)
    figure.axes[0].legend(loc="upper left", fontsize="small")
    figure.suptitle(found.run.name)
    _save(figure, path)


def plot_fits(fits: Sequence[GroupFit], path: Path) -> None:
    """Every point of the accepted groups, one panel per quantity."""
    usable = [fit for fit in fits if fit.fit is not None and not fit.rejected]
    quantities = [q for q in Quantity if any(fit.group.quantity is q for fit in usable)]
    if not quantities:
        raise ConfigError("no group was fitted, so there is nothing to draw. Choose other points.")
    figure = Figure(figsize=(4.2 * len(quantities), 4.2), layout="constrained")
    for place, quantity in enumerate(quantities, start=1):
        axes = figure.add_subplot(1, len(quantities), place)
        chosen = [fit for fit in usable if fit.group.quantity is quantity]
        _diagonal(axes, np.concatenate([np.array(fit.series.seconds) for fit in chosen]), str(quantity))
        for fit in chosen:
            assert fit.fit is not None
            predicted = fit.fit.predict(np.array(fit.series.inputs))
            axes.plot(fit.series.seconds, predicted, ".", ms=3, alpha=0.5)
    _save(figure, path)


def _diagonal(axes: Axes, values: FloatArray, title: str) -> None:
    low, high = 0.8 * float(values.min()), 1.25 * float(values.max())
    edge = np.array([low, high])
    axes.fill_between(edge, edge * (1.0 - BAND), edge * (1.0 + BAND), color="0.92", lw=0)
    axes.plot(edge, edge, color="0.6", lw=0.8)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), title=title)
    axes.set_xlabel("measured (s)")
    axes.set_ylabel("modelled (s)")


def _save(figure: Figure, path: Path) -> None:
    # Without the date the same input gives the same file.
    metadata: dict[str, Any] = {"Date": None} if path.suffix.lower() == ".svg" else {}
    figure.savefig(path, metadata=metadata, dpi=150)
