"""What an engine that tells nothing of itself seems to do, by what we sent it and what came back. Pure.

Assumption: the phases at work share the engine's time evenly. A phase's device time is its share of the time
it was there, so the shares of all phases add up to the time the engine was busy; an engine's own scheduling,
and work that others send it, are not seen.
"""

from __future__ import annotations

from router.model import Phase, Seconds


class ShareMeter:
    """The shared clock. `now` never decreases from call to call."""

    def __init__(self, now: Seconds) -> None:
        self.busy_s: dict[Phase, Seconds] = dict.fromkeys(Phase, 0.0)
        """Busy time up to the last sign of life: an engine that hangs is not busy, so stalls show."""
        self.count: dict[Phase, int] = dict.fromkeys(Phase, 0)
        """Phases at work."""
        self._pending_s: dict[Phase, Seconds] = dict.fromkeys(Phase, 0.0)
        self._share_s: Seconds = 0.0
        self._last = now

    def enter(self, phase: Phase, now: Seconds) -> Seconds:
        """A phase begins. Returns the reading that `leave` wants back."""
        self._advance(now)
        self.count[phase] += 1
        return self._share_s

    def leave(self, phase: Phase, reading: Seconds, now: Seconds) -> Seconds:
        """A phase ends. Returns its share of the engine's time, in seconds."""
        self._advance(now)
        self.count[phase] -= 1
        return self._share_s - reading

    def alive(self, now: Seconds) -> None:
        """Something came from the engine: the time until now was work."""
        self._advance(now)
        for phase, pending_s in self._pending_s.items():
            self.busy_s[phase] += pending_s
            self._pending_s[phase] = 0.0

    def _advance(self, now: Seconds) -> None:
        passed_s, self._last = now - self._last, now
        total = sum(self.count.values())
        if total == 0:
            return
        self._share_s += passed_s / total
        for phase, count in self.count.items():
            self._pending_s[phase] += passed_s * count / total
