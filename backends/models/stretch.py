"""A stretch: consecutive engine steps of one unchanged batch, and when each of them ends. Pure.

A stretch is anchored at its start, and the end of step k follows from k alone: stepping through it and
jumping over it give the same times to the last bit. Without noise the end is a closed form; with noise it
is a sum of draws, which are kept by step number, so that looking ahead does not change what is drawn.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from random import Random

from backends.models.metering import Span, Work
from router.model import Seconds

LOOKAHEAD = 64
"""Longest stretch under noise: draws beyond it would mostly be made before they are needed."""
UNBOUNDED = 1 << 30
"""Longest stretch without noise; its end is a formula."""


class Noise:
    """Multiplicative lognormal noise of mean 1, one draw per engine step, in order."""

    __slots__ = ("_ahead", "_rng", "sigma")

    def __init__(self, sigma: float, rng: Random) -> None:
        self.sigma = sigma
        self._rng = rng
        self._ahead: deque[float] = deque()

    @property
    def lookahead(self) -> int:
        """Longest stretch, in steps."""
        return LOOKAHEAD if self.sigma > 0.0 else UNBOUNDED

    def peek(self, position: int) -> float:
        """The factor of the step `position` steps from the next one."""
        while len(self._ahead) <= position:
            draw = self._rng.gauss(0.0, self.sigma) - 0.5 * self.sigma * self.sigma
            self._ahead.append(math.exp(draw))
        return self._ahead[position]

    def consume(self, steps: int) -> None:
        """Forget the factors of steps that are over."""
        for _ in range(min(steps, len(self._ahead))):
            self._ahead.popleft()


class Stretch:
    """Step j (from 0) of it lasts (first_s + j x growth_s) x noise."""

    __slots__ = ("_noise", "_sums", "grown", "shown", "started", "steps", "work")

    def __init__(self, started: Seconds, work: Work, steps: int, noise: Noise) -> None:
        """Begin at `started`; `steps` may shrink later, never below the step in progress."""
        self.started = started
        self.work = work
        self.steps = steps
        self.shown = 0
        """Steps whose tokens were emitted."""
        self.grown = 1
        """Steps whose new KV blocks were taken; the first one's are taken before it begins."""
        self._noise = noise
        self._sums: list[tuple[float, float]] = [(0.0, 0.0)]

    def span(self, steps: int) -> Span:
        """The first `steps` steps."""
        if self._noise.sigma <= 0.0:
            return Span(steps, float(steps), 0.5 * steps * (steps - 1))
        while len(self._sums) <= steps:
            position = len(self._sums) - 1
            noise, weighted = self._sums[-1]
            draw = self._noise.peek(position)
            self._sums.append((noise + draw, weighted + position * draw))
        return Span(steps, *self._sums[steps])

    def end_of(self, steps: int) -> Seconds:
        """When the first `steps` steps are over."""
        work = self.work
        if self._noise.sigma <= 0.0:
            return self.started + (work.first_s * steps + work.growth_s * (0.5 * steps * (steps - 1)))
        span = self.span(steps)
        return self.started + (work.first_s * span.noise + work.growth_s * span.noise_step)

    def done_by(self, now: Seconds) -> int:
        """Steps that are over at `now`."""
        if self.steps == 1 or self.end_of(1) > now:
            return 1 if self.end_of(1) <= now else 0
        return bisect_right(range(1, self.steps + 1), now, key=self.end_of)
