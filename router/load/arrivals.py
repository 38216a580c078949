"""When requests are sent, and how long they are: schedules for the open loop.

Every function gives arrivals in order of time, lazily, from values and a seeded generator. Nothing here
waits: the open loop does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from random import Random

from router.model import Seconds
from router.sim.workload import Arrival


def poisson_times(rate: float, duration_s: Seconds, rng: Random) -> Iterator[Seconds]:
    """Times of a Poisson process of `rate` per second, from 0 to duration_s."""
    at_s = rng.expovariate(rate)
    while at_s < duration_s:
        yield at_s
        at_s += rng.expovariate(rate)


def poisson(
    rate: float,
    duration_s: Seconds,
    rng: Random,
    *,
    prompt_tokens: int,
    output_tokens: int,
    workload_class: str = "",
) -> Iterator[Arrival]:
    """Requests of one size at random times."""
    for at_s in poisson_times(rate, duration_s, rng):
        yield Arrival(at_s, prompt_tokens, output_tokens, workload_class=workload_class)


def at_rate(trace: Sequence[Arrival], rate: float, duration_s: Seconds, rng: Random) -> Iterator[Arrival]:
    """The requests of a trace in their order, over and over, at Poisson times instead of their own."""
    for at_s, arrival in zip(poisson_times(rate, duration_s, rng), itertools.cycle(trace), strict=False):
        yield _moved(arrival, at_s)


def replay(trace: Sequence[Arrival], speed: float, duration_s: Seconds | None = None) -> Iterator[Arrival]:
    """A trace at its own times divided by `speed`. With duration_s, a shorter trace starts over.

    Between two passes lies the mean distance of the trace's arrivals, so that the rate stays the same.
    """
    end = math.inf if duration_s is None else duration_s
    period = _span(trace) / speed
    for start in itertools.count() if duration_s is not None else iter((0,)):
        for arrival in trace:
            at_s = start * period + arrival.at_s / speed
            if at_s >= end:
                return
            yield _moved(arrival, at_s)


def _span(trace: Sequence[Arrival]) -> Seconds:
    """From the first arrival to the first of the next pass; at least 1 ms, so that passes end."""
    distances = max(len(trace) - 1, 1)
    return max(trace[-1].at_s * (1 + 1 / distances), 1e-3)


def _moved(arrival: Arrival, at_s: Seconds) -> Arrival:
    return Arrival(
        at_s,
        arrival.prompt_tokens,
        arrival.output_tokens,
        arrival.prefix_hashes,
        arrival.workload_class,
    )


def limited(arrivals: Iterable[Arrival], requests: int | None) -> Iterator[Arrival]:
    """At most so many requests; None means all."""
    return itertools.islice(arrivals, requests)
