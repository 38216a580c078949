"""The mock keeps the time of its model: a short run over gRPC, loosely; `make bench` has the exact table."""

import itertools
from random import Random

import pytest

from router.load.arrivals import poisson
from tests.parity.mock import Call, compare, run_workload

LOOSE = 0.35
"""The machine that runs the tests may be busy with others."""


@pytest.mark.process
def test_real_time_follows_virtual_time() -> None:
    """Medians of every metric; a real run is never much faster than its model, however busy the machine."""
    arrivals = list(poisson(20.0, 3.0, Random(1), prompt_tokens=400, output_tokens=40))
    rows = {(row.metric, row.quantile): row for row in run_workload("h100-llama-3.1-8b", 2, arrivals)}
    for metric in ("TPOT", "E2E"):
        assert abs(rows[metric, "p50"].error) < LOOSE, rows[metric, "p50"]
    for row in rows.values():
        assert row.error > -LOOSE / 2, row
    assert len(arrivals) > 30


def test_percentiles_are_compared_like_with_like() -> None:
    """A run that is 10 % slower throughout is off by 10 % everywhere; a single token has no TPOT."""
    arrivals = poisson(5.0, 10.0, Random(1), prompt_tokens=4, output_tokens=11)
    calls = [
        Call("b", arrival, 1.0, 1.5 + 0.001 * i, 2.5 + 0.003 * i)
        for i, arrival in zip(range(20), arrivals, strict=False)
    ]
    slower = [
        Call("b", call.arrival, 1.0, 1.0 + 1.1 * (call.first - 1.0), 1.0 + 1.1 * (call.last - 1.0))
        for call in calls
    ]
    rows = compare(slower, calls)
    assert len(rows) == len(set(itertools.product(("TTFT", "TPOT", "E2E"), ("p50", "p90", "p99"))))
    assert [row.error for row in rows] == [pytest.approx(0.1)] * 9
