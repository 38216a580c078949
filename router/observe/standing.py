"""Gauges that are read off the state of the fleet when somebody scrapes.

Nothing is set on the hot path, and a departed backend leaves no series behind because none is kept.
A scrape may come from another thread: every dict is copied before it is walked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from router.core.ports import LearningModels
from router.model import BackendState, Phase, Priority
from router.observe import catalogue
from router.observe.fleet import BackendRecord, Fleet
from router.observe.progress import Progress, Stage


class Standing(Collector):
    """The collector of catalogue.STANDING."""

    def __init__(self, fleet: Fleet, progress: Progress, learning: LearningModels | None = None) -> None:
        self._fleet = fleet
        self._progress = progress
        self._learning = learning

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The families without samples: the registry checks names before there is a fleet."""
        return (_family(family) for family in catalogue.STANDING)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All gauges, as of this moment."""
        backends = list(self._fleet.backends.items())
        yield _kv_tokens(backends)
        yield _slots(backends)
        yield _waiting(backends)
        yield self._in_flight(backends)
        yield _states(backends)
        yield _phase_backends(backends)
        yield self._in_progress()
        yield self._queue_depth()
        yield self._model_drift(backends)
        yield self._model_fit(backends)

    def _in_flight(self, backends: list[tuple[str, BackendRecord]]) -> GaugeMetricFamily:
        gauge = _family(catalogue.IN_FLIGHT)
        for backend, record in backends:
            for phase in Phase:
                count = self._progress.in_flight.get((backend, phase), 0)
                gauge.add_metric([backend, record.spec.kind, phase], count)
        return gauge

    def _model_drift(self, backends: list[tuple[str, BackendRecord]]) -> GaugeMetricFamily:
        gauge, learning = _family(catalogue.MODEL_DRIFT), self._learning
        if learning is not None:
            for backend, record in backends:
                for phase, ratio in learning.drift(record.spec).items():
                    gauge.add_metric([backend, record.spec.kind, phase], ratio)
        return gauge

    def _model_fit(self, backends: list[tuple[str, BackendRecord]]) -> GaugeMetricFamily:
        gauge, learning = _family(catalogue.MODEL_FIT), self._learning
        if learning is not None:
            for backend, record in backends:
                for work, ratio in learning.fit(backend).items():
                    gauge.add_metric([backend, record.spec.kind, work], ratio)
        return gauge

    def _in_progress(self) -> GaugeMetricFamily:
        gauge = _family(catalogue.IN_PROGRESS)
        for stage in Stage:
            gauge.add_metric([stage], self._progress.stages.get(stage, 0))
        return gauge

    def _queue_depth(self) -> GaugeMetricFamily:
        gauge = _family(catalogue.QUEUE_DEPTH)
        for priority in Priority:
            gauge.add_metric([priority.name.lower()], self._progress.queued.get(priority, 0))
        return gauge


def _family(family: catalogue.Family) -> GaugeMetricFamily:
    return GaugeMetricFamily(family.name, family.help, labels=family.labels)


def _kv_tokens(backends: list[tuple[str, BackendRecord]]) -> GaugeMetricFamily:
    gauge = _family(catalogue.KV_TOKENS)
    for backend, record in backends:
        used = record.snapshot.kv_used_tokens if record.snapshot else 0
        gauge.add_metric([backend, record.spec.kind, "used"], used)
        gauge.add_metric([backend, record.spec.kind, "capacity"], record.spec.kv_capacity_tokens)
    return gauge


def _slots(backends: list[tuple[str, BackendRecord]]) -> GaugeMetricFamily:
    gauge = _family(catalogue.SLOTS)
    for backend, record in backends:
        used = record.snapshot.running if record.snapshot else 0
        gauge.add_metric([backend, record.spec.kind, "used"], used)
        gauge.add_metric([backend, record.spec.kind, "capacity"], record.spec.max_num_seqs)
    return gauge


def _waiting(backends: list[tuple[str, BackendRecord]]) -> GaugeMetricFamily:
    gauge = _family(catalogue.WAITING)
    for backend, record in backends:
        waiting = record.snapshot.waiting if record.snapshot else 0
        gauge.add_metric([backend, record.spec.kind], waiting)
    return gauge


def _states(backends: list[tuple[str, BackendRecord]]) -> GaugeMetricFamily:
    gauge = _family(catalogue.STATE)
    for backend, record in backends:
        for state in BackendState:
            gauge.add_metric([backend, record.spec.kind, state], float(record.state is state))
    return gauge


def _phase_backends(backends: list[tuple[str, BackendRecord]]) -> GaugeMetricFamily:
    """Zeros included: an alert on "no backend can decode" must not depend on an absent series."""
    counts = Counter((phase, record.state) for _, record in backends for phase in record.spec.phases)
    gauge = _family(catalogue.PHASE_BACKENDS)
    for phase in Phase:
        for state in BackendState:
            gauge.add_metric([phase, state], counts[phase, state])
    return gauge
