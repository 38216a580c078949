"""What a placement is chosen by, once objectives are held: times, dollars and joules, in one unit.

    cost = time x [(1 - w) x finish + w x time to first token] + dollars x their price + joules x theirs

in seconds; a price is in seconds of delay per dollar or per joule. A power cap acts by the price of a joule.
What a phase costs in dollars and joules is bounded: x becomes x m / (x + m). A device may need a thousand
times the joules of another, and without the bound no objective would be worth its power.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from policies import forecast
from policies.standing import Standing


@dataclass(frozen=True, slots=True)
class Aim:
    """Weights of one decision."""

    time: float = 1.0
    """Of seconds, at least 0."""
    ttft_weight: float = 0.0
    """w: share of the first token's time, in [0, 1]."""
    per_usd_s: float = 0.0
    per_joule_s: float = 0.0
    most_s: float = math.inf
    """m: bound of what dollars and joules of one phase count, above 0."""

    @property
    def after_first(self) -> float:
        """Weight of a second after the first token."""
        return self.time * (1.0 - self.ttft_weight)

    @property
    def to_first(self) -> float:
        """What a second before the first token weighs more than one after it."""
        return self.time * self.ttft_weight

    @property
    def free(self) -> bool:
        """Whether neither dollars nor joules count."""
        return not (self.per_usd_s or self.per_joule_s)

    def prefill(self, s: Standing, tokens: int) -> float:
        """Dollars and joules of a prefill, in seconds."""
        cost = self.per_usd_s * forecast.more_prefill_usd(s, tokens) if self.per_usd_s else 0.0
        if self.per_joule_s:
            cost += self.per_joule_s * forecast.prefill_energy_j(s, tokens)
        return self._bounded(cost)

    def decode(self, s: Standing, tokens: int, context_tokens: int) -> float:
        """The same of an answer."""
        cost = tokens * self.per_usd_s * forecast.more_token_usd(s, context_tokens) if self.per_usd_s else 0.0
        if self.per_joule_s:
            cost += tokens * self.per_joule_s * forecast.token_energy_j(s, context_tokens)
        return self._bounded(cost)

    def _bounded(self, cost: float) -> float:
        most_s = self.most_s
        return cost * most_s / (cost + most_s) if cost < math.inf > most_s else cost


SOONEST: Final = Aim()
"""The earliest finish."""
