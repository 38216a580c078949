"""What the commands print."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from backends.calibration.fit import GroupFit, median_errors
from backends.calibration.judge import Errors
from backends.calibration.points import Quantity, Uncovered
from backends.calibration.power import PowerFit
from backends.calibration.run import Calibration
from router.model import StepParameters

MOST_ROWS: Final = 40
"""Groups shown one by one; more are summed up by source."""


def _grid(*columns: str, title: str, words: int = 1) -> Table:
    table = Table(title=title, box=None, pad_edge=False, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        table.add_column(
            column, justify="left" if place < words else "right", no_wrap=True, header_style="dim"
        )
    return table


def percent(value: float) -> str:
    """A fraction as per cent; a dash for NaN."""
    return "-" if np.isnan(value) else f"{100.0 * value:.1f} %"


def run_table(found: Calibration) -> RenderableType:
    """The result of a calibration or a check."""
    errors = _grid("mean absolute error (bias)", "LATENCY", "TPOT", "TTFT", "REQUESTS", title=found.run.name)
    rows = (
        ("prior as it stands, even requests", found.before),
        ("odd requests (fitted on)", found.fitted_on),
        ("even requests (held out)" if found.fitted_on else "even requests", found.held_out),
        ("all requests", found.every),
    )
    for label, errors_of in rows:
        if errors_of is not None:
            errors.add_row(label, *_cells(errors_of), f"{errors_of.requests}")
    return Stack(errors, Text(), _step_table(found.spec.step), Text(), *(Text(f"- {n}") for n in found.notes))


def _cells(errors: Errors) -> Iterable[str]:
    for name in ("latency", "tpot", "ttft"):
        error, bias = getattr(errors, f"{name}_mape"), getattr(errors, f"{name}_bias")
        yield f"{100 * error:.2f} % ({100 * bias:+.1f})"


def _step_table(step: StepParameters) -> Table:
    table = _grid("parameter", "VALUE", title="Step model")
    rows = (
        ("base", step.base_s * 1e3, "ms"),
        ("per sequence", step.per_sequence_s * 1e6, "µs"),
        ("per 1,000 tokens of context", step.per_context_token_s * 1e6, "ms"),
        ("saturating", step.saturating_s * 1e3, f"ms over {step.saturation_tokens:.0f} tokens"),
        ("per 1,000 prompt tokens", step.per_prefill_token_s * 1e6, "ms"),
        ("per million attention pairs", step.per_attention_pair_s * 1e9, "ms"),
        ("prefill alone: fixed", step.prefill_base_s * 1e3, "ms"),
        ("prefill alone: at least", step.prefill_floor_s * 1e3, "ms"),
    )
    for label, value, unit in rows:
        if value or not label.startswith("saturating"):
            table.add_row(label, f"{value:.4g} {unit}")
    return table


def fit_tables(
    fits: Sequence[GroupFit], powers: Sequence[PowerFit], uncovered: Sequence[Uncovered]
) -> RenderableType:
    """The result of fitting a points file."""
    parts: list[RenderableType] = [summary_table(fits)]
    if len(fits) <= MOST_ROWS:
        parts += [Text(), groups_table(fits)]
    if powers:
        parts += [Text(), power_table(powers)]
    rejected = [fit for fit in fits if fit.rejected]
    if rejected:
        parts += [Text(), rejected_table(rejected)]
    if uncovered:
        parts += [Text(), uncovered_table(uncovered)]
    return Stack(*parts)


def summary_table(fits: Sequence[GroupFit]) -> Table:
    """Medians by quantity and source."""
    table = _grid(
        "quantity", "source", "GROUPS", "REJECTED", "POINTS", "MEDIAN ERROR", "HELD OUT", "WORST GROUP",
        title="Fits (mean absolute error per group, median over groups)", words=2,
    )  # fmt: skip
    by_source: dict[tuple[Quantity, str], list[GroupFit]] = defaultdict(list)
    for fit in fits:
        by_source[fit.group.quantity, fit.group.source.split(" (")[0]].append(fit)
        by_source[fit.group.quantity, "all"].append(fit)
    for (quantity, source), chosen in sorted(by_source.items()):
        used = [fit for fit in chosen if not fit.rejected]
        if used:
            table.add_row(
                quantity, source, f"{len(used)}", f"{len(chosen) - len(used)}",
                f"{sum(len(fit.series.seconds) for fit in used)}", *map(percent, median_errors(used)),
                percent(max(fit.error for fit in used)),
            )  # fmt: skip
    return table


def groups_table(fits: Sequence[GroupFit]) -> Table:
    """One row per accepted group."""
    table = _grid(
        "group", "quantity", "law", "parameters (ms, per 1,000 tokens)", "POINTS", "ERROR", "HELD OUT",
        title="Groups", words=4,
    )  # fmt: skip
    for fit in fits:
        if fit.fit is not None and not fit.rejected:
            table.add_row(
                fit.group.label, fit.group.quantity, fit.fit.law.name, parameters(fit),
                f"{len(fit.series.seconds)}", percent(fit.error), percent(fit.held_out),
            )  # fmt: skip
    return table


_UNITS: Final = {
    "base_s": ("a", 1e3), "per_sequence_s": ("b", 1e3), "per_context_token_s": ("c", 1e6),
    "saturating_s": ("m", 1e3), "saturation_tokens": ("B0", 1.0), "prefill_base_s": ("t0", 1e3),
    "per_prefill_token_s": ("p", 1e6), "per_attention_pair_s": ("q", 1e9), "knee_tokens": ("knee", 1.0),
    "prefill_saturating_s": ("m", 1e3), "prefill_saturation_tokens": ("N0", 1.0), "latency_s": ("t0", 1e3),
}  # fmt: skip


def parameters(fit: GroupFit) -> str:
    """The law's parameters in milliseconds, with the letters of the documentation."""
    values = {} if fit.fit is None else fit.fit.values
    parts = [f"{_UNITS[n][0]} {v * _UNITS[n][1]:.3g}" for n, v in values.items() if n in _UNITS]
    if per_byte := values.get("seconds_per_byte"):
        parts.append(f"{1e-9 / per_byte:.1f} GB/s")
    return ", ".join(parts)


def power_table(powers: Sequence[PowerFit]) -> Table:
    """One row per power law."""
    table = _grid(
        "GPU", "models", "POINTS", "IDLE W", "pJ/B", "pJ/FLOP", "CAP W", "ERROR", "HELD OUT",
        title=f"Power (median error {percent(float(np.median([p.error for p in powers])))})", words=2,
    )  # fmt: skip
    for power in powers:
        table.add_row(
            power.gpu, power.family, f"{power.points}", f"{power.idle_w:.0f}",
            f"{power.joule_per_tera_byte:.0f}", f"{power.joule_per_tera_flop:.2f}", f"{power.cap_w:.0f}",
            percent(power.error), percent(power.held_out),
        )  # fmt: skip
    return table


def rejected_table(fits: Sequence[GroupFit]) -> Table:
    """Groups that must not be used, and why; those with too few points in one row per quantity."""
    table = _grid("rejected", "quantity", "why", "POINTS", title="Rejected", words=3)
    few: dict[Quantity, list[GroupFit]] = defaultdict(list)
    for fit in fits:
        if fit.fit is None:
            few[fit.group.quantity].append(fit)
        else:
            points = f"{len(fit.series.seconds)}"
            table.add_row(f"{fit.group.label}: {fit.group.source}", fit.group.quantity, fit.rejected, points)
    for quantity, chosen in few.items():
        together = sum(len(fit.series.seconds) for fit in chosen)
        table.add_row(f"{len(chosen)} groups", quantity, "too few points for a law", f"{together}")
    return table


def uncovered_table(uncovered: Sequence[Uncovered]) -> Table:
    """Rows without a law, by reason and metric."""
    table = _grid("reason", "metrics", "ROWS", title="Not covered by any law", words=2)
    by_reason: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in uncovered:
        by_reason[one.reason][one.metric] += one.rows
    for reason, metrics in sorted(by_reason.items(), key=lambda item: -sum(item[1].values())):
        names = sorted(metrics, key=lambda name: -metrics[name])
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        table.add_row(reason, shown, f"{sum(metrics.values())}")
    return table
