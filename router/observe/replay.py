"""Feeds a recording to a fresh core and compares what it answers. Pure but for reading lines.

The core, its policies and its models hold no clock and no hidden randomness, so the same facts at the same
times must give the same actions, to the last field. A difference means that the code changed its mind, or
that the core was not built like the one that was recorded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from router.core.messages import Action, Fact
from router.core.ports import Machine
from router.model import Seconds
from router.observe.codec import FactReader, Rebuild, RecordingError
from router.observe.record import VERSION, digest, summary

MAX_LINE_CHARACTERS = 4 << 20
"""A longer line is damage, not an entry."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a recording: a fact, or a deadline (fact None), and what was answered."""

    n: int
    now: Seconds
    fact: Fact | None
    do: tuple[str, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a replay left the recording."""

    n: int
    now: Seconds
    fact: str
    recorded: tuple[str, ...]
    replayed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay found."""

    facts: int
    """Entries compared, deadlines included."""
    identical: int
    first_difference: Difference | None = None

    @property
    def same(self) -> bool:
        """Whether every answer was the recorded one."""
        return self.facts == self.identical


def replay(
    lines: Iterable[str], make_core: Callable[[], Machine[Fact, Action]], rebuild: Rebuild | None = None
) -> ReplayResult:
    """Run a fresh core through the recording. Raises RecordingError if it cannot be read or has a gap."""
    core = make_core()
    facts = identical = 0
    first: Difference | None = None
    for entry in read(lines, rebuild):
        actions = core.advance(entry.now) if entry.fact is None else core.handle(entry.fact, entry.now)
        facts += 1
        if digest(actions) == entry.digest:
            identical += 1
        elif first is None:
            first = _difference(entry, actions)
    return ReplayResult(facts, identical, first)


def read(lines: Iterable[str], rebuild: Rebuild | None = None) -> Iterator[Entry]:
    """The entries of a recording, from the first on. Raises RecordingError.

    A last line that a crash cut off ends the recording.
    """
    reader = FactReader(rebuild)
    expected = 0
    begun = False
    for number, value in _objects(lines):
        if "recording" in value:
            _check_head(value, expected)
            begun = True
            continue
        if not begun:
            raise RecordingError(f"line {number} comes before the head; this is not a recording")
        if "gap" in value:
            raise RecordingError(
                f"{value['gap']} entries are missing after entry {expected - 1}: the disk was too slow while"
                " recording. A replay cannot go past that; record again on a faster disk"
            )
        yield _entry(value, number, expected, reader)
        expected += 1


def _objects(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    rest = iter(lines)
    for number, line in enumerate(rest, 1):
        try:
            value = _parse(line, number)
        except RecordingError:
            if next(rest, None) is None:
                return
            raise
        yield number, value


def _parse(line: str, number: int) -> dict[str, Any]:
    if len(line) > MAX_LINE_CHARACTERS:
        raise RecordingError(f"line {number} has {len(line)} characters; the recording is damaged")
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecordingError(
            f"line {number} is not JSON: {error}; the recording was cut off or damaged there"
        ) from error
    if not isinstance(value, dict):
        raise RecordingError(f"line {number} is not an object; this is not a recording")
    return value


def _check_head(value: dict[str, Any], expected: int) -> None:
    if value["recording"] != VERSION:
        raise RecordingError(f"the recording has format {value['recording']!r}; this version reads {VERSION}")
    if value.get("first") != expected:
        raise RecordingError(
            f"a file of the recording begins at entry {value.get('first')}, but entry {expected} is next:"
            " older ones were rotated away or left out. Give all files in order, or record with larger bounds"
        )


def _entry(value: dict[str, Any], number: int, expected: int, reader: FactReader) -> Entry:
    try:
        n, now, fact = value["n"], float(value["now"]), value["fact"]
        do, recorded = tuple(value["do"]), str(value["digest"])
    except (KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"line {number} is not an entry ({error}); the recording is damaged") from error
    if n != expected:
        raise RecordingError(f"line {number} is entry {n!r}, but {expected} is next; lines are missing")
    return Entry(expected, now, None if fact is None else reader.read(fact), do, recorded)


def _difference(entry: Entry, actions: Sequence[Action]) -> Difference:
    fact = "deadline" if entry.fact is None else type(entry.fact).__name__
    return Difference(entry.n, entry.now, fact, entry.do, tuple(summary(actions)))
