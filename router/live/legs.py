"""The phases at work on one lane, by sequence number, and whether they still get on.

Values and lookups only: what follows from a stall is the lane's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from router.live.flow import Flow
from router.model import BackendSnapshot, Phase, Seconds

_MAX_SEQ: Final = 0xFFFF_FFFF


class Leg:
    """One phase of a flow on this lane; with decode_here, both."""

    __slots__ = (
        "accept",
        "busy_mark_s",
        "decode_here",
        "epoch",
        "flow",
        "moved",
        "phase",
        "progress_seen",
        "quiet_since",
        "seq",
    )

    def __init__(self, flow: Flow, epoch: int, phase: Phase, decode_here: bool) -> None:
        self.seq = 0
        """Given by the table."""
        self.flow = flow
        self.epoch = epoch
        self.phase = phase
        """PREFILL until PrefillDone also with decode_here: a prefill is not a decode that stalls."""
        self.decode_here = decode_here
        self.moved = decode_here
        """The KV is here, so a decode may run, and end."""
        self.accept = flow.accept
        self.progress_seen: Seconds = -1.0
        """Of StallWatch: the flow's last progress when it was last looked at ..."""
        self.quiet_since: Seconds = 0.0
        """... since when there has been none ..."""
        self.busy_mark_s: Seconds = 0.0
        """... and the busy time the worker had reported by then."""

    @property
    def current(self) -> bool:
        """Whether the flow still listens to this epoch."""
        return self.flow.epoch == self.epoch

    @property
    def decodes(self) -> bool:
        """Whether tokens are due."""
        return self.phase is Phase.DECODE and self.moved


class Legs:
    """The table. `by_seq` is for the hot path's lookups; only this class changes it."""

    __slots__ = ("_last_seq", "_seqs", "by_seq")

    def __init__(self) -> None:
        self.by_seq: dict[int, Leg] = {}
        self._seqs: dict[tuple[str, int], int] = {}
        self._last_seq = 0

    def __len__(self) -> int:
        return len(self.by_seq)

    def __iter__(self) -> Iterator[Leg]:
        """The legs at this time; safe against changes meanwhile."""
        return iter(tuple(self.by_seq.values()))

    def add(self, leg: Leg) -> Leg:
        """Take a leg in under a seq that the lane has not used before (up to the wrap of 32 bits)."""
        seq = self._last_seq % _MAX_SEQ + 1
        while seq in self.by_seq:
            seq = seq % _MAX_SEQ + 1
        self._last_seq = leg.seq = seq
        self.by_seq[seq] = leg
        self._seqs[leg.flow.id, leg.epoch] = seq
        return leg

    def find(self, request_id: str, epoch: int) -> Leg | None:
        """The leg of an epoch of a request."""
        seq = self._seqs.get((request_id, epoch))
        return None if seq is None else self.by_seq.get(seq)

    def remove(self, leg: Leg) -> None:
        """Take a leg out; what still comes for its seq belongs to nobody."""
        self.by_seq.pop(leg.seq, None)
        key = (leg.flow.id, leg.epoch)
        if self._seqs.get(key) == leg.seq:
            del self._seqs[key]


class StallWatch:
    """Tells a decode that has stalled from one that waits its turn at a worker which gets on with others.

    The core applies the same rule to prefills and handoffs, which it times itself.
    """

    __slots__ = ("_busy_s", "_patience_s", "_work_waits")

    def __init__(self, patience_s: Seconds) -> None:
        self._patience_s = patience_s
        self._busy_s: Seconds = 0.0
        self._work_waits = False

    def reported(self, snapshot: BackendSnapshot) -> None:
        """The worker's last account of itself."""
        self._busy_s = snapshot.busy_prefill_s + snapshot.busy_decode_s
        self._work_waits = snapshot.waiting > 0

    def has_stalled(self, leg: Leg, now: Seconds) -> bool:
        """To be asked about every decode once a second."""
        progress = leg.flow.last_progress
        if progress != leg.progress_seen:
            leg.progress_seen, leg.quiet_since, leg.busy_mark_s = progress, progress, self._busy_s
        if now - leg.quiet_since <= self._patience_s:
            return False
        if self._work_waits and self._busy_s > leg.busy_mark_s:
            # Preempted or queued: to fail it would lose its tokens and add its load to a busy fleet.
            leg.quiet_since, leg.busy_mark_s = now, self._busy_s
            return False
        return True
