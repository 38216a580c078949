"""How far off the predictions are: the spread of log(observed / predicted), learned per backend and phase.

Streaming mean and variance with exponential forgetting, started from a prior, so that the first surprise
changes little and memory stays bounded.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Final

from router.core.messages import DecodeDone, FirstToken, PhaseFailed, RequestCancelled
from router.model import Phase, Seconds

PRIOR: Final = {Phase.PREFILL: 0.15, Phase.DECODE: 0.08}
"""Standard deviations before anything is observed (assumption; the models learn their bias elsewhere)."""
LEAST: Final = 0.03
"""No prediction is trusted to less than 3 %."""
MOST: Final = 0.7
"""Nor is one ignored: beyond a factor of two the spread says that the model is wrong, not by how much."""
FAR: Final = 1.5
"""A logarithm further off than this is an accident (a retry, a stall), not a spread."""
MAX_BACKENDS: Final = 1 << 16
MAX_BETS: Final = 1 << 16


class Spreads:
    """Mean and deviation by backend and phase."""

    def __init__(self, memory: int) -> None:
        """`memory` is the number of observations after which an old one has lost two thirds of its weight."""
        self._memory = float(memory)
        self._known: dict[tuple[str, Phase], tuple[float, float, float]] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Spreads:
        other = Spreads(int(self._memory))
        other._known = dict(self._known)  # values are immutable
        return other

    def __call__(self, backend: str, phase: Phase) -> tuple[float, float]:
        """Mean and standard deviation of log(observed / predicted)."""
        known = self._known.get((backend, phase))
        return (0.0, PRIOR[phase]) if known is None else (known[0], known[2])

    def observed(self, backend: str, phase: Phase, predicted_s: Seconds, observed_s: Seconds) -> None:
        """Learn from one prediction. What is no time teaches nothing."""
        if not (0 < predicted_s < math.inf and 0 < observed_s < math.inf):
            return
        error = math.log(observed_s / predicted_s)
        if abs(error) > FAR:
            return
        if len(self._known) >= MAX_BACKENDS:
            self._known.clear()
        prior = PRIOR[phase]
        mean, square, _ = self._known.get((backend, phase), (0.0, prior * prior, prior))
        weight = 1.0 / self._memory
        mean += weight * (error - mean)
        square += weight * ((error - mean) ** 2 - square)
        deviation = min(MOST, max(LEAST, math.sqrt(square)))
        self._known[backend, phase] = (mean, square, deviation)

    def forget(self, backend: str) -> None:
        """Drop a backend that left."""
        for phase in Phase:
            self._known.pop((backend, phase), None)


@dataclass(frozen=True, slots=True)
class Bet:
    """What was predicted of one request, and where it went."""

    at: Seconds
    """When it was predicted."""
    prefill: str
    ttft_s: Seconds
    decode: str
    tpot_s: Seconds
    first_at: Seconds | None = None


class Bets:
    """Compares what was predicted with what came of it."""

    def __init__(self, spreads: Spreads) -> None:
        self._spreads = spreads
        self._open: dict[str, Bet] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Bets:
        return Bets(copy.deepcopy(self._spreads, memo))

    def place(self, request_id: str, bet: Bet) -> None:
        """Remember a prediction."""
        if len(self._open) >= MAX_BETS and request_id not in self._open:
            del self._open[next(iter(self._open))]
        self._open[request_id] = bet

    def observe(self, fact: Any, now: Seconds) -> None:
        """See how it came out."""
        match fact:
            case FirstToken():
                bet = self._open.get(fact.request_id)
                if bet is not None and bet.first_at is None:
                    self._spreads.observed(bet.prefill, Phase.PREFILL, bet.ttft_s, now - bet.at)
                    self._open[fact.request_id] = replace(bet, first_at=now)
            case DecodeDone():
                bet = self._open.pop(fact.request_id, None)
                if bet is not None and bet.first_at is not None and fact.output_tokens > 1:
                    observed_s = (now - bet.first_at) / (fact.output_tokens - 1)
                    self._spreads.observed(bet.decode, Phase.DECODE, bet.tpot_s, observed_s)
            case RequestCancelled() | PhaseFailed():
                self._open.pop(fact.request_id, None)
            case _:
                pass
