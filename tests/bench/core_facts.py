"""CPU time per fact of the core, with a policy that costs next to nothing, for fleets of several sizes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from router.core.core import RouterCore
from router.core.messages import (
    BackendJoined,
    DecodeDone,
    Fact,
    FirstToken,
    KVMoved,
    PrefillDone,
    RequestArrived,
)
from router.core.ports import FleetView
from router.model import (
    Decision,
    FinishReason,
    KVHandle,
    PhaseCost,
    Request,
    RoutePlan,
    Seconds,
)
from tests.core.fakes import MODEL, FunctionPolicy, flat_models, spec

DECISION = Decision("fixed")
COST = PhaseCost(0.001, 0.01, 1.0)


def facts_of(request_id: str, gpu: str, now: Seconds) -> Iterator[Fact]:
    """The five facts of a request that is split and goes well."""
    yield RequestArrived(Request(request_id, MODEL, 1000, 200, now + 300.0))
    kv = KVHandle(gpu, "boot", request_id, 1, "", 1000, 7, now + 30.0)
    yield PrefillDone(request_id, 1, COST, kv=kv)
    yield KVMoved(request_id, 1, 1000)
    yield FirstToken(request_id, 1)
    yield DecodeDone(request_id, 1, COST, 200, FinishReason.LENGTH)


def core_with(backends: int) -> RouterCore:
    """A fleet of `backends`, and a policy that splits over two neighbours in turn."""
    turn = 0

    def plan(request: Request, fleet: FleetView, now: Seconds) -> RoutePlan:
        nonlocal turn
        fleet.for_model(request.model)  # what any policy asks first
        turn = (turn + 1) % (backends - 1)
        return RoutePlan(f"b{turn}", f"b{turn + 1}", DECISION)

    policy = FunctionPolicy(plan)
    core = RouterCore(policy, policy, flat_models)
    for i in range(backends):
        core.handle(BackendJoined(spec(f"b{i}"), "boot"), 0.0)
    return core


def microseconds_per_fact(backends: int, requests: int = 4000, live: int = 100) -> float:
    """CPU µs per fact, while about `live` requests are in flight."""
    core = core_with(backends)
    streams: list[Iterator[Fact]] = []
    facts: list[tuple[Seconds, Fact]] = []
    for i in range(requests):
        streams.append(facts_of(f"r{i}", f"b{(i + 1) % (backends - 1)}", i * 0.01))
        if len(streams) > live:
            facts.extend((i * 0.01, fact) for fact in streams.pop(0))
            continue
    start = time.process_time()
    for now, fact in facts:
        core.handle(fact, max(now, core._now))
        core.deadline()
    return (time.process_time() - start) / len(facts) * 1e6


def rows() -> list[tuple[str, str]]:
    """A line for each fleet size."""
    return [
        (f"core fact, {n} backends", f"{min(microseconds_per_fact(n) for _ in range(3)):.1f} µs CPU")
        for n in (10, 100, 1000)
    ]
