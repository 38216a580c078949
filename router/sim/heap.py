"""Virtual time: what will happen, in order of (time, seq). Nothing sleeps.

An entry holds a function and its arguments rather than a closure: a simulation makes dozens of entries a
request, and a closure costs more than the entry.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from router.model import Seconds

Entry = tuple[Seconds, int, bool, Callable[..., None], tuple[Any, ...]]


class Heap:
    """Things to come. Background entries (load reports, timers that may be dead) are nothing to go on for by
    themselves."""

    __slots__ = ("_entries", "_seq", "foreground", "halted", "now")

    def __init__(self) -> None:
        self.now: Seconds = 0.0
        self.foreground = 0
        """Entries that are not background."""
        self.halted = False
        self._entries: list[Entry] = []
        self._seq = 0

    @property
    def events(self) -> int:
        """Entries so far."""
        return self._seq

    def at(self, time: Seconds, do: Callable[..., None], *args: Any) -> None:
        """Let something happen at a time, after what was set for that time before."""
        self._seq += 1
        self.foreground += 1
        heapq.heappush(self._entries, (time if time > self.now else self.now, self._seq, True, do, args))

    def background(self, time: Seconds, do: Callable[..., None], *args: Any) -> None:
        """As `at`, but no reason to go on."""
        self._seq += 1
        heapq.heappush(self._entries, (time if time > self.now else self.now, self._seq, False, do, args))

    def halt(self) -> None:
        """Let nothing happen any more."""
        self.halted = True

    def run(self, until: Seconds, goes_on: Callable[[], bool]) -> None:
        """Let entries happen in order up to `until`, until `halt`, and with nothing in the foreground to come
        for as long as goes_on() says so before each."""
        entries, pop = self._entries, heapq.heappop
        while entries and entries[0][0] <= until and not self.halted:
            if not self.foreground and not goes_on():
                break
            self.now, _, foreground, do, args = pop(entries)
            if foreground:
                self.foreground -= 1
            do(*args)
