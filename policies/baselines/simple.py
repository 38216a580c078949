"""Random, power of two choices, least requests. Blind to prompts, caches and speed.

- random: uniform (Dynamo `random`, SMG `random`).
- power_of_two: two drawn, the one with fewer requests in flight taken (Mitzenmacher, "The power of two
  choices in randomized load balancing", IEEE TPDS 2001; Dynamo `power-of-two`; SMG's metric `requests`).
- least_requests: fewest requests in flight (Dynamo `least-loaded`); ties are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from policies.baselines.rule import Choice, Scene, active_requests, random_least
from policies.standing import Standing


class RandomRule:
    """Any candidate."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, scene: Scene, candidates: Sequence[Standing]) -> Choice:
        """Draw one."""
        return Choice(self._rng.randrange(len(candidates)), [0.0] * len(candidates))


class LeastRequestsRule:
    """The candidate with the fewest requests in flight, of all or of some drawn at random."""

    def __init__(self, rng: Random, drawn: int = 0) -> None:
        """`drawn` 2 is power of two choices; 0 looks at all."""
        self._rng = rng
        self._drawn = drawn

    def choose(self, scene: Scene, candidates: Sequence[Standing]) -> Choice:
        """Least of the drawn ones."""
        costs = [float(active_requests(s, scene.stage)) for s in candidates]
        drawn = list(range(len(candidates)))
        if 0 < self._drawn < len(candidates):
            drawn = sorted(self._rng.sample(drawn, self._drawn))
        return Choice(drawn[random_least([costs[i] for i in drawn], self._rng)], costs)
