"""Requests are reproducible, hide their true length, and share prefixes where the trace does."""

from __future__ import annotations

import pytest

from router.load.requests import RequestMaker, RequestOptions, output_cap, split_hashes
from router.sim.workload import Arrival, chain_hashes
from tests.load.scripted import answer

OPTIONS = RequestOptions("llama", ttft_slo_s=0.5, deadline_s=9.0)


def maker(seed: int = 1) -> RequestMaker:
    return RequestMaker(OPTIONS, seed, "run")


def test_the_same_seed_makes_the_same_requests() -> None:
    """Another seed, or another place in the run, makes another."""
    arrival = Arrival(0.0, 100, 10)
    first, _ = maker().make(0, arrival)
    assert maker().make(0, arrival)[0] == first
    assert maker(2).make(0, arrival)[0].tokens != first.tokens
    assert maker().make(1, arrival)[0].tokens != first.tokens


@pytest.mark.parametrize("tokens", [1, 2, 3, 1000, 70_000, 200_000])
def test_prompts_have_the_length_of_the_arrival(tokens: int) -> None:
    """Also below the counter and beyond the pool; ids stay in the vocabulary."""
    ids = maker().make(5, Arrival(0.0, tokens, 1))[0].tokens.ids
    assert len(ids) == tokens
    assert max(ids) < 32_000


def test_the_cap_does_not_tell_the_length() -> None:
    """It is a power of two, at least 1024; the length itself is only in the engine's options."""
    request, owed = maker().make(0, Arrival(0.0, 10, 1500))
    assert request.max_new_tokens == 2048
    assert request.engine_options["mock.output_tokens"] == "1500"
    assert owed.tokens == 1500
    assert [output_cap(n) for n in (1, 1024, 1025, 4096)] == [1024, 1024, 2048, 4096]


def test_the_answer_is_what_a_worker_computes_from_the_message() -> None:
    """The worker sees only the message; both come to the same tokens."""
    request, owed = maker().make(3, Arrival(0.0, 333, 50))
    assert answer(request) == owed.ids(0, 50)


def test_equal_prefix_hashes_mean_equal_tokens() -> None:
    """Two blocks shared of three: 1024 tokens equal, and something differs after."""
    make = maker()
    one = make.make(0, Arrival(0.0, 1600, 1, chain_hashes([1, 2, 3])))[0]
    two = make.make(1, Arrival(0.0, 1600, 1, chain_hashes([1, 2, 4])))[0]
    assert one.tokens.ids[:1024] == two.tokens.ids[:1024]
    assert one.tokens.ids[1024:1536] != two.tokens.ids[1024:1536]
    assert one.prefix_hashes[:64] == two.prefix_hashes[:64]
    assert not set(one.prefix_hashes[64:]) & set(two.prefix_hashes)


def test_a_prefix_hash_covers_one_block_of_the_backends() -> None:
    """A block of 512 tokens is 32 blocks of 16: 32 hashes, all different, each within 64 bits."""
    hashes = split_hashes(chain_hashes([1, 2]), 16)
    assert len(hashes) == len(set(hashes)) == 64
    assert max(hashes) < 1 << 64
    assert split_hashes(chain_hashes([1, 2]), 512) == list(chain_hashes([1, 2]))


def test_objectives_are_set_only_when_given() -> None:
    """An unset objective must not arrive as zero."""
    slo = maker().make(0, Arrival(0.0, 10, 1))[0].slo
    assert slo.ttft_s == 0.5 and slo.deadline_s == 9.0
    assert not slo.HasField("tpot_s")
