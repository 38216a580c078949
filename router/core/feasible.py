"""The least time any policy could need: a deadline below it is refused before it costs a backend anything.

A lower bound, not a prediction: an idle fleet, the fastest backend, every cacheable block cached, one output
token. (Bound B0: no schedule beats the isolated prefill of the fastest device.)
"""

from __future__ import annotations

from router.core.fleet import Fleet
from router.core.ports import ModelSource
from router.model import BackendSpec, Phase, Request, Seconds


def least_time_s(request: Request, fleet: Fleet, models: ModelSource) -> Seconds:
    """Lower bound on the time to the first token; 0 when no backend offers prefill for the model."""
    offers = [spec for spec in fleet.steps(request.model) if Phase.PREFILL in spec.phases]
    return min((_prefill_s(request, spec, models) for spec in offers), default=0.0)


def _prefill_s(request: Request, spec: BackendSpec, models: ModelSource) -> Seconds:
    cacheable = min(len(request.prefix_hashes) * spec.block_tokens, request.prompt_tokens - 1)
    return models(spec).prefill_s(request.prompt_tokens - cacheable, cacheable)
