"""How much delay requests on one backend can still bear before an objective of theirs breaks. Pure.

    first token   due - predicted end of its prefill
    tokens        the time its objective gives it for all its tokens - the time it took so far
                  - (tokens to come x pace of the batch, or the prefills that still run beside them)

The length of an answer is not known, so a request counts in parts, one for each length it may have.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from policies.standing import Standing
from router.model import Seconds

REST: Final = 0.5
"""An answer that outlives its longest third is taken to go on for this share of that (assumption)."""
NEAR: Final = 2.0
"""A delay begins to count where it is half of somebody's slack: predictions err (assumption)."""
MOST_WEIGHED: Final = 64
"""Parts looked at for one delay; beyond, the harm is beyond any gain."""
FAR_S: Final = 4.0
"""Whoever can bear this long a stall is not looked at: prefills are shorter."""
FAR_PACE_S: Final = 0.02
"""Nor who can bear this much more a step."""
Slack = tuple[Seconds, float]
"""Time, and the share of a request that has it."""


@dataclass(slots=True, eq=False)
class Resident:
    """A request that was placed and that has an objective to lose."""

    id: str
    until: Seconds
    """Its deadline: after it, nobody waits for it, even if its end was never told."""
    due: Seconds
    """For its first token; infinite without that objective."""
    tpot_s: Seconds
    """Infinite without the objective."""
    jitter_ratio: float
    lengths: tuple[int, ...]
    """Its answer may have any of these, with equal probability; ascending."""
    prefill: str
    decode: str | None
    first_at: Seconds
    """Of its first token: as predicted, then as seen."""
    queued: bool = True
    """Its prefill is not done."""
    joined: float = 0.0
    """Count of its decode backend's steps at its first token."""
    smooth: bool = True
    """No prefill came between its tokens yet, as far as we decided; without that, its jitter is lost
    anyway."""


@dataclass(slots=True)
class Tempo:
    """Steps that a backend is taken to have made, by the paces predicted at each look at it."""

    at: Seconds = 0.0
    steps: float = 0.0
    pace_s: Seconds = math.inf

    def count(self, now: Seconds) -> float:
        """Steps by now."""
        return self.steps + max(0.0, now - self.at) / self.pace_s

    def change(self, now: Seconds, pace_s: Seconds) -> None:
        """From now on a step takes so long."""
        self.steps, self.at = self.count(now), now
        self.pace_s = pace_s if pace_s > 0 else math.inf


@dataclass(slots=True)
class Bearing:
    """Slacks of one kind, ascending, and what was taken from all of them since they were worked out."""

    slacks: list[Slack] = field(default_factory=list[Slack])
    taken_s: Seconds = 0.0

    def lost(self, delay_s: Seconds) -> float:
        """How many requests one more delay costs: all of each part whose slack it exceeds, and less of each
        that is left with little. Who is late already has nothing to lose."""
        slacks, taken = self.slacks, self.taken_s
        if not slacks or delay_s <= 0:
            return 0.0
        far = NEAR * delay_s
        if slacks[-1][0] <= taken or slacks[0][0] >= taken + far:
            return 0.0
        lost, start = 0.0, bisect_right(slacks, (taken, math.inf)) if taken else 0
        for at_first, share in slacks[start : start + MOST_WEIGHED]:
            slack = at_first - taken
            if slack >= far:
                break
            lost += share if slack <= delay_s else share * (far - slack) / (far - delay_s)
        return lost

    def add(self, slack_s: Seconds, share: float) -> None:
        """One more; what was taken before is not taken from it."""
        insort(self.slacks, (slack_s + self.taken_s, share))


@dataclass(slots=True)
class Slacks:
    """What those on one backend can bear."""

    first: Bearing = field(default_factory=Bearing)
    """Delay of the prompts that wait."""
    stall: Bearing = field(default_factory=Bearing)
    """Time taken from the decodes."""
    pace: Bearing = field(default_factory=Bearing)
    """What each further step of a decode may take longer."""
    gap: Bearing = field(default_factory=Bearing)
    """Time between two tokens of a decode with a jitter objective."""

    @property
    def bears_any_prefill(self) -> bool:
        """Whether a prefill harms nobody, however long."""
        return not (self.first.slacks or self.stall.slacks or self.gap.slacks)

    def stalled(self, stall_s: Seconds) -> float:
        """Requests that a prefill costs."""
        return self.first.lost(stall_s) + self.stall.lost(stall_s) + self.gap.lost(stall_s)


def work_out(
    queued: Iterable[Resident], decoding: Iterable[Resident], s: Standing, tempo: Tempo, now: Seconds
) -> Slacks:
    """The slacks of those on a backend at its present load."""
    step = 2 * s.half_step_s
    tempo.change(now, step * s.stretch)
    found = Slacks()
    if not step < math.inf:
        return found
    first, stall, pace, gap = found.first.slacks, found.stall.slacks, found.pace.slacks, found.gap.slacks
    for one in queued:
        slack = one.due - max(one.first_at, now)
        if 0 < slack < FAR_S:
            first.append((slack, 1.0))
    for one in decoding:
        if one.tpot_s < math.inf:
            _add_decode(one, tempo.steps, s, now, stall, pace)
        if one.smooth and one.jitter_ratio < math.inf:
            gap.append(((one.jitter_ratio - 1.0) * step, 1.0))
    for slacks in (first, stall, pace, gap):
        slacks.sort()
    return found


def _add_decode(
    one: Resident, steps: float, s: Standing, now: Seconds, stall: list[Slack], pace: list[Slack]
) -> None:
    """The slack of one decode, for each length that its answer may still have."""
    tpot, step, pace_s = one.tpot_s, 2 * s.half_step_s, 2 * s.half_step_s * s.stretch
    done, start = 0.0 if one.queued else max(0.0, steps - one.joined), max(now, one.first_at)
    credit = one.first_at + tpot * done - start
    stalled = now + s.backlog_s - start
    longest = one.lengths[-1] - 1 - done
    if longest > 0 and credit + (tpot - pace_s) * max(0.0, one.lengths[0] - 1 - done) >= FAR_S + stalled:
        return  # most of those whose objective is loose
    to_come: Sequence[float] = [n - 1 - done for n in one.lengths if n - 1 > done] if longest > 0 else ()
    to_come = to_come or (max(1.0, REST * one.lengths[-1]),)
    share = 1.0 / len(to_come)
    for left in to_come:
        slack = credit + (tpot - step) * left - max(left * (pace_s - step), stalled, 0.0)
        if slack > 0:
            if slack < FAR_S:
                stall.append((slack, share))
            if slack < FAR_PACE_S * left:
                pace.append((slack / left, share))
