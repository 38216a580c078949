"""The best (prefill, decode) pairs of a fleet, exactly, without trying all pairs.

The cost of a pair is producer + handoff + consumer. A handoff depends on the link alone, and a link
only on a few properties of its two ends, so backends fall into classes between which the handoff
costs the same. Within a pair of classes a sorted prefix is enough: of the n best pairs none needs a
backend behind the n + 1 best of its class (one more, since a backend does not pair with itself).
For a fleet of n backends in c classes that is n log n + c^2 instead of n^2.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable, Sequence

from policies.standing import Standing

Row = tuple[float, int, Standing]
"""Cost, order of joining, backend. Orders differ, so comparing rows never compares backends."""
Found = tuple[float, bool, int, int, Standing, Standing]
"""Cost, is split, orders, prefill backend, decode backend: sorts by cost, then without a handoff first,
then by order of joining."""
Handoff = Callable[[Standing, Standing], float]


def shortlist(rows: list[Row], extra: Callable[[Standing], float], keep: int) -> list[Row]:
    """Of the backends of one class those that can be among the `keep` best pairs, in order of cost.

    `rows` have the base of each cost. `extra`, at least 0, is added where the base alone does not rule a
    backend out already.
    """
    rows.sort()
    found: list[Row] = []
    for base, order, s in rows:
        if len(found) > keep and (base, order) > found[-1][:2]:
            break
        insort(found, (base + extra(s), order, s))
        del found[keep + 1 :]
    return found


class Best:
    """The `keep` best pairs seen, in order."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self.pairs: list[Found] = []
        self.worst = math.inf
        """Cost beyond which a pair is of no interest."""

    def offer(self, cost: float, producer: Standing, consumer: Standing) -> None:
        """Take a pair if it is good enough."""
        if not cost <= self.worst or cost == math.inf:
            return
        split = producer is not consumer
        insort(self.pairs, (cost, split, producer.order, consumer.order, producer, consumer))
        if len(self.pairs) > self._keep:
            self.pairs.pop()
        if len(self.pairs) == self._keep:
            self.worst = self.pairs[-1][0]

    def search(
        self, producers: Sequence[list[Row]], consumers: Sequence[list[Row]], handoff: Handoff
    ) -> None:
        """Offer all pairs of shortlists that may be good enough. An infinite handoff is no handoff."""
        for sources in producers:
            for targets in consumers:
                ends = _two_ends(sources, targets)
                if ends is not None and sources[0][0] + targets[0][0] <= self.worst:
                    price = handoff(*ends)
                    if price < math.inf:
                        self._cross(sources, targets, price)

    def _cross(self, sources: list[Row], targets: list[Row], price: float) -> None:
        for cost, _, producer in sources:
            start = cost + price
            if start + targets[0][0] > self.worst:
                return
            for more, _, consumer in targets:
                if start + more > self.worst:
                    break
                if producer is not consumer:
                    self.offer(start + more, producer, consumer)


def _two_ends(sources: list[Row], targets: list[Row]) -> tuple[Standing, Standing] | None:
    """Two different backends, one of each class; None if both classes are the same lone backend."""
    pairs: Iterable[tuple[Row, Row]] = ((p, d) for p in sources[:2] for d in targets[:2])
    return next(((p[2], d[2]) for p, d in pairs if p[2] is not d[2]), None)
