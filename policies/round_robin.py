"""The baseline: every eligible backend in turn, for each phase apart. Blind to load and speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from policies.decision import placed, unplaced
from policies.filters import Screen
from policies.parameters import number
from policies.standing import Standing
from router.core.messages import BackendRemoved
from router.core.ports import FleetView
from router.model import Candidate, Phase, Placement, Reject, Request, RoutePlan, Seconds, Wait

NAME: Final = "round_robin"
MAX_TURNS: Final = 4096
"""Models whose turn is remembered."""


@dataclass(frozen=True, slots=True)
class RoundRobinParameters:
    """Parameters of `round_robin`."""

    max_prefill_queue: int = number(
        32, low=1, high=100_000, doc="Prefills in flight per backend; above, requests wait in the router."
    )


class RoundRobin:
    """Rotates over eligible prefill and over eligible decode backends. Satisfies core.ports.Policy."""

    name = NAME

    def __init__(self, parameters: RoundRobinParameters) -> None:
        self._screen = Screen(None, parameters.max_prefill_queue)
        self._turns: dict[tuple[str, Phase], int] = {}
        """Per model and phase, the position in order of joining that had the last turn."""

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Place both phases; the decode backend is the next that takes over the chosen one's KV."""
        views = fleet.for_model(request.model)
        found = self._screen.pass_over(request, views, request.max_new_tokens)
        usable = found.pairable()
        if not usable:
            extra = [(s, "kv_layout") for s in found.prefill if found.decode]
            return unplaced(self.name, request, found, self._screen.standings(views), extra)
        producer = self._next(request.model, Phase.PREFILL, usable)
        takers = [s for s in found.decode if s.spec.accepts_kv_of(producer.spec)]
        consumer = self._next(request.model, Phase.DECODE, takers)
        chosen = [Candidate(producer.id, consumer.id, 0.0)]
        text = f"{producer.id} -> {consumer.id}, whose turn it is"
        return RoutePlan(producer.id, consumer.id, placed(self.name, request, found, chosen, text))

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """The next decode backend that takes over the KV at `prefill`."""
        producer, found = self._screen.after_prefill(request, prefill, fleet, request.max_new_tokens)
        if producer is None:
            return Wait("unknown_backend")
        if not found.decode:
            standings = self._screen.standings(fleet.for_model(request.model))
            return unplaced(self.name, request, found, standings)
        consumer = self._next(request.model, Phase.DECODE, found.decode)
        chosen = [Candidate(prefill, consumer.id, 0.0)]
        return Placement(
            consumer.id, placed(self.name, request, found, chosen, f"decode on {consumer.id}, in turn")
        )

    def observe(self, fact: Any, now: Seconds) -> None:
        """Forget backends that left; nothing else is learned."""
        if isinstance(fact, BackendRemoved):
            self._screen.forget(fact.backend)

    def _next(self, model: str, phase: Phase, eligible: Sequence[Standing]) -> Standing:
        last = self._turns.get((model, phase), -1)
        chosen = next((s for s in eligible if s.order > last), eligible[0])
        if len(self._turns) >= MAX_TURNS:
            self._turns.clear()
        self._turns[model, phase] = chosen.order
        return chosen
