"""random, power_of_two, least_requests, and how a fleet divides for all baselines."""

from __future__ import annotations

from collections import Counter

from tests.policies.baselines.scenes import place
from tests.policies.world import DECODE, PREFILL, Views, policy, request, spec, view


def counts(name: str, fleet: Views, times: int = 2000) -> Counter[str]:
    """How often each backend prefills."""
    chosen = policy(name)
    return Counter(place(chosen, request(), fleet)[0] for _ in range(times))


def test_random_is_uniform() -> None:
    """Four backends get a quarter each, whatever their load (500 +- 4 standard deviations of 19)."""
    found = counts("random", Views([view(spec(n), decodes=9 * i) for i, n in enumerate("abcd")]))
    assert all(abs(count - 500) < 80 for count in found.values())


def test_power_of_two_takes_the_less_loaded_of_two() -> None:
    """With loads 0 < 1 < 2 < 3 the ranks win 3, 2, 1 and 0 of the 6 pairs."""
    found = counts("power_of_two", Views([view(spec(n), decodes=i) for i, n in enumerate("abcd")]))
    assert found["d"] == 0
    assert abs(found["a"] - 1000) < 90
    assert abs(found["b"] - 667) < 90
    assert abs(found["c"] - 333) < 70


def test_least_requests_counts_requests_not_seconds() -> None:
    """A slow backend with two requests is taken for emptier than a fast one with three; ties are drawn."""
    fleet = Views([view(spec("slow", step_ms=900), decodes=2), view(spec("fast"), decodes=3)])
    assert counts("least_requests", fleet, 10) == {"slow": 10}
    even = counts("least_requests", Views([view(spec(n), decodes=1) for n in "ab"]), 200)
    assert min(even.values()) > 60


def test_workers_of_both_phases_do_not_split_among_themselves() -> None:
    """The originals run a request on one worker there."""
    chosen = policy("random")
    fleet = Views([view(spec(n)) for n in "abc"])
    assert all(len(set(place(chosen, request(), fleet))) == 1 for _ in range(50))


def test_pools_are_chosen_from_apart() -> None:
    """Prefill counts prefills, decode counts decodes."""
    fleet = Views(
        [
            view(spec("p0", PREFILL), prefills=2),
            view(spec("p1", PREFILL), prefills=1),
            view(spec("d0", DECODE), decodes=5),
            view(spec("d1", DECODE), decodes=4),
        ]
    )
    assert place(policy("least_requests"), request(), fleet) == ("p1", "d1")


def test_a_worker_of_both_phases_keeps_decode_or_gives_it_to_the_decode_pool() -> None:
    """Another worker of both phases is no target, however empty."""
    busy = view(spec("a"), decodes=7)
    idle, pool = view(spec("b"), prefills=1, decodes=9), view(spec("d", DECODE), decodes=6)
    assert place(policy("least_requests"), request(), Views([busy, idle, pool])) == ("a", "d")
    full = view(spec("d", DECODE), decodes=8)
    assert place(policy("least_requests"), request(), Views([busy, idle, full])) == ("a", "a")
