"""Recordings without a daemon: the same core in virtual time, with a recorder as a tap."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from backends.models.tracking import TrackedModels
from policies.registry import build
from router.core.admission import Limits
from router.core.core import RouterCore
from router.observe.record import Recorder
from router.sim.classes import Renewal
from router.sim.network import Network, Spread
from router.sim.traffic import Traffic
from router.sim.world import World
from tests.sim.sets import a_class, fleet, workload

SEED = 7
LATE = Spread((0.001, 0.002, 0.003, 0.006))
"""Of the machine that is recorded."""


def record(
    path: Path,
    *,
    requests: int = 300,
    policy: str = "predicted",
    network: Network | None = None,
    happen: Callable[[World], None] = lambda world: None,
) -> Path:
    """What a daemon would have recorded: the same core, with a recorder as a tap."""
    models = TrackedModels()
    limits = Limits()
    core = RouterCore(
        build(policy, {}, models, Random(SEED)),
        build("least_loaded", {}, models, Random(SEED)),
        models,
        limits,
    )
    meta = {
        "policy": json.dumps({"name": policy, "params": {}}),
        "fallback": "least_loaded",
        "seed": str(SEED),
        "admission": json.dumps(dataclasses.asdict(limits)),
    }
    recorder = Recorder(path, meta=meta)
    traffic = Traffic(workload(a_class(arrivals=Renewal(20.0)), requests=requests), SEED)
    world = World(core, fleet().backends, traffic.oracle, 99, network, [recorder])
    world.feed(traffic)
    happen(world)
    world.run()
    assert recorder.close()
    return path
