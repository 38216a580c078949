"""Requests simulated per second of CPU, for fleets of several sizes and policies of several costs.

Each backend gets the same load whatever the size of the fleet: about two thirds of what it sustains, so that
it batches as it would in service. Load reports come at the live cadence. The long run, on the compiled copy
(deploy/compiled.py) or without PYTHONPATH on the source:

    PYTHONPATH=build/compiled .venv/bin/python -P tests/bench/simulation.py round_robin 1000000
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from backends.catalogue import load_fleet
from router.sim import world
from router.sim.classes import Renewal, TraceLengths, Workload, WorkloadClass
from router.sim.contest import contestant
from router.sim.memory import ease_collection
from router.sim.run import simulate
from router.sim.workload import load_trace
from router.sim.workload_file import DEFAULT_MODEL

RATE_PER_BACKEND = 12.0
"""Requests per second: an H100 with the 8B model sustains some 18 of the conversation trace."""
REQUESTS = 4000
POLICIES = ("round_robin", "least_loaded", "predicted")


def cost(policy: str, backends: int, requests: int) -> tuple[float, int]:
    """CPU seconds per request, and requests that ended well."""
    first = load_fleet("homogeneous").backends[0]
    specs = [replace(first, id=f"gpu-{i}") for i in range(backends)]
    rows = TraceLengths(load_trace("azure"), in_order=False)
    kind = WorkloadClass("chat", Renewal(RATE_PER_BACKEND * backends), rows, DEFAULT_MODEL)
    start = time.process_time()
    result = simulate(specs, Workload("bench", (kind,)), contestant(policy), 1, requests=requests)
    return (time.process_time() - start) / requests, result.ok


def rows() -> list[tuple[str, str]]:
    """A line for each policy and fleet size."""
    ease_collection()
    found: list[tuple[str, str]] = []
    for backends in (8, 64, 512):
        for policy in POLICIES:
            seconds, ok = cost(policy, backends, max(REQUESTS, 20 * backends))
            name = f"simulation, {backends} backends, {policy}"
            found.append((name, f"{1 / seconds:,.0f} requests/s, {seconds * 1e6:.0f} µs CPU each, {ok:,} ok"))
    return found


def million(policy: str, backends: int = 8, requests: int = 1_000_000) -> None:
    """The long run: wall-clock time and peak memory of one process on one core."""
    import resource

    ease_collection()
    start = time.monotonic()
    seconds, ok = cost(policy, backends, requests)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall = time.monotonic() - start
    each = f"{seconds * 1e6:.0f} µs CPU each"
    code = "compiled" if world.__file__.endswith(".so") else "source"
    print(f"{policy}, {code}: {requests:,} requests, {ok:,} ok, {wall:.0f} s, {each}, {peak:.0f} MiB")


if __name__ == "__main__":
    million(sys.argv[1], requests=int(sys.argv[2]))
