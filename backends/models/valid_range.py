"""Where a profile's data ends, read from its own words, and whether a query lies beyond. Pure.

Provenance.valid_range is a sentence for people; its parts of the form "batch 1-512", "context 256-32k" and
"prompt 64-32k tokens" are what is read here. A quantity it does not name has no known range.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

QUANTITIES: Final = ("batch", "context", "prompt")
_PART: Final = re.compile(r"\b(batch|context|prompt)\s+(\d+)(k?)\b(?:\s*-\s*(\d+)(k?)\b)?")

Range = tuple[int, int]


def stated_ranges(valid_range: str) -> Mapping[str, Range]:
    """The ranges a sentence states, by quantity; 1k is 1,024."""
    found: dict[str, Range] = {}
    for name, low, low_k, high, high_k in _PART.findall(valid_range):
        least = _number(low, low_k)
        found.setdefault(name, (least, _number(high, high_k) if high else least))
    return found


def range_note(
    valid_range: str, *, batch: int | None = None, context: int | None = None, prompt: int | None = None
) -> str:
    """What of a query lies outside the data of a profile, in a sentence; empty when nothing does.

    `context` is of one sequence. A quantity without a stated range counts as outside: no data covers it.
    """
    ranges = stated_ranges(valid_range)
    complaints: list[str] = []
    for name, value in zip(QUANTITIES, (batch, context, prompt), strict=True):
        if value is None:
            continue
        if name not in ranges:
            complaints.append(f"no data of any {name} stands behind it")
        elif not ranges[name][0] <= value <= ranges[name][1]:
            low, high = ranges[name]
            measured = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            complaints.append(f"{name} {value:,} lies outside the {measured} that the data covers")
    return f"Extrapolated: {'; '.join(complaints)}." if complaints else ""


def _number(digits: str, thousand: str) -> int:
    return int(digits) * (1024 if thousand else 1)
