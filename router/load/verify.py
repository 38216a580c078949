"""Checks that the tokens of an answer came once each, in order, and with the right values.

Every token carries its index. What arrives is kept in a transcript; the values are compared in one go
when the request ends, so that a token costs next to nothing while the load runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from router.load.requests import Answer

MISSING: Final = -1
"""Stands in a transcript where a token never came; no token id is negative."""
MAX_GAP: Final = 1 << 20
"""A first_index further ahead than this is nonsense; it is counted as this many lost tokens."""


@dataclass(frozen=True, slots=True)
class Integrity:
    """Tokens that break the contract; all zero in a good run."""

    lost: int = 0
    """Never came, though the router said it sent them, or that the answer was complete."""
    duplicated: int = 0
    """Came again at an index that was already there."""
    mismatched: int = 0
    """Differ from what the prompt, the KV and the seed give, or lie beyond the end of the answer."""

    def __add__(self, other: Integrity) -> Integrity:
        return Integrity(
            self.lost + other.lost, self.duplicated + other.duplicated, self.mismatched + other.mismatched
        )

    @property
    def violations(self) -> int:
        """Any of them."""
        return self.lost + self.duplicated + self.mismatched


class Transcript:
    """The tokens of one request as they arrived."""

    __slots__ = ("_duplicated", "_ids", "_missing")

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._missing = 0
        self._duplicated = 0

    def __len__(self) -> int:
        """Tokens that arrived, each index once."""
        return len(self._ids) - self._missing

    def add(self, first_index: int, ids: list[int]) -> None:
        """Take consecutive tokens from first_index on."""
        ahead = first_index - len(self._ids)
        if ahead > 0:
            gap = min(ahead, MAX_GAP)
            self._missing += gap
            self._ids.extend([MISSING] * gap)
        elif ahead < 0:
            ids = self._fill(first_index, ids)
        self._ids.extend(ids)

    def _fill(self, first_index: int, ids: list[int]) -> list[int]:
        """Put late tokens where they were missing, count the others as duplicates; return what is new."""
        known = self._ids
        for index, token in enumerate(ids[: len(known) - first_index], first_index):
            if known[index] == MISSING:
                known[index] = token
                self._missing -= 1
            else:
                self._duplicated += 1
        return ids[len(known) - first_index :]

    def check(self, answer: Answer | None, claimed: int | None) -> Integrity:
        """Compare with the answer.

        `claimed` is how many tokens the router says it delivered: the usage of a finished request, the
        next_index of a failed one, None when it said nothing. `answer` None (a real engine) leaves the
        values unchecked. A token may be late but not absent: one that fills a gap is no loss.
        """
        owed = len(self._ids) if claimed is None else claimed
        short = max(owed - len(self._ids), 0)
        mismatched = self._mismatches(answer) if answer else 0
        return Integrity(self._missing + short, self._duplicated, mismatched)

    def _mismatches(self, answer: Answer) -> int:
        expected = answer.ids(0, min(len(self._ids), answer.tokens))
        if expected == self._ids:
            return 0
        beyond = len(self._ids) - len(expected)
        pairs = zip(self._ids, expected, strict=False)
        return beyond + sum(1 for came, owed in pairs if came not in (owed, MISSING))
