"""Which backends hold the beginning of a prompt, found by one walk over its blocks whatever the fleet's size.

Two sources: an engine that sends KV events (messages.KVBlocksChanged) is believed, and of a backend that
sends none our own placements say what it has computed. Events lag a placement by its prefill, so that
placements count at such a backend as well, for PROMISE_S; else prompts that arrive together would scatter.

The index is inverted: block hash -> backends, as bits of an integer. One step of the walk is one AND over the
whole fleet, and it ends where nobody holds more.

Nothing here decays with load. A hit is worth the prefill time that it saves, and the policy sets that
against the queue, the batch and the harm at its holder (predicted.py): a prefix that all share is worth the
same at one holder however busy that is, and so loses to an idle stranger as soon as the wait is longer than
the prefill.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final

from policies.prefixes import MAX_BLOCKS
from router.core.messages import BackendJoined, BackendLost, BackendRemoved, KVBlocksChanged
from router.model import BackendSpec, Seconds

EXPIRE_S: Final[Seconds] = 900.0
"""How long an inferred block is believed in without a new use. Assumption: what others put on the backend is
not known, and a quarter of an hour of it turns most caches over."""
PROMISE_S: Final[Seconds] = 30.0
"""The same at a backend that sends events: by then the prefill is done and an event has said so, or it never
will. Assumption: longer than a prefill and its queue mostly take."""


class Holders:
    """Block hash -> set of slots, one bit each."""

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}
        self._names: list[str] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        """Blocks that somebody holds."""
        return len(self._masks)

    def enter(self, name: str) -> int:
        """A slot of one's own."""
        if self._free:
            slot = self._free.pop()
            self._names[slot] = name
            return slot
        self._names.append(name)
        return len(self._names) - 1

    def leave(self, slot: int) -> None:
        """Give a slot back that holds nothing any more."""
        self._free.append(slot)

    def add(self, one: int, slot: int) -> None:
        """The slot holds a block."""
        self._masks[one] = self._masks.get(one, 0) | 1 << slot

    def drop(self, one: int, slot: int) -> None:
        """It holds it no more."""
        left = self._masks.get(one, 0) & ~(1 << slot)
        if left:
            self._masks[one] = left
        else:
            self._masks.pop(one, None)

    def leading(self, hashes: Sequence[int]) -> dict[str, int]:
        """How many of the first blocks each holder has without a gap; who has not the first is missing."""
        found: dict[str, int] = {}
        get = self._masks.get
        having = get(hashes[0], 0) if hashes else 0
        for depth, one in enumerate(hashes):
            if not having:
                return found
            still = having & get(one, 0)
            if still != having:
                self._note(having ^ still, depth, found)
                having = still
        self._note(having, len(hashes), found)
        return found

    def _note(self, mask: int, depth: int, found: dict[str, int]) -> None:
        for slot in _bits(mask):
            found[self._names[slot]] = depth


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


@dataclass(slots=True)
class _Share:
    """What one backend holds."""

    slot: int
    room: int = MAX_BLOCKS
    """Blocks that it can hold."""
    fed: bool = False
    """It sends events."""
    told: dict[int, None] = field(default_factory=dict[int, None])
    """Blocks that it said it has, oldest first."""
    inferred: OrderedDict[int, Seconds] = field(default_factory=OrderedDict[int, Seconds])
    """Blocks of our placements with the time of the last one, least recently used first."""
    due: Seconds = math.inf
    """When inferred blocks are next looked through for such that expired."""


class Affinity:
    """What each backend holds of prompts seen before. Bounded per backend by its KV capacity."""

    def __init__(self, expire_s: Seconds = EXPIRE_S, promise_s: Seconds = PROMISE_S) -> None:
        self._expire_s = expire_s
        self._promise_s = promise_s
        self._holders = Holders()
        self._shares: dict[str, _Share] = {}
        self._boots: dict[str, str] = {}
        """Incarnation of each backend that joined."""
        self._due: list[tuple[Seconds, str]] = []
        """Heap of _Share.due by backend, with entries that were overtaken."""
        self._learns = True

    def __deepcopy__(self, memo: dict[int, object]) -> Affinity:
        """For a dry run: sees the same blocks, and learns nothing."""
        other = Affinity(self._expire_s, self._promise_s)
        other._holders, other._shares, other._boots = self._holders, self._shares, self._boots
        other._due, other._learns = self._due, False
        return other

    def __len__(self) -> int:
        """Different blocks that are believed to be held by anybody."""
        return len(self._holders)

    def held(self, hashes: Sequence[int], now: Seconds) -> dict[str, int]:
        """Leading blocks of a prompt at each backend that holds the first."""
        while self._due and self._due[0][0] <= now:
            due, backend = heappop(self._due)
            share = self._shares.get(backend)
            if share is not None and share.due == due:  # else another entry took its place
                share.due = math.inf
                self._expire(share, backend, now)
        return self._holders.leading(hashes)

    def placed(self, spec: BackendSpec, hashes: Sequence[int], now: Seconds) -> None:
        """A prompt goes to a backend, which will hold its blocks, the last the first to go."""
        if not self._learns or not hashes:
            return
        share = self._share(spec.id)
        share.room = _room(spec)
        self._look_again(share, spec.id, now + self._lasts_s(share))
        held, add, slot = share.inferred, self._holders.add, share.slot
        for one in reversed(hashes):
            if one not in held:
                add(one, slot)
            held[one] = now
            held.move_to_end(one)
        while len(held) > share.room:
            self._drop_inferred(share)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learn from events, and of backends that come empty or leave."""
        if not self._learns:
            return
        match fact:
            case KVBlocksChanged():
                self._changed(fact, now)
            case BackendJoined():
                if self._boots.get(fact.spec.id) != fact.incarnation:
                    self._forget(fact.spec.id)
                self._boots[fact.spec.id] = fact.incarnation
                if fact.spec.id in self._shares:
                    self._shares[fact.spec.id].room = _room(fact.spec)
            case BackendLost():
                self._forget(fact.backend)  # events of the time until it is back would be missing
            case BackendRemoved():
                self._forget(fact.backend)
                self._boots.pop(fact.backend, None)
            case _:
                pass

    def _changed(self, fact: KVBlocksChanged, now: Seconds) -> None:
        if self._boots.setdefault(fact.backend, fact.incarnation) != fact.incarnation:
            return  # of a boot that is over: these blocks are gone
        share = self._share(fact.backend)
        if not share.fed:
            share.fed = True
            self._expire(share, fact.backend, now)
        if fact.cleared:
            self._clear(share)
        for one in fact.removed:
            share.told.pop(one, None)
            share.inferred.pop(one, None)
            self._holders.drop(one, share.slot)
        for one in fact.stored:
            share.told.pop(one, None)
            share.told[one] = None
            self._holders.add(one, share.slot)
        while len(share.told) > share.room:
            self._drop_told(share)

    def _share(self, backend: str) -> _Share:
        share = self._shares.get(backend)
        if share is None:
            share = self._shares[backend] = _Share(self._holders.enter(backend))
        return share

    def _lasts_s(self, share: _Share) -> Seconds:
        return self._promise_s if share.fed else self._expire_s

    def _look_again(self, share: _Share, backend: str, at: Seconds) -> None:
        if at < share.due:
            share.due = at
            heappush(self._due, (at, backend))

    def _expire(self, share: _Share, backend: str, now: Seconds) -> None:
        """Drop inferred blocks whose time is over, and say when to look again."""
        held, lasts_s = share.inferred, self._lasts_s(share)
        while held:
            used = next(iter(held.values()))
            if used + lasts_s > now:
                self._look_again(share, backend, used + lasts_s)
                return
            self._drop_inferred(share)

    def _drop_inferred(self, share: _Share) -> None:
        one, _ = share.inferred.popitem(last=False)
        if one not in share.told:
            self._holders.drop(one, share.slot)

    def _drop_told(self, share: _Share) -> None:
        one = next(iter(share.told))
        del share.told[one]
        if one not in share.inferred:
            self._holders.drop(one, share.slot)

    def _clear(self, share: _Share) -> None:
        for one in (*share.told, *share.inferred):
            self._holders.drop(one, share.slot)
        share.told.clear()
        share.inferred.clear()

    def _forget(self, backend: str) -> None:
        share = self._shares.pop(backend, None)
        if share is not None:
            self._clear(share)
            self._holders.leave(share.slot)


def _room(spec: BackendSpec) -> int:
    return min(MAX_BLOCKS, max(1, spec.kv_capacity_tokens // spec.block_tokens))
