"""Percentiles against values worked out by hand, and what the report counts."""

from __future__ import annotations

from random import Random

import pytest
from polyphase.v1 import inference_pb2

from router.load.flight import Failed, Flight
from router.load.limits import Limits
from router.load.report import Tally
from router.load.requests import Answer
from router.load.samples import Samples, percentile, summarise
from tests.load.scripted import finished


class Clock:
    """Time by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("values", "p50", "p90", "p99"),
    [
        ([3.0], 3, 3, 3),
        ([1.0, 2.0], 1, 2, 2),
        ([1.0, 2.0, 3.0, 4.0], 2, 4, 4),
        (list(range(1, 101)), 50, 90, 99),
        (list(range(1, 1001)), 500, 900, 990),
        (list(range(1, 102)), 51, 91, 100),
    ],
)
def test_percentiles_are_nearest_ranks(values: list[float], p50: float, p90: float, p99: float) -> None:
    """Rank ceil(q n), in any order of arrival."""
    Random(1).shuffle(values)
    result = summarise(values)
    assert (result["p50"], result["p90"], result["p99"]) == (p50, p90, p99)
    assert result["mean"] == pytest.approx(sum(values) / len(values))


def test_no_samples_give_no_numbers() -> None:
    """None, not 0: nothing was measured."""
    assert set(Samples().summary().values()) == {None}


def test_the_extremes_are_the_samples_themselves() -> None:
    """q near 0 and q = 1."""
    assert percentile([1.0, 2.0, 3.0], 0.001) == 1.0
    assert percentile([1.0, 2.0, 3.0], 1.0) == 3.0


def answer_of(tokens: int) -> Answer:
    return Answer(prompt_fp=1, seed=1, tokens=tokens)


def fly(tally: Tally, intended_s: float, sent_s: float, tokens: int) -> Flight:
    """A flight that was sent."""
    flight = Flight(intended_s, sent_s, answer_of(tokens), tally.ended)
    tally.sent(flight)
    return flight


def done(tokens: int) -> inference_pb2.Finished:
    request = inference_pb2.GenerateRequest(engine_options={"mock.output_tokens": str(tokens)})
    request.tokens.ids.extend(range(7))
    return finished(request)


def test_latency_counts_from_the_intended_time() -> None:
    """Sent 3 s late: TTFT and E2E include the 3 s, TPOT does not."""
    tally = Tally(Clock())
    flight = fly(tally, 100.0, 103.0, 3)
    ids = answer_of(3).ids(0, 3)
    flight.tokens(0, ids[:1], 103.5)
    flight.tokens(1, ids[1:], 104.5)
    flight.end(done(3), 105.0)
    report = tally.report()
    assert report["ttft_s"]["p50"] == pytest.approx(3.5)
    assert report["e2e_s"]["p99"] == pytest.approx(5.0)
    assert report["tpot_s"]["p50"] == pytest.approx(0.5)
    assert report["send_lateness_s"]["p99"] == pytest.approx(3.0)
    assert tally.clean


def test_places_costs_and_phases_come_from_the_routers_account() -> None:
    """Two requests on one pair; busy is device time over the 2 s of the run."""
    tally = Tally(Clock())
    for at_s in (100.0, 101.0):
        flight = fly(tally, at_s, at_s, 2)
        flight.tokens(0, answer_of(2).ids(0, 2), at_s + 0.5)
        flight.end(done(2), at_s + 1.0)
    report = tally.report()
    assert report["duration_s"] == 2.0
    assert report["pairs"] == [{"prefill": "gpu", "decode": "lpu", "requests": 2}]
    gpu, lpu = report["backends"]
    assert (gpu["id"], gpu["kind"], gpu["prefills"], gpu["decodes"], gpu["prompt_tokens"]) == (
        "h100-0",
        "gpu",
        2,
        0,
        14,
    )
    assert (lpu["decodes"], lpu["tokens"], lpu["busy_ratio"]) == (2, 4, pytest.approx(0.02))
    assert report["cost_usd"] == pytest.approx(0.006)
    assert report["energy_j"] == pytest.approx(6.0)
    assert report["phases"]["handoff"]["p50"] == pytest.approx(0.003)
    assert report["requests"]["split"] == 2
    assert (report["tokens"], report["tokens_per_s"]) == (4, 2.0)


def test_failures_are_counted_by_reason_and_code() -> None:
    """A stopped run's requests are no failures; a late end of a flight changes nothing."""
    tally = Tally(Clock())
    for reason, code in (
        ("QUEUE_FULL", 8),
        ("QUEUE_FULL", 8),
        ("BACKEND_LOST", 14),
        ("STOPPED", 1),
        ("ODD", 99),
    ):
        flight = fly(tally, 100.0, 100.0, 4)
        flight.end(Failed(reason, code), 101.0)
        flight.end(done(4), 102.0)
    tally.not_sent()
    requests = tally.report()["requests"]
    assert requests["failures"] == {"QUEUE_FULL": 2, "BACKEND_LOST": 1, "ODD": 1}
    assert requests["codes"] == {"RESOURCE_EXHAUSTED": 2, "UNAVAILABLE": 1, "99": 1}
    assert (requests["total"], requests["ok"], requests["failed"]) == (6, 0, 4)
    assert (requests["cancelled"], requests["not_sent"]) == (1, 1)
    assert tally.failed_ratio == pytest.approx(5 / 6)
    assert not tally.clean


def test_lost_tokens_of_a_finished_request_show() -> None:
    """Finished with three of four tokens: one lost."""
    tally = Tally(Clock())
    flight = fly(tally, 100.0, 100.0, 4)
    flight.tokens(0, answer_of(4).ids(0, 3), 100.5)
    flight.end(done(4), 101.0)
    assert tally.report()["integrity"] == {"lost": 1, "duplicated": 0, "mismatched": 0}
    assert not tally.clean


def test_limits_name_what_they_were_crossed_by() -> None:
    """Only the crossed ones, each with its value; a limit without samples is crossed."""
    tally = Tally(Clock())
    flight = fly(tally, 100.0, 100.0, 1)
    flight.tokens(0, answer_of(1).ids(0, 1), 100.5)
    flight.end(done(1), 101.0)
    assert Limits(max_ttft_p99_s=0.5, max_e2e_p99_s=1.0, max_failed_ratio=0.0).crossed(tally) == []
    assert Limits(max_ttft_p99_s=0.4).crossed(tally) == ["TTFT p99 0.5 s is above 0.4 s"]
    assert "no samples" in Limits(max_tpot_p99_s=1.0).crossed(tally)[0]
    tally.not_sent()
    assert Limits(max_failed_ratio=0.4).crossed(tally) == ["failed ratio 0.5000 is above 0.4"]
