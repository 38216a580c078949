"""The KV link: alone, shared, cancelled, and however late it is driven."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.models.link import CancelTransfer, KVLink, StartTransfer, TransferDone, transfer_s
from router.errors import ConfigError
from router.model import LinkParameters, Seconds

SLOW = LinkParameters(latency_s=0.5, bandwidth_bytes_per_s=100.0)


def finish(link: KVLink) -> list[TransferDone]:
    """Drive to the end, exactly at the deadlines."""
    done: list[TransferDone] = []
    while (due := link.deadline()) is not None:
        done += link.advance(due)
    return done


def test_alone_it_pays_latency_and_bandwidth() -> None:
    """0.5 s + 200 bytes / 100 bytes/s."""
    link = KVLink(SLOW)
    link.handle(StartTransfer(1, 200), 10.0)
    assert transfer_s(200, SLOW) == pytest.approx(2.5)
    assert finish(link) == [TransferDone(1, 200, pytest.approx(12.5), pytest.approx(2.5))]


def test_two_share_the_bandwidth_equally() -> None:
    """200 and 400 bytes from t = 0: at half rate the first is out at 4.5, the second has 200 left: 6.5."""
    link = KVLink(SLOW)
    link.handle(StartTransfer(1, 200), 0.0)
    link.handle(StartTransfer(2, 400), 0.0)
    assert [(d.transfer, d.at) for d in finish(link)] == [(1, pytest.approx(4.5)), (2, pytest.approx(6.5))]


def test_one_in_its_latency_takes_no_bandwidth() -> None:
    """The second begins to flow at 1.5: the first is alone for 1 s, then both at half rate."""
    link = KVLink(SLOW)
    link.handle(StartTransfer(1, 200), 0.0)
    link.handle(StartTransfer(2, 200), 1.0)
    # First: 100 bytes by 1.5, the other 100 at 50/s by 3.5. Second: 100 by 3.5, the rest alone by 4.5.
    assert [(d.transfer, d.at) for d in finish(link)] == [(1, pytest.approx(3.5)), (2, pytest.approx(4.5))]


def test_a_cancelled_transfer_gives_its_share_back_and_wakes_nobody() -> None:
    """The first has 150 of 200 bytes left when the second goes away at 1.5; it ends at 3.0."""
    link = KVLink(SLOW)
    link.handle(StartTransfer(1, 200), 0.0)
    link.handle(StartTransfer(2, 1_000_000), 0.0)
    link.handle(CancelTransfer(2), 1.5)
    assert [(d.transfer, d.at) for d in finish(link)] == [(1, pytest.approx(3.0))]
    link.handle(StartTransfer(3, 10), 5.0)
    link.handle(CancelTransfer(3), 5.1)
    assert link.deadline() is None
    assert len(link) == 0


def test_cancelling_what_is_not_under_way_is_ignored() -> None:
    """Cancels and ends cross on the way."""
    link = KVLink(SLOW)
    assert list(link.handle(CancelTransfer(9), 0.0)) == []


def test_without_latency_and_bandwidth_it_takes_no_time() -> None:
    """The default link moves KV at once."""
    link = KVLink(LinkParameters())
    assert list(link.handle(StartTransfer(1, 10**12), 3.0)) == [TransferDone(1, 10**12, 3.0, 0.0)]


@pytest.mark.parametrize("bad", [LinkParameters(-1.0), LinkParameters(math.inf), LinkParameters(0.0, 0.0)])
def test_refuses_parameters_out_of_range(bad: LinkParameters) -> None:
    """A transfer must take a finite time of at least zero."""
    with pytest.raises(ConfigError):
        KVLink(bad)


starts = st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5000)), min_size=1, max_size=12)  # (time, bytes)


@given(starts, st.lists(st.floats(0, 200), max_size=20))
def test_the_driver_does_not_change_the_times(
    begins: list[tuple[Seconds, int]], visits: list[Seconds]
) -> None:
    """Extra and late wake-ups find the same ends, to the last bit; no transfer beats the link alone."""
    begins = sorted(begins)

    def ends(wakes: list[Seconds]) -> dict[int, Seconds]:
        link, found = KVLink(SLOW), dict[int, Seconds]()
        plan = sorted([(at, 1, i) for i, (at, _) in enumerate(begins)] + [(at, 0, -1) for at in wakes])
        for at, _, i in plan:
            done = link.advance(at) if i < 0 else link.handle(StartTransfer(i, begins[i][1]), at)
            found.update((one.transfer, one.at) for one in done)
        found.update((one.transfer, one.at) for one in link.advance(1e6))
        return found

    exact = ends([])
    assert ends(visits) == exact
    assert len(exact) == len(begins)
    for i, (at, size) in enumerate(begins):
        assert exact[i] >= at + transfer_s(size, SLOW) - 1e-9
    total = sum(size for _, size in begins) / 100.0
    assert max(exact.values()) <= max(at for at, _ in begins) + 0.5 + total + 1e-6
