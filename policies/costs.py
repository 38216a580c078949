"""What the parts of a placement cost one request, in seconds: a sum of producer + handoff + consumer.

Each part has a base, which the aim makes of its times, dollars and joules, and an extra, never below 0: what
it puts at stake times the worth of a good request, and what it takes from later requests by the prices in
force. The base is cheap to work out and bounds the whole from below, so that the extra is asked for only
where it can matter (search.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from policies import forecast
from policies.aim import Aim
from policies.prices import Tolls
from policies.stakes import Stakes
from policies.standing import Standing
from router.model import Seconds


@dataclass(frozen=True, slots=True)
class Size:
    """What is to be done for a request, as far as is known."""

    prompt: int
    tokens: int
    """Output expected, at least 1."""
    lengths: Sequence[int]
    """Ascending; the answer may have any of them, with equal probability."""
    cached: Callable[[Standing], int]
    """Tokens of the prompt that a backend is believed to hold; the last token is computed anew in any
    case."""

    @property
    def context(self) -> int:
        """Tokens of the sequence half way through its answer."""
        return self.prompt + self.tokens // 2


class Costs:
    """Of one request."""

    def __init__(self, size: Size, aim: Aim, stakes: Stakes, tolls: Tolls | None) -> None:
        self.size = size
        self.context = size.context
        self.aim = aim
        self.stakes = stakes
        self._tolls = tolls

    # --- times ---

    def stall_s(self, s: Standing) -> Seconds:
        """What the prefill takes from the decodes of a backend."""
        cached = self.size.cached(s)
        return forecast.stall_s(s, self.size.prompt - cached, cached)

    def longer_s(self, s: Standing, step: Seconds) -> Seconds:
        """By how much the steps of those who decode on a backend get longer."""
        return (step - 2 * s.half_step_s) * s.stretch

    def rest_s(self, s: Standing, step: Seconds) -> Seconds:
        """Tokens after the first on the backend that did the prefill."""
        return (self.size.tokens - 1) * step * s.stretch

    def decode_s(self, s: Standing, step: Seconds, early: bool) -> Seconds:
        """Decode after a handoff; `early` when prefill gave the first token."""
        return _decode_s(s, step, self.size.tokens - early)

    # --- producer ---

    def source(self, s: Standing, end: Seconds) -> float:
        """Base of a prefill. Of its first token `end` is all, or all but the handoff and one step."""
        aim = self.aim
        base = aim.time * end
        return base if aim.free else base + aim.prefill(s, self.size.prompt - self.size.cached(s))

    def source_extra(self, s: Standing, end: Seconds) -> float:
        """Its extra."""
        stakes = self.stakes
        lost = stakes.first(s, end) + stakes.stalled(s, lambda: self.stall_s(s))
        extra = stakes.worth_s * lost if lost else 0.0
        return extra if self._tolls is None else extra + self._tolls.prefill(s, self.size.cached(s))

    # --- consumer ---

    def rest(self, s: Standing, step: Seconds) -> float:
        """Base of a decode on the backend that did the prefill."""
        return self._with_prices(s, self.aim.after_first * self.rest_s(s, step))

    def rest_extra(self, s: Standing, step: Seconds) -> float:
        """Its extra."""
        slow = self.stakes.tokens(s, step * s.stretch) + self.uneven(s, step, None)
        return self._decode_extra(s, step, slow)

    def decode(self, s: Standing, step: Seconds, early: bool) -> float:
        """Base of a decode after a handoff."""
        aim = self.aim
        base = aim.after_first * _decode_s(s, step, self.size.tokens - early)
        if not early:
            base += aim.to_first * (s.half_step_s + step * s.stretch)
        return self._with_prices(s, base)

    def decode_extra(self, s: Standing, step: Seconds, early: bool) -> float:
        """Its extra."""
        slow = self.slow(s, step, early) + self.uneven(s, step, 0.0 if early else None)
        return self._decode_extra(s, step, slow)

    def slow(self, s: Standing, step: Seconds, early: bool, handoff_s: Seconds = 0.0) -> float:
        """Risk of slow tokens after a handoff. Short answers have the fewest tokens to make up for a wait."""
        lost = 0.0
        for n in self.size.lengths:
            steps = max(1, n - early)
            risk = self.stakes.tokens(s, (handoff_s + _decode_s(s, step, steps)) / steps)
            if not risk:
                break
            lost += risk
        return lost / len(self.size.lengths)

    def uneven(self, s: Standing, step: Seconds, handoff_s: Seconds | None) -> float:
        """Risk of uneven tokens."""
        return self.stakes.jitter(s, step, self.size.tokens, handoff_s) if self.stakes.even else 0.0

    def _decode_extra(self, s: Standing, step: Seconds, slow: float) -> float:
        stakes = self.stakes
        lost = slow + stakes.slowed(s, self.longer_s(s, step))
        extra = stakes.worth_s * lost if lost else 0.0
        return extra if self._tolls is None else extra + self._tolls.decode(s)

    def _with_prices(self, s: Standing, base: float) -> float:
        aim = self.aim
        return base if aim.free else base + aim.decode(s, self.size.tokens, self.context)

    # --- between ---

    def handoff(self, producer: Standing, consumer: Standing, moved_s: Seconds) -> float:
        """Base and extra of a transfer of `moved_s`."""
        early = producer.spec.connector.first_token_from_prefill
        cost = (self.aim.after_first if early else self.aim.time) * moved_s
        if early and self.stakes.even:  # the second token waits for the transfer
            step = forecast.joined_step_s(consumer, self.context)
            torn = self.uneven(consumer, step, moved_s) - self.uneven(consumer, step, 0.0)
            cost += self.stakes.worth_s * max(0.0, torn)
        return cost if self._tolls is None else cost + self._tolls.handoff(producer, consumer)


def _decode_s(s: Standing, step: Seconds, steps: int) -> Seconds:
    own = steps * step
    return s.half_step_s + s.slot_wait_s + max(own * s.stretch, own + s.backlog_s)
