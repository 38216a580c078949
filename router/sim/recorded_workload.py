"""A recording as a workload: its requests, at their times, for simulations at other loads and fleets.

Unlike router/sim/whatif.py it compares nothing with what was measured, and can be scaled.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

from router.model import Request, Seconds
from router.sim.classes import BLOCK_TOKENS, TraceLengths, TraceTimes, Workload, WorkloadClass
from router.sim.recorded import Recorded, read_recording
from router.sim.workload import Arrival

_Row = tuple[Seconds, Request]


def is_recording(path: Path) -> bool:
    """Whether a file begins like one."""
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline(1 << 20))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and "recording" in first


def workload_of_recording(path: Path) -> Workload:
    """One class for each workload class and model of the recording. Raises RecordingError and ConfigError.

    Objectives, priority and time to the deadline are those of a class's first request (assumption).
    """
    recorded = read_recording(path)
    groups: dict[tuple[str, str], list[_Row]] = {}
    for at, request in recorded.arrivals:
        groups.setdefault((request.workload_class, request.model), []).append((at, request))
    models = {model for _, model in groups}
    classes = tuple(
        _class(f"{name or 'recorded'}{f' {model}' if len(models) > 1 else ''}", rows, recorded)
        for (name, model), rows in groups.items()
    )
    return Workload(path.name, classes)


def _class(name: str, rows: list[_Row], recorded: Recorded) -> WorkloadClass:
    lengths = recorded.lengths()
    arrivals = [
        Arrival(at, request.prompt_tokens, lengths[request.id], request.prefix_hashes) for at, request in rows
    ]
    at, first = rows[0]
    tenants = Counter(request.tenant for _, request in rows)
    return WorkloadClass(
        name,
        TraceTimes(),
        TraceLengths(arrivals, in_order=True, block_tokens=BLOCK_TOKENS),
        first.model,
        max(request.max_new_tokens for _, request in rows),
        first.slo,
        first.deadline - at if math.isfinite(first.deadline) else 3600.0,
        first.priority,
        tuple((tenant, float(count)) for tenant, count in sorted(tenants.items())),
    )
