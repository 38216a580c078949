"""A workload without a fleet: the requests as they come when answers take as long as objectives allow.

Closed loops need an answer before the next request. Here an answer takes its TTFT and TPOT objectives, so
that the demand is what a fleet that just holds the objectives would see. A class that is a job (a closed loop
without an objective but its deadline) gets its answers at once: what counts is that all are there in time.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from router.model import Request, Seconds
from router.plan.tasks import Timed, timed
from router.sim.classes import AtOnce, InFlight, Workload, WorkloadClass
from router.sim.traffic import Traffic

SAMPLE: Final = 3000
"""Requests from which a demand is estimated."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a workload asks for."""

    tasks: tuple[Timed, ...]
    arrivals_s: Seconds
    """From the first to the last of them."""
    rates: Mapping[str, float]
    """Requests per second, by class."""
    jobs: Mapping[str, Seconds]
    """Classes that are jobs, and the time in which all their requests must end."""


def play(workload: Workload, seed: int, rate_scale: float = 1.0, sample: int = SAMPLE) -> Asked:
    """A sample of the workload's requests, and the rates of its classes."""
    jobs = {one.name: one.deadline_s for one in workload.classes if is_job(one)}
    most = sample if workload.requests is None else min(sample, workload.requests)
    until = None if math.isinf(workload.duration_s) else workload.duration_s
    traffic = Traffic(workload, seed, rate_scale=rate_scale, requests=most, duration_s=until)
    arrivals, lengths = _arrivals(traffic)
    tasks = tuple(timed(arrivals, lambda request: lengths[request.id]))
    return Asked(tasks, _span(tasks), _rates(tasks, jobs, workload, len(tasks)), jobs)


def is_job(kind: WorkloadClass) -> bool:
    """Whether only the end of the last request counts."""
    free = kind.slo.ttft_s is None and kind.slo.tpot_s is None
    return free and isinstance(kind.arrivals, InFlight | AtOnce)


def _arrivals(traffic: Traffic) -> tuple[list[tuple[Seconds, Request]], dict[str, int]]:
    arrivals: list[tuple[Seconds, Request]] = []
    lengths: dict[str, int] = {}
    ends: list[tuple[Seconds, str]] = []
    while True:
        next_at = traffic.next_at()
        if ends and (next_at is None or ends[0][0] <= next_at):
            now, name = heapq.heappop(ends)
            traffic.ended(name, now, True)
        elif next_at is not None:
            request = traffic.take()
            lengths[request.id] = traffic.oracle(request)
            arrivals.append((next_at, request))
            heapq.heappush(ends, (next_at + _answer_s(request, lengths[request.id]), request.id))
        else:
            return arrivals, lengths


def _answer_s(request: Request, output_tokens: int) -> Seconds:
    slo = request.slo
    return (slo.ttft_s or 0.0) + (slo.tpot_s or 0.0) * (output_tokens - 1)


def _span(tasks: Sequence[Timed]) -> Seconds:
    return max((one.at_s for one in tasks), default=0.0)


def _rates(
    tasks: Sequence[Timed], jobs: Mapping[str, Seconds], workload: Workload, sampled: int
) -> dict[str, float]:
    counts: dict[str, int] = {}
    for one in tasks:
        counts[one.task.workload_class] = counts.get(one.task.workload_class, 0) + 1
    span_s = max(_span([one for one in tasks if one.task.workload_class not in jobs]), 1.0)
    whole = max(sampled, workload.requests or 0)
    return {
        name: count * (whole / sampled / jobs[name] if name in jobs else 1.0 / span_s)
        for name, count in counts.items()
    }
