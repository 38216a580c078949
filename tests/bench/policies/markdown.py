"""Tables and numbers in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tests.bench.policies.rows import Row


def table(title: str, text: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A section with a table; without rows the text alone, which is filled to lines."""
    lines = [title, "", *([textwrap.fill(text, 110), ""] if text else [])]
    if rows:
        lines += [_row(heads), "|" + "---|" * len(heads), *map(_row, rows), ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def number(value: float | None, digits: int = 2) -> str:
    """A dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def ms(seconds: float) -> str:
    """Milliseconds to three figures."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(row: Row, name: str) -> str:
    """p50 / p99 of a latency."""
    return f"{ms(row.latency(name, 1))} / {ms(row.latency(name, 2))}"
