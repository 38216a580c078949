"""Cuts a trace into classes of similar requests, by quantiles of prompt and of answer length.

As a command it writes the class table of the worked example (recipe.py):

    python -m router.plan.classes conversation=azure_2023_conv.csv.gz code=azure_2023_code.csv.gz
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from router.sim.workload import load_trace

PROMPT_BINS: Final = 6
ANSWER_BINS: Final = 4
HEADER: Final = "trace,prompt_tokens,output_tokens,requests"


@dataclass(frozen=True, slots=True)
class Cell:
    """Requests of similar lengths."""

    trace: str
    prompt_tokens: float
    """Mean."""
    output_tokens: float
    """Mean, at least 1."""
    requests: int


def cut(trace: str, lengths: Sequence[tuple[int, int]]) -> list[Cell]:
    """Cells of (prompt, answer) lengths: quantile bins of either, empty ones left out."""
    prompt_edges = inner_edges([prompt for prompt, _ in lengths], PROMPT_BINS)
    answer_edges = inner_edges([answer for _, answer in lengths], ANSWER_BINS)
    cells: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for prompt, answer in lengths:
        where = bisect_right(prompt_edges, prompt), bisect_right(answer_edges, answer)
        cells.setdefault(where, []).append((prompt, answer))
    return [_cell(trace, members) for _, members in sorted(cells.items())]


def inner_edges(values: Sequence[int], bins: int) -> list[float]:
    """Edges between quantile bins, linearly interpolated, without duplicates and without the two ends."""
    ordered = sorted(values)
    edges = sorted({_quantile(ordered, i / bins) for i in range(bins + 1)})
    return edges[1:-1]


def _quantile(ordered: Sequence[int], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _cell(trace: str, members: Sequence[tuple[int, int]]) -> Cell:
    count = len(members)
    prompt = sum(prompt for prompt, _ in members) / count
    answer = sum(answer for _, answer in members) / count
    return Cell(trace, prompt, max(1.0, answer), count)


def table(cells: Iterable[Cell]) -> str:
    """The cells as CSV."""
    rows = (f"{c.trace},{c.prompt_tokens:.6f},{c.output_tokens:.6f},{c.requests}" for c in cells)
    return "\n".join([HEADER, *rows]) + "\n"


def parse_table(text: str) -> list[Cell]:
    """Cells from what `table` wrote; lines that begin with # are remarks."""
    rows = [line.split(",") for line in text.splitlines() if line and not line.startswith("#")]
    return [Cell(row[0], float(row[1]), float(row[2]), int(row[3])) for row in rows[1:]]


def derive(named: Iterable[str]) -> str:
    """The table of several traces, each given as name=file."""
    cells: list[Cell] = []
    for one in named:
        name, _, file = one.partition("=")
        lengths = [(a.prompt_tokens, a.output_tokens) for a in load_trace(file)]
        cells += cut(name, lengths)
    return table(cells)


if __name__ == "__main__":
    sys.stdout.write(derive(sys.argv[1:]))
