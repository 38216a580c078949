"""Small fleets with round numbers, for hand-worked expectations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from backends.models.latency import StepModel
from policies.registry import build
from router.core.ports import LatencyModel, Policy
from router.model import (
    BackendKind,
    BackendSnapshot,
    BackendSpec,
    BackendState,
    BackendView,
    ConnectorFlags,
    InFlight,
    LinkParameters,
    Phase,
    Request,
    StepParameters,
)

MODEL = "m"
BOTH = frozenset({Phase.PREFILL, Phase.DECODE})
PREFILL = frozenset({Phase.PREFILL})
DECODE = frozenset({Phase.DECODE})


class Models:
    """One latency model per step parameters."""

    def __init__(self) -> None:
        self._known: dict[StepParameters, LatencyModel] = {}

    def __call__(self, spec: BackendSpec) -> LatencyModel:
        model = self._known.get(spec.step)
        if model is None:
            model = self._known[spec.step] = StepModel(spec.step)
        return model


class Views:
    """A fleet view over a list. A link is the producer's."""

    def __init__(self, views: Iterable[BackendView]) -> None:
        self.views = tuple(views)
        self._by_id = {view.spec.id: view for view in self.views}

    def for_model(self, model: str) -> Sequence[BackendView]:
        return tuple(view for view in self.views if model in view.spec.models)

    def get(self, backend: str) -> BackendView | None:
        return self._by_id.get(backend)

    def link(self, producer: str, consumer: str) -> LinkParameters:
        return self._by_id[producer].spec.link


def spec(
    name: str,
    phases: frozenset[Phase] = BOTH,
    *,
    step_ms: float = 10.0,
    prefill_us: float = 100.0,
    **more: Any,
) -> BackendSpec:
    """A backend whose decode step is `step_ms` whatever the batch, and whose prefill is linear."""
    parameters = StepParameters(base_s=step_ms / 1e3, per_prefill_token_s=prefill_us / 1e6)
    known: dict[str, Any] = {
        "id": name,
        "kind": BackendKind.GPU,
        "device": "test",
        "models": (MODEL,),
        "phases": phases,
        "step": parameters,
        "kv_bytes_per_token": 1000.0,
        "kv_layout": "L",
        "link": LinkParameters(latency_s=0.001, bandwidth_bytes_per_s=1e9),
        "connector": ConnectorFlags(first_token_from_prefill=True),
    }
    return BackendSpec(**{**known, **more})


def view(of: BackendSpec, state: BackendState = BackendState.READY, **load: int) -> BackendView:
    """A backend with a ledger, as in InFlight."""
    return BackendView(of, state, None, InFlight(**load))


def reported(of: BackendView, **load: Any) -> BackendView:
    """The same view with a snapshot."""
    return replace(of, snapshot=BackendSnapshot(observed_at=0.0, **load))


def request(prompt: int = 1000, output: int = 100, **more: Any) -> Request:
    """A request for the one model there is."""
    return Request("r", MODEL, prompt, output, **more)


def policy(name: str, seed: int = 1, **params: object) -> Policy:
    """A policy by its name, with step models and a seed."""
    return build(name, params, Models(), Random(seed))
