"""A recording of a daemon as material for simulations: its fleet, its arrivals, its answers' lengths, and
what was measured.

The recording holds what the core was told and a digest of what it answered. Feeding it to a fresh core proves
that the code still decides the same, and gives back the reports that the core wrote then: these are the
measurement. True lengths are known of requests that were answered to the end; of others a guess is made, and
counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import median_low
from typing import Any, Final

from backends.models.tracking import TrackedModels
from policies.registry import build
from router.core.admission import Limits
from router.core.core import RouterCore
from router.core.messages import (
    Action,
    BackendCordoned,
    BackendJoined,
    BackendLost,
    BackendRemoved,
    DecodeDone,
    Fact,
    FailRequest,
    FinishRequest,
    PolicyReplaced,
    RequestArrived,
    RequestCancelled,
)
from router.core.ports import ModelSource, Policy
from router.errors import ConfigError
from router.model import BackendSpec, Report, Request, Seconds
from router.observe.codec import RecordingError
from router.observe.record import parts
from router.observe.replay import ReplayResult, replay
from router.sim.contest import read_text

GUESS_TOKENS: Final = 256
"""Length of an answer of which nothing is known, and none of its class either (assumption)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """How the recorded core was built: the head of the recording."""

    policy: str
    """Text of the policy file, or JSON with name and params."""
    fallback: str
    seed: int
    limits: Limits

    def core(self, models: ModelSource) -> RouterCore:
        """A fresh core, built the same way. Raises ConfigError."""
        name, params = read_text(self.policy)
        return RouterCore(
            build(name, params, models, Random(self.seed)),
            build(self.fallback, {}, models, Random(self.seed)),
            models,
            self.limits,
        )

    def rebuild(self, text: str, models: ModelSource) -> Policy:
        """A policy that took over later."""
        name, params = read_text(text)
        return build(name, params, models, Random(self.seed))


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened to a backend, at seconds from the start."""

    at: Seconds
    fact: BackendJoined | BackendLost | BackendRemoved | BackendCordoned


@dataclass(slots=True)
class Recorded:
    """What a recording says. Times are seconds from its first entry."""

    origin: Origin
    specs: list[BackendSpec] = field(default_factory=list[BackendSpec])
    """Backends that joined, each once, in order."""
    joined_at: Seconds = 0.0
    """When the last of them joined for the first time."""
    changes: list[Change] = field(default_factory=list[Change])
    arrivals: list[tuple[Seconds, Request]] = field(default_factory=list[tuple[Seconds, Request]])
    outputs: dict[str, int] = field(default_factory=dict[str, int])
    """Tokens of answers, by request."""
    cancelled: dict[str, Seconds] = field(default_factory=dict[str, Seconds])
    measured: list[tuple[Report, Seconds]] = field(default_factory=list[tuple[Report, Seconds]])
    """Reports and when they were made."""
    policies: int = 1
    """Policies that were in force, one after the other."""
    replayed: ReplayResult = field(default_factory=lambda: ReplayResult(0, 0))

    @property
    def guessed(self) -> int:
        """Requests whose length is a guess."""
        return sum(request.id not in self.outputs for _, request in self.arrivals)

    def every_other(self) -> frozenset[str]:
        """Every other request in order of arrival. For membership only: its order is not defined."""
        return frozenset(request.id for _, request in self.arrivals[::2])

    def lengths(self) -> Mapping[str, int]:
        """A length for every request; those that were not answered get the median of their class."""
        known: dict[str, list[int]] = {}
        for _, request in self.arrivals:
            if request.id in self.outputs:
                known.setdefault(request.workload_class, []).append(self.outputs[request.id])
        medians = {name: median_low(values) for name, values in known.items()}
        return {
            request.id: self.outputs.get(request.id, medians.get(request.workload_class, GUESS_TOKENS))
            for _, request in self.arrivals
        }


class _Listener:
    """The fresh core of a replay, and a note of everything that passes through it."""

    def __init__(self, core: RouterCore, to: Recorded) -> None:
        self._core = core
        self._to = to
        self._start: Seconds | None = None
        self._known: set[str] = set()

    def handle(self, message: Fact, now: Seconds) -> Sequence[Action]:
        """As the core."""
        actions = self._core.handle(message, now)
        self._note(message, self._since(now))
        self._note_ends(actions, self._since(now))
        return actions

    def advance(self, now: Seconds) -> Sequence[Action]:
        """As the core."""
        actions = self._core.advance(now)
        self._note_ends(actions, self._since(now))
        return actions

    def deadline(self) -> Seconds | None:
        """As the core."""
        return self._core.deadline()

    def _since(self, now: Seconds) -> Seconds:
        if self._start is None:
            self._start = now
        return now - self._start

    def _note(self, fact: Fact, at: Seconds) -> None:
        to = self._to
        match fact:
            case RequestArrived(request=request):
                assert self._start is not None
                to.arrivals.append((at, replace(request, deadline=request.deadline - self._start)))
            case DecodeDone():
                to.outputs[fact.request_id] = fact.output_tokens
            case RequestCancelled():
                to.cancelled[fact.request_id] = at
            case BackendJoined(spec=spec) if spec.id not in self._known:
                self._known.add(spec.id)
                to.specs.append(spec)
                to.joined_at = at
            case BackendJoined() | BackendLost() | BackendRemoved() | BackendCordoned():
                to.changes.append(Change(at, fact))
            case PolicyReplaced():
                to.policies += 1
            case _:
                pass

    def _note_ends(self, actions: Sequence[Action], at: Seconds) -> None:
        for action in actions:
            if isinstance(action, FinishRequest | FailRequest):
                self._to.measured.append((action.report, at))


def read_recording(
    path: Path,
    models: Callable[[], ModelSource] = TrackedModels,
    progress: Callable[[float], None] | None = None,
) -> Recorded:
    """Replay a recording and keep what it says. Raises RecordingError and ConfigError."""
    origin = read_origin(path)
    recorded, source = Recorded(origin), models()
    recorded.replayed = replay(
        _lines(path, progress),
        lambda: _Listener(origin.core(source), recorded),
        lambda text: origin.rebuild(text, source),
    )
    return recorded


def read_origin(path: Path) -> Origin:
    """The head of a recording. Raises RecordingError."""
    with _files(path)[0].open(encoding="utf-8") as file:
        first = file.readline(1 << 20)
    try:
        meta = json.loads(first)["meta"]
        limits = Limits(**json.loads(meta["admission"])) if "admission" in meta else Limits()
        return Origin(str(meta["policy"]), str(meta["fallback"]), int(meta["seed"]), limits)
    except (ValueError, KeyError, TypeError) as error:
        raise RecordingError(
            f"{path} does not begin like a recording ({error!r}); give the first file of one, as written by"
            " a daemon with observe.record"
        ) from error


def _files(path: Path) -> list[Path]:
    files = parts(path)
    if not files:
        raise ConfigError(f"there is no recording {path}; a daemon with observe.record writes one.")
    return files


def _lines(path: Path, progress: Callable[[float], None] | None) -> Iterator[str]:
    """The lines of all files, in order; tells how much of them has been read, 0 to 1."""
    files = _files(path)
    whole, read = sum(file.stat().st_size for file in files) or 1, 0
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                read += len(line)
                if progress is not None and number % 2000 == 0:
                    progress(min(1.0, read / whole))
                yield line


class RecordedTraffic:
    """The recorded requests at their recorded times: a router.sim.world.Source."""

    def __init__(self, recorded: Recorded) -> None:
        self._arrivals = recorded.arrivals
        self._lengths = recorded.lengths()
        self.taken = 0

    def __call__(self, request: Request) -> int:
        """The oracle."""
        return self._lengths[request.id]

    def next_at(self) -> Seconds | None:
        """When the next one comes."""
        return self._arrivals[self.taken][0] if self.taken < len(self._arrivals) else None

    def take(self) -> Request:
        """The next one."""
        request = self._arrivals[self.taken][1]
        self.taken += 1
        return request

    def ended(self, request_id: str, now: Seconds, finished: bool) -> None:
        """Recorded requests follow from nothing."""


def finished(reports: Iterable[tuple[Report, Any]]) -> list[Report]:
    """Reports of the requests that ended well."""
    return [
        report for report, _ in reports if report.finish is not None and math.isfinite(report.times.e2e_s)
    ]
