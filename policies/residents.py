"""Whom we sent where: the requests with objectives on each backend, and how much delay they can still bear.

A policy that breaks a running request's objectives to keep a newcomer's has won nothing. So every request
that we placed and that has an objective stays on the books of its backends until it ends. What other routers
sent to a backend is not on these books. The slacks (slack.py) are worked out now and then; between two times,
what a placement takes is taken from all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Final

from policies.slack import Resident, Slacks, Tempo, work_out
from policies.standing import Standing
from router.core.messages import (
    BackendLost,
    BackendRemoved,
    DecodeDone,
    FirstToken,
    PhaseFailed,
    PrefillDone,
    RequestCancelled,
)
from router.model import Request, Seconds

MAX_RESIDENTS: Final = 1 << 16
"""More are not kept: requests whose end is never told must not fill the memory."""
FRESH_S: Final = 0.03
"""Slacks are worked out anew after this time; a step or two of a batch."""
WINDOW_S: Final = 2.0
"""Over which prefills are counted."""
NOBODY: Final = Slacks()


@dataclass(slots=True)
class Frequency:
    """How often prefills came of late, with exponential forgetting."""

    at: Seconds = 0.0
    count: float = 0.0
    stall_s: Seconds = 0.0
    """Mean."""

    def per_s(self, now: Seconds) -> float:
        """Of the last seconds."""
        return self.count * math.exp(-(now - self.at) / WINDOW_S) / WINDOW_S

    def saw(self, stall_s: Seconds, now: Seconds) -> None:
        """One more."""
        self.count = 1.0 + self.count * math.exp(-(now - self.at) / WINDOW_S)
        self.stall_s += (stall_s - self.stall_s) / self.count
        self.at = now


@dataclass(slots=True)
class _House:
    """The residents of one backend."""

    queued: dict[str, Resident] = field(default_factory=dict[str, Resident])
    decoding: dict[str, Resident] = field(default_factory=dict[str, Resident])
    """And those that will decode here."""
    tempo: Tempo = field(default_factory=Tempo)
    prefills: Frequency = field(default_factory=Frequency)
    slacks: Slacks = field(default_factory=Slacks)
    worked_out: Seconds = -math.inf


class Residents:
    """The books. Fed by what the policy decides and by the facts about it."""

    def __init__(self) -> None:
        self._all: dict[str, Resident] = {}
        self._houses: dict[str, _House] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Residents:
        """For a dry run: nobody is copied, since nothing that is planned there happens."""
        return Frozen(self)

    def __len__(self) -> int:
        return len(self._all)

    def moves_in(
        self,
        request: Request,
        prefill: str,
        decode: str | None,
        lengths: tuple[int, ...],
        first_at: Seconds,
        due: Seconds,
    ) -> None:
        """A request was placed. One without objectives is not kept."""
        slo = request.slo
        if slo.ttft_s is None and slo.tpot_s is None and slo.jitter_ratio is None:
            return
        self.moves_out(request.id)
        if len(self._all) >= MAX_RESIDENTS:
            self.moves_out(next(iter(self._all)))
        tpot_s = math.inf if slo.tpot_s is None else slo.tpot_s
        jitter = math.inf if slo.jitter_ratio is None else slo.jitter_ratio
        until = request.deadline
        one = Resident(request.id, until, due, tpot_s, jitter, lengths, prefill, decode, first_at)
        self._all[request.id] = one
        house = self._house(prefill)
        house.queued[one.id] = one
        if 0 < due - first_at < math.inf:
            house.slacks.first.add(due - first_at, 1.0)
        if decode is not None:
            self._expects(self._house(decode), one)

    def _expects(self, house: _House, one: Resident) -> None:
        house.decoding[one.id] = one
        spare_s = one.tpot_s - min(house.tempo.pace_s, one.tpot_s)
        if 0 < spare_s < math.inf:
            for n in one.lengths:
                house.slacks.stall.add(spare_s * max(1, n - 1), 1.0 / len(one.lengths))

    def decodes_at(self, request_id: str, backend: str) -> None:
        """Decode was bound late."""
        if (one := self._all.get(request_id)) is not None:
            self._leave_decode(one)
            one.decode = backend
            self._expects(self._house(backend), one)

    def disturbed(self, backend: str, stall_s: Seconds, now: Seconds) -> None:
        """A prefill that takes `stall_s` was sent to a backend. Whose tokens it tears apart has no jitter
        objective left to lose."""
        house = self._house(backend)
        house.prefills.saw(stall_s, now)
        house.slacks.stall.taken_s += stall_s
        house.slacks.first.taken_s += stall_s
        house.slacks.gap.slacks.clear()
        for one in house.decoding.values():
            if one.jitter_ratio < math.inf and not one.queued:
                one.smooth = False

    def prefills(self, backend: str, now: Seconds) -> tuple[float, Seconds]:
        """How many prefills a second a backend got of late, and what one took from its decodes."""
        house = self._houses.get(backend)
        return (0.0, 0.0) if house is None else (house.prefills.per_s(now), house.prefills.stall_s)

    def slowed(self, backend: str, longer_s: Seconds) -> None:
        """A decode that makes each step longer was bound to a backend."""
        if (house := self._houses.get(backend)) is not None:
            house.slacks.pace.taken_s += longer_s

    def moves_out(self, request_id: str) -> None:
        """A request ended, or has to start anew."""
        if (one := self._all.pop(request_id, None)) is not None:
            self._leave_queue(one)
            self._leave_decode(one)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Follow the residents."""
        match fact:
            case PrefillDone():
                self._prefilled(fact.request_id, now)
            case FirstToken():
                self._first_token(fact.request_id, now)
            case DecodeDone() | PhaseFailed() | RequestCancelled():
                self.moves_out(fact.request_id)
            case BackendLost() | BackendRemoved():
                self._gone(fact.backend)
            case _:
                pass

    def at(self, now: Seconds) -> Neighbours:
        """The books for one decision."""
        return Neighbours(self, now)

    def slacks(self, s: Standing, now: Seconds) -> Slacks:
        """What those on a backend can bear, at its present load."""
        house = self._houses.get(s.spec.id)
        if house is None or not (house.queued or house.decoding):
            return NOBODY
        if now - house.worked_out >= FRESH_S:
            self._expel(house, now)
            house.slacks = work_out(house.queued.values(), house.decoding.values(), s, house.tempo, now)
            house.worked_out = now
        return house.slacks

    # --- the books ---

    def _house(self, backend: str) -> _House:
        return self._houses.setdefault(backend, _House())

    def _leave_queue(self, one: Resident) -> None:
        if (house := self._houses.get(one.prefill)) is not None:
            house.queued.pop(one.id, None)

    def _leave_decode(self, one: Resident) -> None:
        if one.decode is not None and (house := self._houses.get(one.decode)) is not None:
            house.decoding.pop(one.id, None)

    def _prefilled(self, request_id: str, now: Seconds) -> None:
        if (one := self._all.get(request_id)) is None or not one.queued:
            return
        self._leave_queue(one)
        one.queued = False
        one.first_at = now
        self._starts(one, now)

    def _first_token(self, request_id: str, now: Seconds) -> None:
        if (one := self._all.get(request_id)) is not None:
            one.first_at, one.due = now, math.inf
            self._starts(one, now)

    def _starts(self, one: Resident, now: Seconds) -> None:
        if one.decode is not None and (house := self._houses.get(one.decode)) is not None:
            one.joined = house.tempo.count(now)

    def _gone(self, backend: str) -> None:
        house = self._houses.pop(backend, None)
        if house is not None:
            for name in (*house.queued, *house.decoding):
                self.moves_out(name)

    def _expel(self, house: _House, now: Seconds) -> None:
        late = [one.id for one in (*house.queued.values(), *house.decoding.values()) if one.until < now]
        for name in late:
            self.moves_out(name)


class Frozen(Residents):
    """The books as they are, for a dry run: read through, and never written."""

    def __init__(self, books: Residents) -> None:
        super().__init__()
        self._all, self._houses = books._all, books._houses

    def moves_in(
        self,
        request: Request,
        prefill: str,
        decode: str | None,
        lengths: tuple[int, ...],
        first_at: Seconds,
        due: Seconds,
    ) -> None:
        """Nobody moves."""

    def slacks(self, s: Standing, now: Seconds) -> Slacks:
        """As worked out last, or as they would be now."""
        house = self._houses.get(s.spec.id)
        if house is None or not (house.queued or house.decoding):
            return NOBODY
        if now - house.worked_out < FRESH_S:
            return house.slacks
        return work_out(house.queued.values(), house.decoding.values(), s, replace(house.tempo), now)

    def disturbed(self, backend: str, stall_s: Seconds, now: Seconds) -> None:
        """Nobody is."""

    def slowed(self, backend: str, longer_s: Seconds) -> None:
        """Nobody is."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The books at the time of a decision."""

    books: Residents
    now: Seconds

    def slacks(self, s: Standing) -> Slacks:
        """What those on a backend can bear."""
        return self.books.slacks(s, self.now)

    def prefills(self, s: Standing) -> tuple[float, Seconds]:
        """How many prefills a second it got of late, and what one took from its decodes."""
        return self.books.prefills(s.id, self.now)
