"""A stretch: consecutive engine steps of one unchanged batch, and when each of them ends. Pure.

A stretch is anchored at its start, and the end of step k follows from k alone: stepping through it and
jumping over it give the same times to the last bit. Without noise the end is a closed form; with noise it
is a sum of draws, which are kept by step number, so that looking ahead does not change what is drawn.

Noise is lognormal, with a mean of 1; GPUs may stall now and then on top. Tails come from scheduling, not from
here: kernels repeat within 1 %, TPU operations within 0.2 %.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from backends.models.metering import Span, Work
from router.model import PowerParameters, Seconds, StepParameters

LEAST_LOOKAHEAD = 4
"""Longest stretch under noise right after an interruption: where events are frequent, ends of steps that
are far off would be worked out in vain."""
LOOKAHEAD = 64
"""Longest stretch under noise: draws beyond it would mostly be made before they are needed."""
UNBOUNDED = 1 << 30
"""Longest stretch without noise; its end is a formula."""
STALL = (2.0, 3.0)
"""A step that stalls takes so many times as long, at least and at most; assumed from serving traces."""


class Noise:
    """A multiplicative factor per engine step, drawn in order of the steps."""

    __slots__ = ("_ahead", "_mean", "_reach", "_rng", "_sigma", "_stall", "silent")

    def __init__(self, step: StepParameters, rng: Random) -> None:
        self._sigma = step.noise_sigma
        self._mean = -0.5 * step.noise_sigma * step.noise_sigma
        self._stall = step.stall_probability
        self._rng = rng
        self._ahead: list[float] = []
        self._reach = LEAST_LOOKAHEAD
        self.silent = self._sigma <= 0.0 and self._stall <= 0.0
        """Whether every factor is 1."""

    @property
    def lookahead(self) -> int:
        """Longest stretch, in steps."""
        return UNBOUNDED if self.silent else self._reach

    def ahead(self, steps: int) -> list[float]:
        """The factors of the next steps, `steps` of them at least."""
        draws = self._ahead
        if (missing := steps - len(draws)) > 0:
            draws += self._draw(missing)
        return draws

    def consume(self, steps: int) -> None:
        """Forget the factors of steps that are over."""
        del self._ahead[:steps]
        self._reach = min(2 * self._reach, LOOKAHEAD)

    def interrupted(self) -> None:
        """Something came in the way of a stretch: the next ones are likely to be short."""
        self._reach = LEAST_LOOKAHEAD

    def _draw(self, steps: int) -> list[float]:
        if self._stall > 0.0:
            return [self._draw_with_stalls() for _ in range(steps)]
        exp, gauss, mean, sigma = math.exp, self._rng.gauss, self._mean, self._sigma
        return [exp(gauss(mean, sigma)) for _ in range(steps)] if sigma > 0.0 else [1.0] * steps

    def _draw_with_stalls(self) -> float:
        factor = math.exp(self._rng.gauss(self._mean, self._sigma)) if self._sigma > 0.0 else 1.0
        if self._rng.random() < self._stall:
            factor *= self._rng.uniform(*STALL)
        return factor


class Cap(NamedTuple):
    """What of the power model bears on a stretch, in watts."""

    idle_w: float
    cap_w: float

    @staticmethod
    def of(power: PowerParameters) -> Cap:
        """Of a backend."""
        return Cap(power.idle_w, power.cap_w)


class Stretch:
    """Step j (from 0) of it lasts (first_s + j x growth_s) x noise; neither growth is ever negative."""

    __slots__ = ("_cap", "_ends", "_noise", "grown", "shown", "started", "steps", "work")

    def __init__(self, started: Seconds, work: Work, steps: int, noise: Noise, cap: Cap) -> None:
        """Begin at `started`; `steps` may shrink later, never below the step in progress."""
        self.started = started
        self.work = work
        self.steps = steps
        self.shown = 0
        """Steps whose tokens were emitted."""
        self.grown = 1 if work.decodes else 0
        """Steps whose new KV blocks were taken; the first one's are taken before it begins."""
        self._noise = noise
        self._cap = cap
        self._ends: list[Seconds] = [started]

    def end_of(self, steps: int) -> Seconds:
        """When the first `steps` steps are over."""
        work = self.work
        if self._noise.silent:
            return self.started + (work.first_s * steps + work.growth_s * (0.5 * steps * (steps - 1)))
        ends = self._ends
        if steps >= len(ends):
            draws, end = self._noise.ahead(steps), ends[-1]
            for j in range(len(ends) - 1, steps):
                end += (work.first_s + j * work.growth_s) * draws[j]
                ends.append(end)
        return ends[steps]

    def done_by(self, now: Seconds) -> int:
        """Steps that are over at `now`."""
        if self.end_of(1) > now:
            return 0
        if self.steps == 1:
            return 1
        if self._noise.silent:
            return bisect_right(range(1, self.steps + 1), now, key=self.end_of)
        self.end_of(self.steps)
        return bisect_right(self._ends, now, 1, self.steps + 1) - 1

    def span(self, steps: int) -> Span:
        """The first `steps` steps."""
        idle_w, positions = self._cap.idle_w, 0.5 * steps * (steps - 1)
        work, cap_w = self.work, self._cap.cap_w
        draws = (1.0,) if self._noise.silent else self._noise.ahead(steps)[:steps]
        if self._noise.silent:
            noise, noise_step = float(steps), positions
        else:
            noise, noise_step = (draws[0], 0.0) if steps == 1 else _moments(draws)
        headroom_w, last = cap_w - idle_w, steps - 1
        if work.dynamic_j + work.dynamic_growth_j * last <= headroom_w * work.first_s * min(draws):
            return Span(steps, noise, noise_step, idle_w * noise, idle_w * noise_step, steps, positions)
        if work.dynamic_j > headroom_w * (work.first_s + work.growth_s * last) * max(draws):
            return Span(steps, noise, noise_step, cap_w * noise, cap_w * noise_step, 0, 0.0)
        span = Span(steps, noise, noise_step, idle_w * noise, idle_w * noise_step, steps, positions)
        return self._with_cap(span, self._capped(steps))

    def _with_cap(self, span: Span, over: range | list[int]) -> Span:
        """In the steps `over` the cap every second costs cap_w, whatever is moved and computed."""
        idle_w, extra_w = self._cap.idle_w, self._cap.cap_w - self._cap.idle_w
        if self._noise.silent:
            noise, noise_step = float(len(over)), float(_sum(over))
        else:
            draws = self._noise.ahead(span.steps)
            noise = math.fsum(draws[j] for j in over)
            noise_step = math.fsum(j * draws[j] for j in over)
        return Span(
            span.steps,
            span.noise,
            span.noise_step,
            idle_w * span.noise + extra_w * noise,
            idle_w * span.noise_step + extra_w * noise_step,
            span.steps - len(over),
            span.positions - _sum(over),
        )

    def _capped(self, steps: int) -> range | list[int]:
        """Steps that would draw more than the cap."""
        work, headroom_w = self.work, self._cap.cap_w - self._cap.idle_w
        if self._noise.silent:
            return _above_zero(
                work.dynamic_j - headroom_w * work.first_s,
                work.dynamic_growth_j - headroom_w * work.growth_s,
                steps,
            )
        draws = self._noise.ahead(steps)
        return [
            j
            for j in range(steps)
            if work.dynamic_j + j * work.dynamic_growth_j
            > headroom_w * draws[j] * (work.first_s + j * work.growth_s)
        ]


def _moments(draws: Sequence[float]) -> tuple[float, float]:
    """Sum of the draws, and of each times its position."""
    noise_step = 0.0
    for j, draw in enumerate(draws):
        noise_step += j * draw
    return sum(draws), noise_step


def _above_zero(start: float, slope: float, steps: int) -> range:
    """The j in [0, steps) with start + j slope > 0."""
    if slope == 0.0:
        return range(steps if start > 0.0 else 0)
    root = -start / slope
    if slope > 0.0:
        return range(min(steps, max(0, math.floor(root) + 1)), steps)
    return range(min(steps, max(0, math.ceil(root))))


def _sum(over: range | list[int]) -> float:
    """Sum of the positions; of a range in closed form."""
    if isinstance(over, range):
        return 0.5 * len(over) * (over.start + over.stop - 1) if over else 0.0
    return float(sum(over))
