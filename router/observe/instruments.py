"""All instruments of the catalogue, built into one registry. Holds no logic."""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry

from router.observe import catalogue
from router.observe.series import Counters, Histograms, gauge


class Instruments:
    """One attribute per family that is kept as a running sum."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # The library keeps this switch for the whole process. _created series double the output of counters
        # and nothing here reads them.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry
        self._families: list[Counters | Histograms] = []

        self.phase_duration = self._histograms(catalogue.PHASE_DURATION)
        self.ttft = self._histograms(catalogue.TTFT)
        self.tpot = self._histograms(catalogue.TPOT)
        self.e2e = self._histograms(catalogue.E2E)

        self.busy = self._counters(catalogue.BUSY)
        self.sub_phase_busy = self._counters(catalogue.SUB_PHASE_BUSY)
        self.loading = self._counters(catalogue.LOADING)
        self.backend_energy = self._counters(catalogue.BACKEND_ENERGY)
        self.preemptions = self._counters(catalogue.PREEMPTIONS)
        self.backend_tokens = self._counters(catalogue.BACKEND_TOKENS)
        self.stray_tokens = self._counters(catalogue.STRAY_TOKENS)

        self.arrivals = self._counters(catalogue.ARRIVALS)
        self.requests = self._counters(catalogue.REQUESTS)
        self.queue_wait = self._histograms(catalogue.QUEUE_WAIT)
        self.gave_way = self._counters(catalogue.GAVE_WAY)
        self.retries = self._counters(catalogue.RETRIES)
        self.sheds = self._counters(catalogue.SHEDS)
        self.cancels = self._counters(catalogue.CANCELS)
        self.tokens = self._counters(catalogue.TOKENS)
        self.request_tokens = self._histograms(catalogue.REQUEST_TOKENS)
        self.cost = self._counters(catalogue.COST)
        self.energy = self._counters(catalogue.ENERGY)
        self.slo = self._counters(catalogue.SLO)
        self.goodput = self._counters(catalogue.GOODPUT)

        self.decisions = self._counters(catalogue.DECISIONS)
        self.decision_seconds = self._histograms(catalogue.DECISION_SECONDS)
        self.policy_faults = self._counters(catalogue.POLICY_FAULTS)
        self.prediction = self._histograms(catalogue.PREDICTION)
        self.splits = self._counters(catalogue.SPLITS)
        self.handoff_bytes = self._counters(catalogue.HANDOFF_BYTES)
        self.handoff_transfer = self._histograms(catalogue.HANDOFF_TRANSFER)
        self.handoff_failures = self._counters(catalogue.HANDOFF_FAILURES)

        self.shadow_decisions = self._counters(catalogue.SHADOW_DECISIONS)
        self.shadow_seconds = self._histograms(catalogue.SHADOW_SECONDS)
        self.shadow_prediction = self._histograms(catalogue.SHADOW_PREDICTION)
        self.shadow_faults = self._counters(catalogue.SHADOW_FAULTS)
        self.shadow_skipped = self._counters(catalogue.SHADOW_SKIPPED)

        self.driver_lateness = self._histograms(catalogue.DRIVER_LATENESS)
        self.loop_lag = self._histograms(catalogue.LOOP_LAG)
        self.reloads = self._counters(catalogue.RELOADS)
        self.reload_success = gauge(registry, catalogue.RELOAD_SUCCESS)
        self.build_info = gauge(registry, catalogue.BUILD_INFO)

        self.price_problems = self._counters(catalogue.PRICE_PROBLEMS)
        self.price_solve = self._histograms(catalogue.PRICE_SOLVE)
        self.price_age = gauge(registry, catalogue.PRICE_AGE)

    def forget_backend(self, backend: str) -> None:
        """Remove every series that names a backend."""
        for family in self._families:
            if "backend" in family.family.labels:
                family.forget(family.family.labels.index("backend"), backend)

    def _counters(self, family: catalogue.Family) -> Counters:
        counters = Counters(self._registry, family)
        self._families.append(counters)
        return counters

    def _histograms(self, family: catalogue.Family) -> Histograms:
        histograms = Histograms(self._registry, family)
        self._families.append(histograms)
        return histograms
