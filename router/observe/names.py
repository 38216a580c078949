"""Label values: what may become one, and what they are when it may not.

Every label is finite: backends by the fleet, models by what backends serve, the rest by a count.
"""

from __future__ import annotations

from typing import Final

from router.model import PhaseUse
from router.observe.fleet import Fleet
from router.observe.series import NONE, OTHER, Bounded

WORKLOAD_CLASSES: Final = 32
POLICIES: Final = 32
FAULTS: Final = 64
MODELS: Final = 64


class Names:
    """The label values in use."""

    def __init__(self, fleet: Fleet, histogram_backends: int) -> None:
        self._fleet = fleet
        self._histogram_backends = histogram_backends
        self._own_histograms: set[str] = set()
        self._models: frozenset[str] = frozenset()
        self.workload_class = Bounded(WORKLOAD_CLASSES)
        self.policy = Bounded(POLICIES)
        self.fault = Bounded(FAULTS)

    def joined(self, backend: str) -> None:
        """A backend joined the fleet: it may have histograms of its own, and brings models."""
        if len(self._own_histograms) < self._histogram_backends:
            self._own_histograms.add(backend)
        self._learn_models()

    def removed(self, backend: str) -> None:
        """A backend left the fleet."""
        self._own_histograms.discard(backend)
        self._learn_models()

    def kind(self, backend: str) -> str:
        """The kind of a backend."""
        record = self._fleet.backends.get(backend)
        return record.spec.kind if record else NONE

    def model(self, model: str) -> str:
        """A model that some backend serves: a client cannot invent a label."""
        return model if model in self._models else OTHER

    def backend(self, use: PhaseUse) -> str:
        """The backend of a use, for counters. One that left meanwhile must not get its series back."""
        return use.backend if use.backend in self._fleet.backends else OTHER

    def place(self, use: PhaseUse | None) -> tuple[str, str]:
        """Kind and backend of a use, for histograms."""
        if use is None:
            return NONE, NONE
        return use.kind, use.backend if use.backend in self._own_histograms else OTHER

    def _learn_models(self) -> None:
        served = dict.fromkeys(m for record in self._fleet.backends.values() for m in record.spec.models)
        self._models = frozenset(list(served)[:MODELS])
