"""SMG's cache_aware and least_load, by hand."""

from __future__ import annotations

import pytest

from router.core.messages import BackendReported
from router.core.ports import Policy
from router.model import BackendSnapshot
from tests.policies.baselines.scenes import costs, place, prompt
from tests.policies.world import Views, policy, reported, spec, view


def warmed(held: int) -> Policy:
    """A policy whose tree has `held` blocks at worker a."""
    chosen = policy("smg_cache_aware")
    place(chosen, prompt(held, "first"), Views([view(spec("a"))]))
    return chosen


def test_a_match_above_three_tenths_decides() -> None:
    """4 of 10 blocks are enough against less load; 3 of 10 are not above 0.3."""
    fleet = Views([view(spec("a"), decodes=3), view(spec("b"))])
    assert place(warmed(4), prompt(10), fleet)[0] == "a"
    assert place(warmed(3), prompt(10), fleet)[0] == "b"


@pytest.mark.parametrize(("load", "where"), [(17, "b"), (15, "a")])
def test_a_crowded_match_spills(load: int, where: str) -> None:
    """17 and 0: 8.5 above the mean is more than 2 sqrt(8.5) = 5.8, and 17 > 1.5 x 8.5. With 9 elsewhere, 15
    is 3 above a mean of 12: no more than the natural swing."""
    other = 0 if where == "b" else 9
    fleet = Views([view(spec("a"), decodes=load), view(spec("b"), decodes=other)])
    assert place(warmed(10), prompt(10), fleet)[0] == where


@pytest.mark.parametrize("load", [{"waiting": 8}, {"kv_used_tokens": 800}])
def test_an_overloaded_worker_is_passed_over(load: dict[str, int]) -> None:
    """8 waiting requests, or 0.8 of 1,000 tokens; unless all are overloaded."""
    full = reported(view(spec("a", kv_capacity_tokens=1000)), **load)
    assert place(warmed(10), prompt(10), Views([full, view(spec("b"), decodes=5)]))[0] == "b"
    assert place(warmed(10), prompt(10), Views([full]))[0] == "a"


def test_least_load_is_queue_over_rate_plus_pressure() -> None:
    """3,000 tokens queued at 1,000/s and half of the KV in use: 3 + 0.15 x 1; 160 tokens sent: + 0.16."""
    chosen = policy("smg_least_load")
    fleet = Views([view(spec("a", kv_capacity_tokens=10_000)), view(spec("b", kv_capacity_tokens=10_000))])
    for now, decoded in ((0.0, 0), (10.0, 10_000)):
        for backend, queued, used in (("a", 3000, 5000), ("b", 0, 0)):
            seen = BackendSnapshot(
                now, waiting_prefill_tokens=queued, kv_used_tokens=used, decode_sequences=decoded
            )
            chosen.observe(BackendReported(backend, seen), now)
    assert costs(chosen, prompt(10), fleet, 10.0) == pytest.approx({"b": 0.0, "a": 3.15})
    assert costs(chosen, prompt(10), fleet, 10.0) == pytest.approx({"b": 0.16, "a": 3.15})


def test_least_load_polls_every_ten_seconds() -> None:
    """What is reported between two polls is not seen, and what was sent counts until the next."""
    chosen, fleet = policy("smg_least_load"), Views([view(spec("a"))])
    chosen.observe(BackendReported("a", BackendSnapshot(0.0)), 0.0)
    place(chosen, prompt(10), fleet, 1.0)
    chosen.observe(BackendReported("a", BackendSnapshot(9.0, waiting_prefill_tokens=9999)), 9.0)
    assert costs(chosen, prompt(10), fleet, 9.0) == pytest.approx({"a": 160 / 2000})
    chosen.observe(BackendReported("a", BackendSnapshot(10.0, waiting_prefill_tokens=500)), 10.0)
    assert costs(chosen, prompt(10), fleet, 10.0) == pytest.approx({"a": 500 / 2000})


def test_least_load_without_reports_counts_requests() -> None:
    """A dark fleet: fewest in flight. A worker whose peers report: requests x 1,024 tokens at their rate."""
    chosen = policy("smg_least_load")
    fleet = Views([view(spec("a"), decodes=3), view(spec("b"), decodes=2)])
    assert costs(chosen, prompt(10), fleet) == {"b": 2.0, "a": 3.0}
    chosen.observe(BackendReported("b", BackendSnapshot(0.0)), 0.0)
    assert costs(chosen, prompt(1), fleet)["a"] == pytest.approx(3 * 1024 / 2000)
