"""Delays between the router and its workers: fixed, or drawn from what a recording shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from router.model import Seconds

QUANTILES: Final = 100
"""Steps of a measured distribution that are kept."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A measured distribution of delays: quantiles at even distances, ascending."""

    quantiles: tuple[Seconds, ...]

    def draw(self, rng: Random) -> Seconds:
        """One delay, linear between the quantiles."""
        place = rng.random() * (len(self.quantiles) - 1)
        below = int(place)
        low, high = self.quantiles[below], self.quantiles[min(below + 1, len(self.quantiles) - 1)]
        return low + (high - low) * (place - below)


def spread_of(delays: Sequence[Seconds], *, less: Seconds = 0.0) -> Spread | None:
    """The distribution of delays after `less` is taken off each, never below 0; None without delays."""
    ordered = sorted(max(0.0, delay - less) for delay in delays)
    if not ordered:
        return None
    last = len(ordered) - 1
    return Spread(tuple(ordered[round(i * last / QUANTILES)] for i in range(QUANTILES + 1)))


def beyond(whole: Spread, part: Spread) -> Spread:
    """What comes on top of `part` so that the sum has the mean of `whole`: the difference, quantile by
    quantile (an assumption on its shape), never below 0."""
    pairs = zip(whole.quantiles, part.quantiles, strict=True)
    return Spread(tuple(sorted(max(0.0, all_of_it - some) for all_of_it, some in pairs)))


@dataclass(frozen=True, slots=True)
class Network:
    """Delays and cadences. The defaults are those of a mock fleet on loopback."""

    one_way_s: Seconds = 0.0005
    report_every_s: Seconds = 0.05
    """A working worker reports its load this often."""
    heartbeat_s: Seconds = 0.2
    """An idle one this often."""
    kv_events: bool = False
    """Workers say with each report what changed in their prefix caches, as engines with KV events do."""
    up: Spread | None = None
    """On top of one_way_s, for messages to the router; those about one request keep their order."""
    pull: Spread | None = None
    """Before a KV transfer begins: the consumer's call to the producer."""

    @property
    def typical_trip_s(self) -> Seconds:
        """Median of a command's way to a worker and a message's way back."""
        varies = 0.0 if self.up is None else self.up.quantiles[len(self.up.quantiles) // 2]
        return 2.0 * self.one_way_s + varies
