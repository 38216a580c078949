"""Runs that are done, in a file, so that a comparison can be interrupted, and only what changed is run again.

A run is known by its spot and its label, and was made by one state of the code: a digest of all that a
simulation depends on. Runs of another state count only where the caller says so, and are told apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final

import router
from tests.bench.policies.field import Spot

ROOT: Final = Path(__file__).parents[3]
SOURCES: Final = ("router", "policies", "backends")
HARNESS: Final = "tests/bench/policies"
SUFFIXES: Final = frozenset({".py", ".so", ".toml", ".csv", ".gz"})
Key = tuple[str, str, float, int, str]


def state_of_the_code() -> str:
    """A digest of the simulator, the policies and the models, wherever they are imported from, and of the
    harness."""
    imported = Path(router.__file__).parents[1]
    digest = hashlib.sha256()
    for root, folder in [*((imported, name) for name in SOURCES), (ROOT, HARNESS)]:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                digest.update(str(path.relative_to(root)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Kept:
    """The file. One JSON value a line; the last line for a run counts."""

    def __init__(self, path: Path, state: str, any_state: bool = False) -> None:
        """`any_state` takes runs of other states of the code as well."""
        self._path = path
        self._state = state
        self._any = any_state
        self._known: dict[Key, tuple[str, Mapping[str, Any]]] = {}
        if path.exists():
            self._load(path.read_text(encoding="utf-8").splitlines())

    def get(self, spot: Spot, label: str) -> Mapping[str, Any] | None:
        """A run that counts."""
        state, value = self._known.get((*astuple(spot), label), ("", None))
        return value if state == self._state or self._any else None

    def put(self, spot: Spot, label: str, value: Mapping[str, Any]) -> None:
        """Keep a run; it is in the file when this returns."""
        line = json.dumps([self._state, list(astuple(spot)), label, value])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._known[(*astuple(spot), label)] = (self._state, value)

    def others(self, spots: Iterable[Spot], labels: Iterable[str]) -> int:
        """Runs of these that another state of the code made."""
        names = list(labels)
        keys = [(*astuple(spot), label) for spot in spots for label in names]
        return sum(key in self._known and self._known[key][0] != self._state for key in keys)

    def _load(self, lines: Iterable[str]) -> None:
        for line in lines:
            try:
                state, spot, label, value = json.loads(line)
            except ValueError:  # the last line of a run that was killed while it wrote
                continue
            self._known[spot[0], spot[1], float(spot[2]), spot[3], label] = (state, value)
