"""The mock in real time over gRPC against the same engines in virtual time, at 60 requests a second."""

from __future__ import annotations

from random import Random

from router.load.arrivals import at_rate
from router.model import Seconds
from router.sim.workload import load_trace
from tests.parity.mock import run_workload

RATE = 60.0
DURATION_S: Seconds = 40.0


def rows() -> list[tuple[str, str]]:
    """Four H100s share the lengths of the conversation trace; within 3 % is what is wanted."""
    arrivals = list(at_rate(load_trace("azure"), RATE, DURATION_S, Random(7)))
    found = run_workload("h100-llama-3.1-8b", 4, arrivals)
    return [
        (
            f"mock against virtual time, {row.metric} {row.quantile}",
            f"{row.real_s * 1e3:9.2f} ms {row.virtual_s * 1e3:9.2f} ms {row.error:+7.2%}",
        )
        for row in found
    ]
