"""The daemon's core and the mock fleet's machines on a bare heap: no asyncio, no sleeping, no mocks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from random import Random

import pytest

from backends.catalogue import load_fleet
from backends.models.latency import StepModel
from policies.registry import build
from router.core.core import RouterCore
from router.model import IDLE, BackendSpec, Request
from router.sim.workload import bundled_trace, load_trace
from router.sim.world import World

MODEL = "llama-3.1-8b"


def models() -> Callable[[BackendSpec], StepModel]:
    """A ModelSource that builds each model once."""
    made: dict[str, StepModel] = {}
    return lambda spec: made.setdefault(spec.id, StepModel(spec.step))


def simulate(policy: str, requests: int = 200, speed: float = 1.0, kill: str | None = None) -> World:
    """The first requests of the Azure conversation trace on the mixed fleet."""
    source = models()
    core = RouterCore(
        build(policy, {}, source, Random(1)), build("round_robin", {}, source, Random(2)), source
    )
    oracle: dict[str, int] = {}
    world = World(core, load_fleet("mixed").backends, lambda request: oracle[request.id], seed=3)
    for i, arrival in enumerate(load_trace(bundled_trace("azure"))[:requests]):
        request = Request(f"r{i}", MODEL, arrival.prompt_tokens, 2048, arrival.at_s / speed + 300.0)
        oracle[request.id] = arrival.output_tokens
        world.arrive(arrival.at_s / speed, request)
    if kill is not None:
        world.at(1.0, lambda: kill_at_work(world, kill))
    world.run()
    return world


def kill_at_work(world: World, backend: str) -> None:
    """Kill a worker as soon as it prefills something, so that something can be lost."""
    if world.core.fleet[backend].in_flight.prefills:
        world.kill(backend)
    else:
        world.at(world.now + 0.001, lambda: kill_at_work(world, backend))


@pytest.mark.parametrize("policy", ["round_robin", "least_loaded", "scored", "predicted"])
def test_a_trace_runs_to_its_end(policy: str) -> None:
    """Every request is answered in full, and every book is closed."""
    world = simulate(policy)
    lengths = [arrival.output_tokens for arrival in load_trace(bundled_trace("azure"))[:200]]
    assert len(world.reports) == 200
    assert all(report.finish is not None for report in world.reports)
    assert sum(report.usage.output_tokens for report in world.reports) == sum(lengths)
    assert all(backend.in_flight == IDLE for backend in world.core.fleet)
    assert world.core.relay.kv.held == 0


def test_the_same_seed_gives_the_same_world() -> None:
    """Virtual time has no other source of chance than its seeds."""
    assert simulate("predicted").reports == simulate("predicted").reports


def test_phases_of_a_request_run_on_different_silicon() -> None:
    """The predicting policy splits part of the traffic."""
    split = [r for r in simulate("predicted").reports if len({use.kind for use in r.uses}) > 1]
    assert split


def test_a_worker_that_dies_loses_no_request_silently() -> None:
    """What ran on it ends with a typed reason or is answered elsewhere; the books are closed."""
    world = simulate("least_loaded", speed=20.0, kill="h100-0")
    assert len(world.reports) == 200
    failed = [report for report in world.reports if report.finish is None]
    assert all(report.error == "BACKEND_LOST" for report in failed)
    assert any(report.attempts > 1 and report.finish for report in world.reports)
    assert all(backend.in_flight == IDLE for backend in world.core.fleet)


def test_nothing_here_needs_a_loop() -> None:
    """The rooms of the core and of the models can be used where asyncio is never imported."""
    code = "import sys, router.core.core, backends.models.worker; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
