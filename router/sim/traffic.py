"""Requests of a workload as they come: lazy, seeded, and with the feedback of closed loops.

The true length of an answer goes to the Oracle, never into the Request. Every class, and every session of
more than one turn, has a random stream of its own, so that what a policy does to the timing changes no length
and no pause: two policies see the same arrivals. At any time the memory holds the requests under way and one
arrival of each class.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import Final, assert_never

from router.errors import ConfigError
from router.model import Request, Seconds
from router.sim.classes import (
    BLOCK_TOKENS,
    AtOnce,
    InFlight,
    Renewal,
    TraceLengths,
    TraceTimes,
    Workload,
    WorkloadClass,
)
from router.sim.workload import Arrival

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
REFUSED_PAUSE_S: Final = 1.0
"""What a caller of a closed loop waits at least after a failure (assumption)."""


class Oracle:
    """The true lengths of the answers that are under way. Nothing a policy can reach leads here."""

    def __init__(self) -> None:
        self._lengths: dict[str, int] = {}

    def __call__(self, request: Request) -> int:
        """Tokens of a request's whole answer, at least 1."""
        return self._lengths[request.id]

    def tell(self, request_id: str, output_tokens: int) -> None:
        """Learn a length."""
        self._lengths[request_id] = output_tokens

    def forget(self, request_id: str) -> None:
        """The request is over."""
        self._lengths.pop(request_id, None)


@dataclass(slots=True, eq=False)
class _Session:
    """One session between its turns."""

    name: str
    of: _Class
    rng: Random
    turns: float
    arrival: Arrival | None
    """The row of the trace that the first turn takes; None draws it."""
    turn: int = 0
    context: int = 0
    """Tokens said so far: prompts and answers."""
    seed: int = 0
    """Identity of the session's own text; blocks are numbered from it."""
    hashes: list[int] = field(default_factory=list[int])


class _Class:
    """The state of one class while its requests come."""

    def __init__(self, kind: WorkloadClass, seed: int, rate_scale: float) -> None:
        self.kind = kind
        self.rng = Random(f"{seed}/{kind.name}/lengths")
        self.prefix = Random(f"{kind.name}/prefix").getrandbits(64)  # the same text in every run
        self.started = 0
        self._seed = seed
        self._rows = kind.lengths.rows if isinstance(kind.lengths, TraceLengths) else ()
        self._tenants = tuple(accumulate(weight for _, weight in kind.tenants))
        self._starts = _starts(kind, self._rows, Random(f"{seed}/{kind.name}/arrivals"), rate_scale)
        self.simple = _is_simple(kind)

    def next_start(self) -> tuple[Seconds, Arrival | None] | None:
        """Time and, where the trace sets it, row of the next session."""
        return next(self._starts, None)

    def session(self, arrival: Arrival | None) -> _Session:
        """Begin a session."""
        number = self.started
        self.started += 1
        name, kind = f"{self.kind.name}-{number}", self.kind
        if self.simple:
            return _Session(name, self, self.rng, 1.0, arrival)
        rng = Random(f"{self._seed}/{name}")
        endless = isinstance(kind.arrivals, InFlight)
        turns = math.inf if endless else max(1.0, round(kind.session.turns.draw(rng)))
        return _Session(name, self, rng, turns, arrival, seed=rng.getrandbits(64))

    def lengths(self, session: _Session) -> tuple[int, int, tuple[int, ...]]:
        """New prompt tokens, output tokens, and the hashes that a trace gives."""
        lengths, rng = self.kind.lengths, session.rng
        if isinstance(lengths, TraceLengths):
            row = session.arrival or self._row(session, lengths)
            session.arrival = None
            return row.prompt_tokens, row.output_tokens, row.prefix_hashes
        prompt = max(1, round(lengths.prompt.draw(rng)))
        return prompt, max(1, round(lengths.output.draw(rng))), ()

    def _row(self, session: _Session, lengths: TraceLengths) -> Arrival:
        if lengths.in_order and self.simple:
            return self._rows[(self.started - 1) % len(self._rows)]
        return self._rows[session.rng.randrange(len(self._rows))]

    def tenant(self, rng: Random) -> str:
        """One of the tenants, by weight."""
        tenants = self.kind.tenants
        if len(tenants) == 1:
            return tenants[0][0]
        pick = rng.random() * self._tenants[-1]
        return next(name for (name, _), upto in zip(tenants, self._tenants, strict=True) if pick <= upto)


class Traffic:
    """The requests of one run, in order of time. The driver takes them and says when they ended."""

    def __init__(
        self,
        workload: Workload,
        seed: int,
        *,
        rate_scale: float = 1.0,
        requests: int | None = None,
        duration_s: Seconds | None = None,
    ) -> None:
        """`requests` and `duration_s` replace the workload's own bounds. Raises ConfigError without any."""
        self.oracle = Oracle()
        self.taken = 0
        """Requests so far."""
        own = requests is None and duration_s is None
        self.most = workload.requests if own else requests
        """No more requests than so many; None is no bound."""
        self.until: Seconds = workload.duration_s if own else math.inf if duration_s is None else duration_s
        """None comes at or after this time."""
        _check_bounds(workload, self.most, self.until)
        self._heap: list[tuple[Seconds, int, _Session | _Class, Arrival | None]] = []
        self._order = 0
        self._live: dict[str, tuple[_Session, int]] = {}
        for kind in workload.classes:
            self._expect(_Class(kind, seed, rate_scale))

    def next_at(self) -> Seconds | None:
        """When the next request comes, as far as is known by now; None when none will by itself."""
        if not self._heap or (self.most is not None and self.taken >= self.most):
            return None
        return self._heap[0][0]

    def take(self) -> Request:
        """The next request."""
        at, _, what, arrival = heapq.heappop(self._heap)
        if isinstance(what, _Class):
            self._expect(what)
            what = what.session(arrival)
        self.taken += 1
        return self._turn(what, at)

    def ended(self, request_id: str, now: Seconds, finished: bool) -> None:
        """A request is over; a session whose request failed is over as well."""
        self.oracle.forget(request_id)
        live = self._live.pop(request_id, None)
        if live is None:
            return
        session, said = live
        if not finished and session.turns < math.inf:
            return
        shape = session.of.kind.session
        session.context = said if shape.grows and finished else 0
        if session.context > shape.max_context_tokens:
            return
        pause_s = max(0.0, shape.pause_s.draw(session.rng))
        # A caller that is refused at once must not call again at the same moment, or time stands still.
        self._push(now + (pause_s if finished else max(pause_s, REFUSED_PAUSE_S)), session, None)

    def _expect(self, kind: _Class) -> None:
        start = kind.next_start()
        if start is not None:
            self._push(start[0], kind, start[1])

    def _push(self, at: Seconds, what: _Session | _Class, arrival: Arrival | None) -> None:
        if at < self.until:
            self._order += 1
            heapq.heappush(self._heap, (at, self._order, what, arrival))

    def _turn(self, session: _Session, at: Seconds) -> Request:
        of, shape = session.of, session.of.kind.session
        kind = of.kind
        new, output, hashes = of.lengths(session)
        output = min(output, kind.max_new_tokens)
        prompt = new if session.context else new + shape.shared_prefix_tokens
        prompt += session.context
        name = session.name if session.turns == 1 else f"{session.name}.{session.turn}"
        session.turn += 1
        if not of.simple:
            hashes = _session_hashes(session, prompt)
            if session.turn < session.turns:
                self._live[name] = (session, prompt + output)
        elif hashes and isinstance(kind.lengths, TraceLengths):
            hashes = _spread(hashes, kind.lengths.block_tokens // BLOCK_TOKENS)
        self.oracle.tell(name, output)
        return Request(
            name,
            kind.model,
            prompt,
            kind.max_new_tokens,
            at + kind.deadline_s,
            workload_class=kind.name,
            slo=kind.slo,
            tenant=of.tenant(session.rng),
            priority=kind.priority,
            session_key="" if session.turns == 1 else session.name,
            prefix_hashes=hashes,
        )


def _is_simple(kind: WorkloadClass) -> bool:
    """Whether a session is a single request that shares no text with others."""
    shape = kind.session
    one = not isinstance(kind.arrivals, InFlight) and shape.turns.mean == 1.0
    return one and not shape.shared_prefix_tokens


def _starts(
    kind: WorkloadClass, rows: object, rng: Random, scale: float
) -> Iterator[tuple[Seconds, Arrival | None]]:
    arrivals = kind.arrivals
    match arrivals:
        case Renewal():
            return _renewal(arrivals.rate * scale, arrivals.cv, rng)
        case TraceTimes():
            assert isinstance(kind.lengths, TraceLengths), "times come from the trace of the lengths"
            return _trace(kind.lengths, arrivals, scale)
        case AtOnce():
            return ((arrivals.at_s, None) for _ in range(max(1, round(arrivals.count * scale))))
        case InFlight():
            callers = max(1, round(arrivals.callers * scale))
            return ((i * arrivals.over_s / callers, None) for i in range(callers))
        case _:
            assert_never(arrivals)


def _renewal(rate: float, cv: float, rng: Random) -> Iterator[tuple[Seconds, Arrival | None]]:
    """Gamma gaps have shape 1 / cv^2 and mean 1 / rate."""
    at = 0.0
    shape = 1.0 / (cv * cv)
    while True:
        at += rng.expovariate(rate) if cv == 1.0 else rng.gammavariate(shape, 1.0 / (rate * shape))
        yield at, None


def _trace(
    lengths: TraceLengths, times: TraceTimes, scale: float
) -> Iterator[tuple[Seconds, Arrival | None]]:
    speed, rows = times.speed * scale, lengths.rows
    period = max(rows[-1].at_s * (1.0 + 1.0 / max(len(rows) - 1, 1)), 1e-3)
    start = 0.0
    while True:
        for row in rows:
            yield (start + row.at_s) / speed, row
        if not times.repeat:
            return
        start += period


def _spread(hashes: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """Hashes of large blocks as hashes of their parts of BLOCK_TOKENS; the first part keeps the hash."""
    return tuple((one + _GOLDEN * part) & _MASK for one in hashes for part in range(parts))


def _session_hashes(session: _Session, prompt: int) -> tuple[int, ...]:
    """Hashes of the full blocks of a prompt. What a session has said does not change, so block i of a
    session always has the same hash; blocks of the shared prefix have those of the class."""
    shape, known = session.of.kind.session, session.hashes
    full = prompt // BLOCK_TOKENS
    if not shape.grows:
        known.clear()  # nothing of an independent turn but the shared prefix is said again
        full = min(full, shape.shared_prefix_tokens // BLOCK_TOKENS)
    common = shape.shared_prefix_tokens // BLOCK_TOKENS
    for i in range(len(known), full):
        known.append(((session.of.prefix if i < common else session.seed) + _GOLDEN * i) & _MASK)
    return tuple(known)


def _check_bounds(workload: Workload, requests: int | None, until: Seconds) -> None:
    ends = all(
        isinstance(one.arrivals, AtOnce) or (isinstance(one.arrivals, TraceTimes) and not one.arrivals.repeat)
        for one in workload.classes
    )
    if requests is None and math.isinf(until) and not ends:
        raise ConfigError(
            f"workload {workload.name} has no end: give --duration or --requests, or duration_s in its file."
        )
