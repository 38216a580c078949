"""What a placement puts at stake, in expected good requests: the newcomer's own objectives, and those of
others.

    risk   probability that the newcomer misses an objective there: the predicted time is off by a factor
    whose
           logarithm is normal, with the spread learned for that backend and phase (spread.py)
    harm   requests that would lose an objective by it (residents.py): by the prefill, which takes time from
           decodes and delays prompts of the same step, and by the decode, which makes every step longer

Both are counted in requests, so they add up, and `worth_s` says how many seconds of one's own time a good
request is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from policies.jitter import uneven
from policies.residents import Neighbours
from policies.standing import Standing
from router.model import Phase, Request, Seconds

SURE: Final = 4.0
"""Standard deviations beyond which nothing is expected to happen."""
SAFE: Final = 80.0
"""A time this many times below its limit is held whatever the spread (exp(SURE x the largest, plus a
bias))."""
Spread = Callable[[str, Phase], tuple[float, float]]
"""(backend, phase) -> mean and standard deviation of log(observed / predicted)."""


@dataclass(frozen=True, slots=True)
class Stake:
    """What one placement puts at stake."""

    ttft_risk: float = 0.0
    tpot_risk: float = 0.0
    jitter_risk: float = 0.0
    harm: float = 0.0

    @property
    def risk(self) -> float:
        """Probability of missing an objective of one's own, in [0, 1]."""
        return 1.0 - (1.0 - self.ttft_risk) * (1.0 - self.tpot_risk) * (1.0 - self.jitter_risk)

    @property
    def gain(self) -> float:
        """Expected requests in time by it, less those that it costs.

        An answer that comes in time but unevenly is worth more to its caller than none: an uneven pace
        chooses the place, and refuses nobody.
        """
        return (1.0 - self.ttft_risk) * (1.0 - self.tpot_risk) - self.harm


class Stakes(Protocol):
    """What an outlook asks of it. Costs are in seconds."""

    @property
    def worth_s(self) -> Seconds:
        """Seconds of delay that one good request is worth."""
        ...

    @property
    def even(self) -> bool:
        """Whether the request has a jitter objective."""
        ...

    def first(self, s: Standing, ttft_s: Seconds) -> float:
        """Probability that a first token predicted after `ttft_s` comes too late."""
        ...

    def tokens(self, s: Standing, tpot_s: Seconds) -> float:
        """Probability that tokens predicted every `tpot_s` come too slowly."""
        ...

    def jitter(self, s: Standing, step_s: Seconds, tokens: int, handoff_s: Seconds | None) -> float:
        """Probability that an answer comes unevenly; `handoff_s` as of jitter.uneven."""
        ...

    def stalled(self, s: Standing, stall_s: Callable[[], Seconds]) -> float:
        """Requests that a prefill costs which takes `stall_s` of the backend."""
        ...

    def slowed(self, s: Standing, longer_s: Seconds) -> float:
        """Requests that a decode costs which makes each step longer."""
        ...


class Nothing:
    """No stakes: only times count."""

    worth_s: Seconds = 0.0
    even = False

    def first(self, s: Standing, ttft_s: Seconds) -> float:
        """None."""
        return 0.0

    def tokens(self, s: Standing, tpot_s: Seconds) -> float:
        """None."""
        return 0.0

    def jitter(self, s: Standing, step_s: Seconds, tokens: int, handoff_s: Seconds | None) -> float:
        """None."""
        return 0.0

    def stalled(self, s: Standing, stall_s: Callable[[], Seconds]) -> float:
        """None."""
        return 0.0

    def slowed(self, s: Standing, longer_s: Seconds) -> float:
        """None."""
        return 0.0


NOTHING: Final[Stakes] = Nothing()


class AtStake:
    """The stakes of one request."""

    def __init__(
        self, request: Request, waited_s: Seconds, worth_s: Seconds, neighbours: Neighbours, spread: Spread
    ) -> None:
        """`waited_s` is what its objective for the first token has lost already."""
        slo = request.slo
        self.worth_s = worth_s
        self._ratio = slo.jitter_ratio
        self.even = slo.jitter_ratio is not None
        self._left_s = math.inf if slo.ttft_s is None else slo.ttft_s - waited_s
        self._tpot_s = math.inf if slo.tpot_s is None else slo.tpot_s
        self._neighbours = neighbours
        self._spread = spread

    def first(self, s: Standing, ttft_s: Seconds) -> float:
        """Probability of a late first token."""
        return self._exceeds(s, Phase.PREFILL, ttft_s, self._left_s)

    def tokens(self, s: Standing, tpot_s: Seconds) -> float:
        """Probability of slow tokens."""
        return self._exceeds(s, Phase.DECODE, tpot_s, self._tpot_s)

    def jitter(self, s: Standing, step_s: Seconds, tokens: int, handoff_s: Seconds | None) -> float:
        """Probability of uneven tokens."""
        if self._ratio is None:
            return 0.0
        return uneven(s, self._ratio, step_s, tokens, *self._neighbours.prefills(s), handoff_s)

    def stalled(self, s: Standing, stall_s: Callable[[], Seconds]) -> float:
        """Harm of a prefill."""
        slacks = self._neighbours.slacks(s)
        return 0.0 if slacks.bears_any_prefill else slacks.stalled(stall_s())

    def slowed(self, s: Standing, longer_s: Seconds) -> float:
        """Harm of a decode."""
        return self._neighbours.slacks(s).pace.lost(longer_s)

    def _exceeds(self, s: Standing, phase: Phase, predicted_s: Seconds, limit_s: Seconds) -> float:
        if limit_s == math.inf or predicted_s <= 0:
            return 0.0
        if limit_s <= 0 or predicted_s == math.inf:
            return 1.0
        if limit_s > SAFE * predicted_s:
            return 0.0
        mean, deviation = self._spread(s.spec.id, phase)
        z = (math.log(limit_s / predicted_s) - mean) / deviation
        if z > SURE:
            return 0.0
        return 1.0 if z < -SURE else 0.5 * math.erfc(z * math.sqrt(0.5))
