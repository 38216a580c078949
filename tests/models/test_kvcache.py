"""The block pool: counts, references, eviction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.models.kvcache import BlockPool, blocks_for


def test_blocks_for_rounds_up() -> None:
    """A started block is a whole one."""
    assert [blocks_for(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_allocation_is_all_or_nothing() -> None:
    """What does not fit leaves the pool as it was."""
    pool = BlockPool(10)
    assert pool.allocate(7)
    assert not pool.allocate(4)
    assert (pool.used, pool.available) == (7, 3)
    pool.free(7)
    assert pool.used == 0


def test_freeing_twice_is_found() -> None:
    """A count below zero would hide a leak elsewhere."""
    pool = BlockPool(4)
    pool.allocate(2)
    pool.free(2)
    with pytest.raises(ValueError, match="twice"):
        pool.free(1)


def test_published_blocks_are_found_until_evicted() -> None:
    """A block without references stays cached, counts as available, and goes when room is needed."""
    pool = BlockPool(4)
    pool.allocate(3)
    assert all(pool.publish(one) for one in (11, 12, 13))
    assert pool.match((11, 12, 99, 13), limit=4) == 2
    pool.release([11, 12, 13])
    assert (pool.used, pool.available, pool.cached) == (0, 4, 3)
    assert pool.allocate(2)  # one block is free; the end of the chain goes first
    assert pool.match((11, 12, 13), limit=3) == 2
    assert pool.match((11, 12, 13), limit=1) == 1


def test_referenced_blocks_are_never_evicted() -> None:
    """Another sequence is reading them."""
    pool = BlockPool(3)
    pool.allocate(2)
    pool.publish(1)
    pool.publish(2)
    pool.release([1, 2])
    assert pool.idle_among((1, 2)) == 2
    pool.acquire((1,))
    assert not pool.allocate(3)
    assert pool.allocate(2)
    assert pool.match((1,), limit=1) == 1


def test_the_least_recently_used_goes_first() -> None:
    """A hit makes a block young again."""
    pool = BlockPool(2)
    pool.allocate(2)
    pool.publish(1)
    pool.publish(2)
    pool.release([1])
    pool.release([2])
    pool.acquire((1,))
    pool.release([1])
    pool.allocate(1)
    assert (pool.match((1,), 1), pool.match((2,), 1)) == (1, 0)


def test_a_duplicate_stays_private() -> None:
    """Two sequences that computed the same block keep one each."""
    pool = BlockPool(4)
    pool.allocate(2)
    assert pool.publish(5)
    assert not pool.publish(5)
    assert pool.used == 2


@given(st.lists(st.tuples(st.sampled_from("afpr"), st.integers(0, 6)), max_size=60))
def test_counts_always_add_up(operations: list[tuple[str, int]]) -> None:
    """used + available = capacity, and giving everything back ends at zero."""
    pool, private, references = BlockPool(6), 0, list[int]()
    for kind, n in operations:
        if kind == "a" and pool.allocate(n):
            private += n
        elif kind == "f" and n <= private:
            pool.free(n)
            private -= n
        elif kind == "p" and private and pool.publish(n):
            private -= 1
            references.append(n)
        elif kind == "r" and pool.match((n,), 1):
            pool.acquire((n,))
            references.append(n)
        assert pool.used == private + len(set(references))
        assert 0 <= pool.available <= 6
        assert private + pool.cached <= 6
    pool.free(private)
    for one in references:
        pool.release([one])
    assert pool.used == 0
