"""A policy without surprises, and ones that hold, fail, stall or lie."""

from __future__ import annotations

import time
from typing import Any

from router.core.ports import FleetView
from router.model import BackendState, Decision, Phase, Placement, Reject, Request, RoutePlan, Seconds, Wait


class ByName:
    """The first worker with a free slot for each phase, by name: a test knows where its request goes."""

    name = "by_name"

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Both phases, or wait."""
        prefill, decode = (
            self._first(Phase.PREFILL, request, fleet),
            self._first(Phase.DECODE, request, fleet),
        )
        if prefill is None or decode is None:
            return Wait("slots_full")
        return RoutePlan(prefill, decode, Decision(self.name))

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """A decode place whose worker was lost."""
        decode = self._first(Phase.DECODE, request, fleet)
        return Wait("slots_full") if decode is None else Placement(decode, Decision(self.name))

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learn nothing."""

    def _first(self, phase: Phase, request: Request, fleet: FleetView) -> str | None:
        free = [
            view.spec.id
            for view in fleet.for_model(request.model)
            if view.state is BackendState.READY
            and phase in view.spec.phases
            and view.in_flight.prefills + view.in_flight.decodes < view.spec.max_num_seqs
        ]
        return min(free, default=None)


class LateBinding:
    """Prefill on p1; decode on d1, but not before `open` is set."""

    name = "late"

    def __init__(self) -> None:
        self.open = False

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Leave decode open."""
        return RoutePlan("p1", None, Decision(self.name))

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """Wait, or d1."""
        return Placement("d1", Decision(self.name)) if self.open else Wait("held")

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learn nothing."""


class BadPolicy(LateBinding):
    """Does what `fault` says in every decision."""

    name = "bad"

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.asked = 0

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Raise, sleep, or name what is not there."""
        self.asked += 1
        match self.fault:
            case "raised":
                raise ZeroDivisionError("a bug in a policy")
            case "slow":
                time.sleep(0.12)  # sleeping costs no CPU, so the stopwatch has to look at the wall
                return RoutePlan("p1", "d1", Decision(self.name))
            case "unknown_backend":
                return RoutePlan("p1", "no-such-backend", Decision(self.name))
            case "wrong_phase":
                return RoutePlan("d1", "p1", Decision(self.name))
            case _:
                return "nonsense"  # type: ignore[return-value]
