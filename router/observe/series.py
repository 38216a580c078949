"""Metric families with their children kept in hand, so that a hot path does no label look-up in the library.

Knows nothing of requests or backends. `Bounded` keeps label values that come from outside finite.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from router.observe.catalogue import Family

OTHER: Final = "other"
NONE: Final = "none"

_LABEL_CHARACTERS: Final = 64


class Bounded:
    """Label values from outside, as they are up to a number of them, then "other".

    Without the bound a client could make a series per request and fill the memory of router and Prometheus.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: dict[str, str] = {}

    def __call__(self, value: str) -> str:
        """The label for a value; empty values are "none", long ones are cut."""
        known = self._seen.get(value)
        if known is not None:
            return known
        if not value:
            return NONE
        if len(self._seen) >= self._limit:
            return OTHER
        label = value[:_LABEL_CHARACTERS]
        self._seen[value] = label
        return label

    def forget(self, value: str) -> None:
        """Make room for another value."""
        self._seen.pop(value, None)


class Counters:
    """A counter family."""

    def __init__(self, registry: CollectorRegistry, family: Family) -> None:
        self.family = family
        self._metric = Counter(family.name, family.help, family.labels, registry=registry)
        self._children: dict[tuple[str, ...], Counter] = {}

    def add(self, amount: float, *labels: str) -> None:
        """Add to the series of these label values, in the family's order. 0 creates the series."""
        child = self._children.get(labels)
        if child is None:
            child = self._metric.labels(*labels) if labels else self._metric
            self._children[labels] = child
        child.inc(amount)

    def forget(self, position: int, value: str) -> None:
        """Remove every series whose label at this position has this value."""
        for labels in [key for key in self._children if key[position] == value]:
            del self._children[labels]
            self._metric.remove(*labels)


class Histograms:
    """A histogram family."""

    def __init__(self, registry: CollectorRegistry, family: Family) -> None:
        self.family = family
        self._metric = Histogram(
            family.name, family.help, family.labels, registry=registry, buckets=family.buckets
        )
        self._children: dict[tuple[str, ...], Histogram] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Count a value in the series of these label values, in the family's order."""
        child = self._children.get(labels)
        if child is None:
            child = self._metric.labels(*labels) if labels else self._metric
            self._children[labels] = child
        child.observe(value)

    def forget(self, position: int, value: str) -> None:
        """Remove every series whose label at this position has this value."""
        for labels in [key for key in self._children if key[position] == value]:
            del self._children[labels]
            self._metric.remove(*labels)


def gauge(registry: CollectorRegistry, family: Family) -> Gauge:
    """A gauge that its owner sets."""
    return Gauge(family.name, family.help, family.labels, registry=registry)
