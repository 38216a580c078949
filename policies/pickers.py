"""Pick one of several scored candidates. Higher scores are better; ties go to the first.

A picker gets scores in order of joining and an RNG, and gives an index. A score that is no number
counts as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

Picker = Callable[[Sequence[float], Random, float], int]
"""(scores, rng, temperature) -> index. There is at least one score."""


def best(scores: Sequence[float], rng: Random, temperature: float) -> int:
    """The highest score."""
    return max(range(len(scores)), key=lambda i: (_score(scores[i]), -i))


def power_of_two(scores: Sequence[float], rng: Random, temperature: float) -> int:
    """The better of two drawn at random: near the best, without the herd that runs to it on stale data."""
    if len(scores) == 1:
        return 0
    first, second = sorted(rng.sample(range(len(scores)), 2))
    return second if _score(scores[second]) > _score(scores[first]) else first


def softmax(scores: Sequence[float], rng: Random, temperature: float) -> int:
    """Drawn with weight exp(score / temperature); a low temperature is nearly the best."""
    top = max(_score(score) for score in scores)
    weights = [math.exp((_score(score) - top) / temperature) for score in scores]
    return rng.choices(range(len(scores)), weights)[0]


def _score(score: float) -> float:
    return score if math.isfinite(score) else 0.0


PICKERS: Final[dict[str, Picker]] = {"max": best, "power_of_two": power_of_two, "softmax": softmax}
