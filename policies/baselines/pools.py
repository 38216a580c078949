"""Which backends a baseline may choose from, and how a fleet divides into phase pools.

Unlike policies/filters.py it leaves full backends in: the originals send the request all the same, and the
engine queues it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from policies import forecast
from policies.baselines.rule import Stage
from policies.filters import Eligible, Screen, could
from policies.standing import Standing
from router.core.ports import FleetView, ModelSource
from router.model import Phase, Request

NO_LIMIT: Final = 1 << 30
SPEED_PROBE_TOKENS: Final = 1024
"""Prompt by which prefill speeds are compared (assumption)."""


def new_screen(models: ModelSource | None = None) -> Screen:
    """A screen that bars nobody for a full queue. Give models only to rules whose original has some."""
    return Screen(models, NO_LIMIT)


def eligible(screen: Screen, request: Request, fleet: FleetView) -> Eligible:
    """Backends that are ready and could serve a phase of the request if they were idle."""
    standings = screen.standings(fleet.for_model(request.model))
    found = Eligible(request.max_new_tokens, len(standings))
    for s in standings:
        takes = [not s.barred and could(s, request, phase) for phase in (Phase.PREFILL, Phase.DECODE)]
        if takes[0]:
            found.prefill.append(s)
        if takes[1]:
            found.decode.append(s)
        if not any(takes):
            found.left_out.append(s)
    return found


def stage_of(producers: Sequence[Standing]) -> Stage:
    """Whether the first choice is that of one worker for both phases, or of a prefill worker."""
    return Stage.WHOLE if all(both(s) for s in producers) else Stage.PREFILL


def takers(producer: Standing, decode: Sequence[Standing]) -> list[Standing]:
    """Where decode may go: a worker of both phases keeps it, or gives it to the pool that only decodes.

    The originals know no such fleet (assumption): in one where all workers offer both phases nothing is
    split, in one of two pools everything is.
    """
    accepting = [s for s in decode if s.spec.accepts_kv_of(producer.spec)]
    if producer not in accepting:
        return accepting
    return [producer, *(s for s in accepting if Phase.PREFILL not in s.spec.phases)]


def both(s: Standing) -> bool:
    """Whether a backend offers both phases."""
    return len(s.spec.phases) == len(Phase)


@dataclass(frozen=True, slots=True)
class Pools:
    """A static division of the fleet, as an operator makes it."""

    prompt: list[Standing]
    token: list[Standing]
    prefill: list[Standing]
    """All that could prefill, whatever their pool."""
    decode: list[Standing]


def divide(found: Eligible, prompt_share: float) -> Pools:
    """Backends of one phase go to its pool; of those that offer both, the faster in prefill go to prompts.

    That is Splitwise's heterogeneous provisioning (fast compute for prompts, the rest for tokens). Each pool
    gets at least one backend while there are two; a backend that is alone is in both.
    """
    prompt = [s for s in found.prefill if not both(s) or s not in found.decode]
    token = [s for s in found.decode if not both(s) or s not in found.prefill]
    flexible = sorted((s for s in found.prefill if s in found.decode and both(s)), key=_prefill_s)
    count = round(prompt_share * len(flexible))
    if flexible and not prompt:
        count = max(1, count)
    if flexible and not token:
        count = min(len(flexible) - 1, count)
    if not prompt and count <= 0:  # one backend, and nobody else prefills
        return Pools(flexible, token + flexible, found.prefill, found.decode)
    return Pools(prompt + flexible[:count], token + flexible[count:], found.prefill, found.decode)


def whole(found: Eligible) -> Pools:
    """No division: everybody is in both pools."""
    return Pools(found.prefill, found.decode, found.prefill, found.decode)


def _prefill_s(s: Standing) -> float:
    return forecast.alone_s(s, SPEED_PROBE_TOKENS) if s.latency is not None else 0.0
