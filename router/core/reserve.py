"""Room kept for those whose turn it is, while they need more than comes free at a time.

Room comes free in pieces: each answer that ends gives back a slot and its KV. If whoever is small enough took
every piece, a large request would never see enough of them together, and a tenant with a thousand small
requests in line would have all the room, whatever its share. So each that is refused for want of room has one
backend to itself, which those whose turn is later are not shown: they may go anywhere else. On a single
backend this is first come, first served; in a large fleet a request that fits in few places holds up these
alone (backfilling: Mu'alem and Feitelson, 2001).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from router.core.fleet import Fleet
from router.model import IDLE, BackendState, BackendView, Phase, Priority, Request


@dataclass(frozen=True, slots=True)
class Reservation:
    """A backend that makes room for a request, and the class of the request."""

    priority: Priority
    backend: str


def reserve(request: Request, fleet: Fleet, taken: Collection[str]) -> Reservation | None:
    """Reserve the backend that is nearest to having room for the decode of a request; None if none could.

    `taken` are reserved already. An idle backend has all the room it can have: whoever waits beside it does
    not wait for that, and another may take it.
    """
    able = [view for view in fleet.for_model(request.model) if view.spec.id not in taken]
    able = [view for view in able if _could_have_room(view, request)]
    best = min(able, key=lambda view: _fill(view, request), default=None)
    return None if best is None else Reservation(request.priority, best.spec.id)


def _could_have_room(view: BackendView, request: Request) -> bool:
    spec, whole = view.spec, request.prompt_tokens + request.max_new_tokens
    if view.state is not BackendState.READY or view.in_flight == IDLE or Phase.DECODE not in spec.phases:
        return False
    return whole <= spec.kv_capacity_tokens and whole <= spec.max_context_tokens


def _fill(view: BackendView, request: Request) -> float:
    """How full the backend would be, of slots or of KV, whichever is scarcer; above 1 it has no room yet."""
    spec, load = view.spec, view.in_flight
    kv_tokens = load.kv_tokens + request.prompt_tokens + request.max_new_tokens
    return max((load.decodes + 1) / spec.max_num_seqs, kv_tokens / spec.kv_capacity_tokens)
