"""Join the shortest queue, in seconds: the drain time of each backend, by its own rates.

Counting requests or tokens calls a slow backend with two requests emptier than a fast one with
three. Here the work ahead and the new request are turned into seconds by the step model of each
backend. The two phases are chosen one after the other, without the price of the handoff: what
`predicted` does better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from policies import forecast
from policies.decision import placed, unplaced
from policies.filters import Eligible, Screen
from policies.parameters import number
from policies.standing import Standing
from router.core.messages import BackendRemoved
from router.core.ports import FleetView, ModelSource
from router.model import Candidate, Placement, Reject, Request, RoutePlan, Seconds, Wait

NAME: Final = "least_loaded"
Drains = Mapping[Standing, Seconds]


@dataclass(frozen=True, slots=True)
class LeastLoadedParameters:
    """Parameters of `least_loaded`."""

    max_prefill_queue: int = number(
        32, low=1, high=100_000, doc="Prefills in flight per backend; above, requests wait in the router."
    )
    candidates: int = number(4, low=1, high=16, doc="Backends kept in the decision record.")


class LeastLoaded:
    """Least drain time, per phase. Satisfies core.ports.Policy."""

    name = NAME

    def __init__(self, parameters: LeastLoadedParameters, models: ModelSource) -> None:
        self._keep = parameters.candidates
        self._screen = Screen(models, parameters.max_prefill_queue)

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Place prefill, then decode: on the same backend unless another drains sooner."""
        views = fleet.for_model(request.model)
        found = self._screen.pass_over(request, views, request.max_new_tokens)
        usable = found.pairable()
        prefill = {s: forecast.prefill_end_s(s, max(1, request.prompt_tokens)) for s in usable}
        producer = least(prefill)
        decode = {} if producer is None else self._decode_drains(request, producer, found.decode)
        consumer = least(decode, producer)
        if producer is None or consumer is None:
            return unplaced(
                self.name, request, found, self._screen.standings(views), _unusable(found, usable)
            )
        candidates = _ranked(producer, consumer, prefill, decode, self._keep)
        text = (
            f"{producer.id} drains its prefills in {prefill[producer]:.3g} s, "
            f"{consumer.id} its decodes in {decode[consumer]:.3g} s, this request included"
        )
        return RoutePlan(producer.id, consumer.id, placed(self.name, request, found, candidates, text))

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """The decode backend with the least drain time that takes over the KV at `prefill`."""
        producer, found = self._screen.after_prefill(request, prefill, fleet, request.max_new_tokens)
        if producer is None:
            return Wait("unknown_backend")
        decode = self._decode_drains(request, producer, found.decode)
        consumer = least(decode, producer)
        if consumer is None:
            standings = self._screen.standings(fleet.for_model(request.model))
            return unplaced(self.name, request, found, standings)
        candidates = _ranked(producer, consumer, {producer: 0.0}, decode, self._keep)
        text = f"{consumer.id} drains its decodes in {decode[consumer]:.3g} s, this request included"
        return Placement(consumer.id, placed(self.name, request, found, candidates, text))

    def observe(self, fact: Any, now: Seconds) -> None:
        """Forget backends that left; nothing else is learned."""
        if isinstance(fact, BackendRemoved):
            self._screen.forget(fact.backend)

    def _decode_drains(self, request: Request, producer: Standing, decode: Sequence[Standing]) -> Drains:
        output = max(1, request.max_new_tokens)
        context = request.prompt_tokens + output // 2
        return {
            s: forecast.decode_drain_s(s, context, output) + s.backlog_s
            for s in decode
            if s.spec.accepts_kv_of(producer.spec)
        }


def least(drains: Drains, preferred: Standing | None = None) -> Standing | None:
    """The backend that drains soonest; ties go to the preferred one, then by order of joining."""
    sooner = min(
        drains.items(), key=lambda each: (each[1], each[0] is not preferred, each[0].order), default=None
    )
    return None if sooner is None or sooner[1] == math.inf else sooner[0]


def _ranked(
    producer: Standing, consumer: Standing, prefill: Drains, decode: Drains, keep: int
) -> list[Candidate]:
    """The chosen pair, then the other decode backends for the same prefill. Scores are minus seconds."""
    others = sorted((s for s in decode if s is not consumer), key=lambda s: (decode[s], s.order))
    return [
        Candidate(
            producer.id,
            s.id,
            -(prefill[producer] + decode[s]),
            {"prefill_drain_s": prefill[producer], "decode_drain_s": decode[s]},
        )
        for s in (consumer, *others[: keep - 1])
    ]


def _unusable(found: Eligible, usable: Sequence[Standing]) -> list[tuple[Standing, str]]:
    if not found.prefill or not found.decode:
        return []
    return [(s, "prediction" if s in usable else "kv_layout") for s in found.prefill]
