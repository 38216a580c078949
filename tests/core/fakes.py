"""Small stand-ins for what the core is injected with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from router.core.ports import FleetView
from router.model import (
    BackendKind,
    BackendSpec,
    Decision,
    Phase,
    Placement,
    Reject,
    Request,
    RoutePlan,
    Seconds,
    StepParameters,
    Wait,
)

BOTH = frozenset(Phase)
MODEL = "llama"


class FlatModel:
    """A millisecond per prompt token, ten per decode step."""

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> Seconds:
        """As LatencyModel."""
        return 0.001 * new_tokens

    def decode_step_s(self, sequences: int, context_tokens: int) -> Seconds:
        """As LatencyModel."""
        return 0.01

    def mixed_step_s(
        self, sequences: int, context_tokens: int, prefill_tokens: int, attention_pairs: float
    ) -> Seconds:
        """As LatencyModel."""
        return 0.01 + 0.001 * prefill_tokens


def flat_models(spec: BackendSpec) -> FlatModel:
    """A ModelSource."""
    return FlatModel()


def spec(name: str, phases: frozenset[Phase] = BOTH, **fields: Any) -> BackendSpec:
    """A backend for tests; $3.6 an hour makes a second of device time cost a tenth of a cent."""
    base: dict[str, Any] = {"kind": BackendKind.GPU, "device": "test", "models": (MODEL,)}
    base |= {"step": StepParameters(0.01), "usd_per_hour": 3.6, **fields}
    return BackendSpec(id=name, phases=phases, **base)


class FunctionPolicy:
    """A policy out of two functions."""

    def __init__(
        self,
        plan: Callable[[Request, FleetView, Seconds], RoutePlan | Wait | Reject],
        bind: Callable[[Request, str, FleetView, Seconds], Placement | Wait | Reject] | None = None,
        name: str = "function",
    ) -> None:
        self._plan = plan
        self._bind = bind
        self.name = name

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """As Policy."""
        return self._plan(request, fleet, now)

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """As Policy."""
        return self._bind(request, prefill, fleet, now) if self._bind else Wait("nowhere")

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learns nothing."""


def first_ready(request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait:
    """The first backend that offers both phases."""
    for view in fleet.for_model(request.model):
        if view.state == "ready" and view.spec.phases >= BOTH:
            return RoutePlan(view.spec.id, view.spec.id, Decision("first_ready"))
    return Wait("nobody is ready")
