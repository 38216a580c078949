"""Runs: consecutive tokens of one attempt that share a message on their way to a client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MAX_TEXT: Final = 1 << 18
"""Characters of one run: in UTF-8 at most 1 MiB, well below the 4 MiB that clients accept."""


class Run:
    """Tokens with their ids, with their text, or with both. It grows until its message is taken."""

    __slots__ = ("epoch", "first_index", "ids", "pieces", "size", "texts")

    def __init__(self, epoch: int, first_index: int, ids: list[int]) -> None:
        self.epoch = epoch
        self.first_index = first_index
        self.ids = ids
        self.texts: list[str] = []
        self.size = 0
        """Characters of the text."""
        self.pieces = 0
        """Indices of text without ids."""

    def takes(self, epoch: int, ids: Sequence[int], count: int) -> bool:
        """Whether text of `count` tokens may follow: a run is of one epoch, and has ids or has none."""
        if epoch != self.epoch or self.size > MAX_TEXT:
            return False
        return count == 0 or (not self.ids if not ids else not self.pieces)

    def add(self, text: str, ids: Sequence[int], count: int) -> None:
        """Append text that the run takes."""
        self.texts.append(text)
        self.size += len(text)
        if ids:
            self.ids.extend(ids)
        else:
            self.pieces += count

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)
