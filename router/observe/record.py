"""Writes what the core was told, and a digest of what it answered, as JSON lines. Opt-in.

The file holds facts: counts, hashes, ids and times. Prompts and tokens are in no fact, so they are in no
recording. Request ids, session keys and tenants are.

The event loop only puts a reference on a bounded queue; a thread encodes, digests and writes. A disk that
stalls therefore costs entries, never latency: facts and actions are immutable, so the thread may read them
late. Entries that found the queue full are counted, and a gap line says so in the file, because a replay
across a gap would compare apples with pears. The thread takes some 40 us of CPU per entry (7 to 10 entries a
request) and shares the interpreter with the loop: recording is for finding out, not for always.

Lines:
    {"recording": 1, "part": 0, "first": 0, "meta": {...}}      the head of every file
    {"n": 7, "now": 12.5, "fact": {"RequestArrived": {...}}, "do": ["StartPrefill r1 gpu-0"], "digest": "9f"}
    {"n": 8, "now": 12.7, "fact": null, ...}                    a deadline: advance(now)
    {"gap": 12}                                                 entries lost here
"""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from router.model import Seconds
from router.observe.codec import tagged

log = logging.getLogger(__name__)

VERSION: Final = 1
_Entry = tuple[Any, Seconds, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class RecorderStats:
    """What became of the entries so far."""

    written: int
    dropped: int
    """Found the queue full, or the disk refused them."""
    parts: int
    """Files begun."""


def digest(actions: Sequence[Any]) -> str:
    """16 hexadecimal digits that depend on every field of every action and on their order."""
    text = json.dumps([tagged(action) for action in actions], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def summary(actions: Sequence[Any]) -> list[str]:
    """The actions for people: type, request and backend."""
    return [_summary(action) for action in actions]


def _summary(action: Any) -> str:
    parts = (
        type(action).__name__,
        *(getattr(action, name, "") for name in ("request_id", "backend", "reason")),
    )
    return " ".join(str(part) for part in parts if part)


class Recorder:
    """A core.ports.Tap. Close it, or the last entries stay in memory.

    Files are `path`, then `path.1`, `path.2`, ... of at most about `max_bytes` each; only the newest
    `max_files` are kept. A replay starts at the first entry, so it needs them all.
    An older recording at the same path is replaced. Files are readable by their owner alone.
    """

    def __init__(
        self,
        path: Path,
        *,
        meta: Mapping[str, str] | None = None,
        max_bytes: int = 256 << 20,
        max_files: int = 4,
        max_queued: int = 65_536,
    ) -> None:
        """`meta` is kept in the head of each file, for whoever rebuilds the core. Raises OSError."""
        self._files = _Files(path, dict(meta or {}), max_bytes, max_files)
        self._queue: queue.Queue[_Entry | None] = queue.Queue(max_queued)
        self._lost = 0
        """Since the last gap line. Written by the loop's thread alone."""
        self._dropped = 0
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="polyphase-recorder", daemon=True)
        self._thread.start()

    def seen(self, fact: Any, now: Seconds, actions: Sequence[Any]) -> None:
        """Queue an entry; never waits."""
        if self._closed:
            return
        if self._lost and not self._put((_Gap(self._lost), now, ())):
            self._dropped += 1
            self._lost += 1
            return
        self._lost = 0
        if not self._put((fact, now, tuple(actions))):
            self._dropped += 1
            self._lost += 1

    def close(self, timeout_s: Seconds = 10.0) -> bool:
        """Write what is queued and close the file; False if the disk did not take it in time.

        Waits, so call it after the loop's work is done or from another thread.
        """
        if not self._closed:
            self._closed = True
            self._finish(timeout_s)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def stats(self) -> RecorderStats:
        """What became of the entries so far."""
        return RecorderStats(self._files.written, self._dropped + self._files.refused, self._files.parts)

    def _put(self, entry: _Entry) -> bool:
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            return False
        return True

    def _finish(self, timeout_s: Seconds) -> None:
        try:
            if self._lost:
                self._queue.put((_Gap(self._lost), 0.0, ()), timeout=timeout_s)
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            log.warning("the recording could not be closed: the disk takes nothing; its end is missing")

    def _write_all(self) -> None:
        while (entry := self._queue.get()) is not None:
            self._files.write(*entry)
            if self._queue.empty():
                self._files.flush()  # so that a crash costs little, and a busy writer still writes blocks
        self._files.close()


@dataclass(frozen=True, slots=True)
class _Gap:
    entries: int


class _Files:
    """The files of a recording. Used by one thread, the writer; its counts may be read by others."""

    def __init__(self, path: Path, meta: dict[str, str], max_bytes: int, max_files: int) -> None:
        self._path = path
        self._meta = meta
        self._max_bytes = max_bytes
        self._max_files = max_files
        self.written = self.refused = self.parts = 0
        self._n = 0
        self._size = 0
        for old in parts(path):
            old.unlink()  # left over, they would be taken for parts of this recording
        self._file: TextIO = self._begin()

    def write(self, fact: Any, now: Seconds, actions: Sequence[Any]) -> None:
        try:
            self._append(fact, now, actions)
        except (OSError, TypeError, ValueError):
            self._refuse()

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError:
            self._refuse()

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:
            log.exception("the end of the recording was not written")

    def _refuse(self) -> None:
        self.refused += 1
        if self.refused == 1:
            log.exception("the recording has a hole from here on; the daemon goes on without it")

    def _append(self, fact: Any, now: Seconds, actions: Sequence[Any]) -> None:
        if self._size >= self._max_bytes:
            self._file.close()
            self._file = self._begin()
        if isinstance(fact, _Gap):
            self._line({"gap": fact.entries})
            self._n += fact.entries
            return
        entry = {"n": self._n, "now": now, "fact": None if fact is None else tagged(fact)}
        self._n += 1
        self._line({**entry, "do": summary(actions), "digest": digest(actions)})
        self.written += 1

    def _line(self, value: dict[str, Any]) -> None:
        self._size += self._file.write(json.dumps(value, separators=(",", ":")) + "\n")

    def _begin(self) -> TextIO:
        part = self.parts
        file = _private(_part_path(self._path, part))
        self.parts += 1
        self._size = 0
        head = {"recording": VERSION, "part": part, "first": self._n, "meta": self._meta}
        self._size += file.write(json.dumps(head, separators=(",", ":")) + "\n")
        if part >= self._max_files:
            _part_path(self._path, part - self._max_files).unlink(missing_ok=True)
        return file


def _private(path: Path) -> TextIO:
    path.touch(mode=0o600, exist_ok=True)
    return path.open("w", encoding="utf-8")


def _part_path(path: Path, part: int) -> Path:
    return path if part == 0 else path.with_name(f"{path.name}.{part}")


def parts(path: Path) -> list[Path]:
    """The files of a recording that are there, in order."""
    found = [(0, path)] if path.exists() else []
    for other in path.parent.glob(f"{path.name}.*"):
        suffix = other.name.removeprefix(f"{path.name}.")
        if suffix.isdigit():
            found.append((int(suffix), other))
    return [file for _, file in sorted(found)]
