"""Tells models that learn what the core sees of backends. For models that do not learn it does nothing.

Facts name requests; what a phase took is a lesson about a backend. Only the core knows which backend a live
request is at, and it must be asked before the fact moves the request on.
"""

from __future__ import annotations

from router.core.fleet import Fleet
from router.core.flight import Flight, Stage
from router.core.messages import (
    BackendJoined,
    BackendLost,
    BackendRemoved,
    BackendReported,
    DecodeDone,
    Fact,
    PrefillDone,
)
from router.core.ports import LearningModels, ModelSource
from router.core.relay import Relay
from router.model import Phase, PhaseCost, PhaseSample, Seconds


class Lessons:
    """Feeds one source of models."""

    def __init__(self, models: ModelSource, fleet: Fleet, relay: Relay) -> None:
        self._pupil = models if isinstance(models, LearningModels) else None
        self._fleet = fleet
        self._relay = relay
        self.bounds: ModelSource = models if self._pupil is None else self._pupil.bound
        """Models by which nothing is refused that could be done in time."""

    def take(self, fact: Fact, now: Seconds) -> None:
        """Pass on what a fact teaches. Comes before the fact is handled."""
        if self._pupil is None:
            return
        match fact:
            case BackendReported() | BackendJoined() | BackendLost() | BackendRemoved():
                self._pupil.observe(fact, now)
            case PrefillDone() | DecodeDone():
                if (sample := self._sample(fact, now)) is not None:
                    self._pupil.phase_ended(sample, now)
            case _:
                pass

    def _sample(self, fact: PrefillDone | DecodeDone, now: Seconds) -> PhaseSample | None:
        flight = self._relay.current(fact.request_id, fact.epoch)
        if flight is None:
            return None
        if isinstance(fact, PrefillDone):
            return self._prefill(flight, fact, now) if flight.stage is Stage.PREFILL else None
        return self._decode(flight, fact, now)

    def _prefill(self, flight: Flight, fact: PrefillDone, now: Seconds) -> PhaseSample | None:
        producer = self._fleet.find(flight.prefill)
        if fact.kv is not None and producer is not None and producer.spec.connector.concurrent_handoff:
            return None  # the handle came before the KV: this says nothing of how long a prefill takes
        return PhaseSample(
            backend=flight.prefill,
            phase=Phase.PREFILL,
            cost=fact.cost,
            prompt_tokens=flight.request.prompt_tokens,
            cached_tokens=fact.cached_tokens,
            lasted_s=_since(flight.timeline.dispatched, fact.cost, now),
            beside=max(0, self._decodes(flight.prefill) - (flight.decode == flight.prefill)),
        )

    def _decode(self, flight: Flight, fact: DecodeDone, now: Seconds) -> PhaseSample | None:
        working = flight.working_at()
        if working is None or working[0] is not Phase.DECODE:
            return None
        backend = working[1]
        return PhaseSample(
            backend=backend,
            phase=Phase.DECODE,
            cost=fact.cost,
            prompt_tokens=flight.request.prompt_tokens,
            output_tokens=max(0, fact.output_tokens - self._had_first_token(flight, backend)),
            lasted_s=_since(flight.timeline.bound, fact.cost, now),
            beside=max(0, self._decodes(backend) - 1),
        )

    def _had_first_token(self, flight: Flight, backend: str) -> bool:
        """Whether prefill gave the first token, so that decode did not compute it."""
        producer = self._fleet.find(flight.prefill)
        early = producer is not None and producer.spec.connector.first_token_from_prefill
        return backend == flight.prefill or early

    def _decodes(self, backend: str) -> int:
        known = self._fleet.find(backend)
        return 0 if known is None else known.in_flight.decodes


def _since(sent: Seconds | None, cost: PhaseCost, now: Seconds) -> Seconds:
    """Time since a command was sent, without the wait that its worker reported."""
    return 0.0 if sent is None else max(0.0, now - sent - max(0.0, cost.queued_s))
