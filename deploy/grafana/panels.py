"""The vocabulary of the dashboard: rows, panels, queries, and the PromQL that recurs in them. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

# What the template variables narrow down. Only where a metric has the labels.
KIND: Final = 'kind=~"$kind"'
BACKEND: Final = 'kind=~"$kind", backend=~"$backend"'
SERVED: Final = 'kind=~"$kind", backend=~"$backend", model=~"$model"'


@dataclass(frozen=True, slots=True)
class Query:
    """One line, or family of lines, of a panel."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; `width` in 24ths of the row."""

    title: str
    queries: Sequence[Query]
    unit: str
    description: str
    width: int = 8
    height: int = 8
    kind: str = "timeseries"
    stacked: bool = False
    maximum: float | None = None
    decimals: int | None = None
    thresholds: Sequence[tuple[float | None, str]] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A titled row; a collapsed one costs no queries until it is opened."""

    title: str
    panels: Sequence[Panel]
    collapsed: bool = False


def stat(title: str, expr: str, unit: str, description: str, **more: Any) -> Panel:
    """A single number."""
    return Panel(
        title, [Query(expr, "")], unit, description, **{"width": 3, "height": 4, "kind": "stat", **more}
    )


def quantiles(metric: str, labels: str, by: str, q: float) -> str:
    """A quantile of a histogram, by some labels."""
    buckets = f"rate(polyphase_{metric}_bucket{{{labels}}}[$__rate_interval])"
    # Of nothing, the quantile is NaN; the comparison drops such lines from the legend.
    labels_by = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels_by}) ({buckets})) >= 0"


def rate(metric: str, labels: str = "", by: str = "") -> str:
    """A sum of rates, by some labels."""
    group = f" by ({by}) " if by else ""
    return f"sum{group}(rate(polyphase_{metric}{{{labels}}}[$__rate_interval]))"


def share(metric: str, part: str, whole: str, by: str = "") -> str:
    """The rate of some series over that of others, of one metric."""
    return ratio(rate(metric, part, by), rate(metric, whole, by))


def ratio(part: str, whole: str) -> str:
    """One expression over another, where the other is not zero."""
    return f"{part} / ({whole} > 0)"


RED_ABOVE_ZERO: Final = ((None, "green"), (0.000001, "red"))
GREEN_AT_99: Final = ((None, "red"), (0.95, "orange"), (0.99, "green"))
