"""Workloads as they come: seeded, lazy, closed loops included; the truth stays in the oracle."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tracemalloc

import pytest

from router.errors import ConfigError
from router.model import Request
from router.sim.classes import AtOnce, InFlight, Renewal, SessionShape, TraceLengths, TraceTimes
from router.sim.draws import Fixed, Lognormal, Uniform
from router.sim.traffic import Traffic
from router.sim.workload import MOONCAKE_BLOCK_TOKENS, Arrival, chain_hashes
from tests.sim.sets import a_class, workload


def drained(traffic: Traffic, answer_s: float = 1.0, most: int = 10_000) -> list[tuple[float, Request]]:
    """Every request of a workload whose answers all take `answer_s`."""
    found: list[tuple[float, Request]] = []
    ends: list[tuple[float, str]] = []
    while len(found) < most:
        due = traffic.next_at()
        if ends and (due is None or ends[0][0] <= due):
            at, name = ends.pop(0)
            traffic.ended(name, at, finished=True)
            continue
        if due is None:
            return found
        request = traffic.take()
        found.append((due, request))
        ends.append((due + answer_s, request.id))
    return found


def test_the_same_seed_gives_the_same_requests_and_another_seed_others() -> None:
    """Times, lengths and the oracle's answers follow from the seed alone."""
    one, same, other = (drained(Traffic(workload(), seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_what_a_policy_does_to_the_timing_changes_no_length_and_no_pause() -> None:
    """Sessions have random streams of their own: slow answers move turns, they do not change them."""
    shape = SessionShape(turns=Uniform(2, 6), pause_s=Uniform(1, 3), grows=True)
    mix = workload(a_class(session=shape), requests=None, duration_s=200.0)
    quick, slow = (dict(_turns(Traffic(mix, 3), answer_s)) for answer_s in (0.1, 4.0))
    both = quick.keys() & slow.keys()
    assert len(both) > 100
    assert all(quick[name] == slow[name] for name in both)


def _turns(traffic: Traffic, answer_s: float) -> list[tuple[str, tuple[int, tuple[int, ...]]]]:
    return [(r.id, (r.prompt_tokens, r.prefix_hashes)) for _, r in drained(traffic, answer_s)]


def test_requests_come_lazily() -> None:
    """The memory holds the requests under way, not the million to come."""
    traffic = Traffic(workload(requests=10**9), 1)
    tracemalloc.start()
    for _ in range(20_000):
        request = traffic.take()
        traffic.ended(request.id, 0.0, finished=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_poisson_and_bursty_gaps_have_the_rate_and_the_variation_asked_for() -> None:
    """Gamma gaps: the mean is 1 / rate, the coefficient of variation is cv."""
    for cv in (1.0, 4.0):
        times = [
            at for at, _ in drained(Traffic(workload(a_class(arrivals=Renewal(5.0, cv)), requests=8000), 1))
        ]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        mean = statistics.fmean(gaps)
        assert mean == pytest.approx(0.2, rel=0.15)
        assert statistics.pstdev(gaps) / mean == pytest.approx(cv, rel=0.15)


def test_a_growing_session_says_again_what_was_said_before() -> None:
    """Prompts grow by answer and new tokens, and the hashes of the old blocks stay."""
    shape = SessionShape(turns=Fixed(4), pause_s=Fixed(2.0), grows=True, shared_prefix_tokens=160)
    traffic = Traffic(workload(a_class(arrivals=AtOnce(2), session=shape), requests=None), 1)
    by_session: dict[str, list[Request]] = {}
    for _, request in drained(traffic):
        by_session.setdefault(request.session_key, []).append(request)
    assert [len(turns) for turns in by_session.values()] == [4, 4]
    for turns in by_session.values():
        for before, after in itertools.pairwise(turns):
            assert after.prompt_tokens > before.prompt_tokens
            assert after.prefix_hashes[: len(before.prefix_hashes)] == before.prefix_hashes
            assert len(after.prefix_hashes) == after.prompt_tokens // 16
    first, second = (turns[0].prefix_hashes for turns in by_session.values())
    assert first[:10] == second[:10]  # the system prompt
    assert first[10] != second[10]


def test_the_next_turn_comes_after_the_answer_and_the_pause() -> None:
    """Closed loop: answer 1 s, tool 2 s, so turns are 3 s apart."""
    shape = SessionShape(turns=Fixed(3), pause_s=Fixed(2.0))
    traffic = Traffic(workload(a_class(arrivals=AtOnce(1), session=shape), requests=None), 1)
    assert [at for at, _ in drained(traffic)] == pytest.approx([0.0, 3.0, 6.0])


def test_a_failed_turn_ends_its_session_but_a_caller_in_flight_goes_on_later() -> None:
    """An agent gives up; a load generator tries again, and never at the same moment."""
    agent = Traffic(
        workload(a_class(arrivals=AtOnce(1), session=SessionShape(turns=Fixed(5))), requests=None), 1
    )
    agent.ended(agent.take().id, 1.0, finished=False)
    assert agent.next_at() is None
    caller = Traffic(workload(a_class(arrivals=InFlight(1)), requests=10), 1)
    caller.ended(caller.take().id, 1.0, finished=False)
    assert caller.next_at() == 2.0


def test_callers_in_flight_are_never_more_than_asked_for() -> None:
    """A closed loop of 3 keeps 3 requests under way until the count is reached."""
    requests = drained(Traffic(workload(a_class(arrivals=InFlight(3, 0.0)), requests=30), 1))
    assert len(requests) == 30
    for at, _ in requests:
        assert sum(other <= at < other + 1.0 for other, _ in requests) <= 3


def test_a_trace_keeps_its_times_and_repeats_at_its_own_rate() -> None:
    """Speed divides the times; a second pass starts a mean gap after the last row."""
    rows = [Arrival(float(i), 100 + i, 10 + i) for i in range(4)]
    lengths = TraceLengths(rows)
    kind = dataclasses.replace(a_class(), arrivals=TraceTimes(2.0, repeat=True), lengths=lengths)
    found = drained(Traffic(workload(kind, requests=6), 1))
    assert [at for at, _ in found] == pytest.approx([0, 0.5, 1.0, 1.5, 2.0, 2.5])
    assert [r.prompt_tokens for _, r in found] == [100, 101, 102, 103, 100, 101]


def test_hashes_of_large_blocks_are_spread_over_small_ones() -> None:
    """A trace hashes blocks of 512 tokens, the backends blocks of 16: equal prefixes stay equal."""
    long, short = chain_hashes([1, 2, 3]), chain_hashes([1, 2])
    rows = [
        Arrival(0.0, 3 * MOONCAKE_BLOCK_TOKENS, 5, long),
        Arrival(1.0, 2 * MOONCAKE_BLOCK_TOKENS, 5, short),
    ]
    kind = dataclasses.replace(a_class(), arrivals=TraceTimes(), lengths=TraceLengths(rows))
    (_, first), (_, second) = drained(Traffic(workload(kind, requests=None), 1))
    assert len(first.prefix_hashes) == 96
    assert first.prefix_hashes[:64] == second.prefix_hashes
    assert len(set(first.prefix_hashes)) == 96


def test_tenants_come_by_weight() -> None:
    """Three to one."""
    kind = dataclasses.replace(a_class(), tenants=(("a", 3.0), ("b", 1.0)))
    requests = drained(Traffic(workload(kind, requests=4000), 1))
    assert sum(r.tenant == "a" for _, r in requests) / 4000 == pytest.approx(0.75, abs=0.03)


def test_rate_scale_multiplies_the_load() -> None:
    """Twice the rate; twice the callers; a trace twice as fast."""
    once, twice = (drained(Traffic(workload(), 1, rate_scale=x))[-1][0] for x in (1.0, 2.0))
    assert once == pytest.approx(2 * twice)
    callers = drained(Traffic(workload(a_class(arrivals=InFlight(3, 0.0)), requests=30), 1, rate_scale=2.0))
    assert sum(at == 0.0 for at, _ in callers) == 6


def test_the_true_length_is_with_the_oracle_alone() -> None:
    """No field of a request tells it; the oracle forgets it with the request."""
    traffic = Traffic(workload(), 1)
    request = traffic.take()
    length = traffic.oracle(request)
    assert 20 <= length <= 200
    assert request.max_new_tokens == 1024
    traffic.ended(request.id, 1.0, finished=True)
    with pytest.raises(KeyError):
        traffic.oracle(request)


def test_a_workload_without_an_end_is_refused() -> None:
    """It would run for ever."""
    with pytest.raises(ConfigError, match="has no end"):
        Traffic(workload(requests=None), 1)


def test_lognormal_draws_have_the_mean_and_the_bounds_asked_for() -> None:
    """The parameters are those of the lengths, not of their logarithms."""
    from random import Random

    draw, rng = Lognormal(200.0, 0.8, 10.0, 5000.0), Random(1)
    values = [draw.draw(rng) for _ in range(20_000)]
    assert statistics.fmean(values) == pytest.approx(200.0, rel=0.05)
    assert 10.0 <= min(values) <= max(values) <= 5000.0
