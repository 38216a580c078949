"""The worker: handles that are used once, leases, fences, transfers that share and break."""

from dataclasses import replace
from typing import Any

import pytest

from backends.models.messages import (
    AbortServe,
    DecodeFinished,
    Failed,
    FailReason,
    KVArrived,
    KVPullFailed,
    KVRefused,
    KVServed,
    KVTaken,
    PrefillFinished,
    PullKV,
    Release,
    ServeKV,
    StepTokens,
    Stop,
)
from backends.models.worker import WorkerMachine
from router.model import KVHandle, Phase
from tests.models.drive import backend, decode, foreign, of, prefill, run, tokens_of, until, worker

PREFILL_8 = 0.002 + 0.006 + 32e-6


def holding(machine: WorkerMachine, key: int = 1, **fields: Any) -> KVHandle:
    """Run a split prefill at 0 and return the handle it left."""
    machine.handle(prefill(key, decode_here=False, **fields), 0.0)
    finished: list[PrefillFinished] = []
    while not finished:
        due = machine.deadline()
        assert due is not None
        finished = of(list(machine.advance(due)), PrefillFinished)
    assert finished[0].kv is not None
    return finished[0].kv


def test_a_handle_says_what_it_stands_for() -> None:
    """Producer, boot, request, epoch, layout, tokens, the low 64 bits of the fingerprint, lease, address."""
    machine = worker(backend(), source="host:9")
    kv = holding(machine, fingerprint=(1 << 70) + 5)
    expiry = pytest.approx(PREFILL_8 + 30.0)
    assert kv == KVHandle("b", "boot-b", "r1", 1, "a", 8, 5, expiry, "host:9", b"1")


def test_served_kv_takes_the_links_time_and_leaves() -> None:
    """8 tokens x 1,000 bytes at 1 MB/s after 1 ms: 9 ms; then the room is free."""
    machine = worker(backend())
    kv = holding(machine)
    assert list(machine.handle(ServeKV(5, kv, "c"), 1.0)) == []
    assert machine.snapshot(1.0).kv_used_tokens == 8
    assert machine.deadline() == pytest.approx(1.001)
    assert run(machine) == [KVServed(5, 8000, pytest.approx(0.009), 1001)]
    assert machine.snapshot(2.0).kv_used_tokens == 0
    assert machine.deadline() is None


def test_a_handle_is_used_once() -> None:
    """A second pull is refused while the first is under way, and after it."""
    machine = worker(backend())
    kv = holding(machine)
    machine.handle(ServeKV(1, kv, "c"), 1.0)
    (during,) = machine.handle(ServeKV(2, kv, "d"), 1.001)
    served = run(machine)
    (after,) = machine.handle(ServeKV(3, kv, "d"), 2.0)
    assert [type(one) for one in (during, *served, after)] == [KVRefused, KVServed, KVRefused]
    assert isinstance(during, KVRefused)
    assert isinstance(after, KVRefused)
    assert during.reason is after.reason is FailReason.KV_STALE
    assert "used once" in during.message


@pytest.mark.parametrize(
    "forged",
    [
        {"producer": "x"},
        {"incarnation": "boot-before"},
        {"request_id": "r2"},
        {"epoch": 2},
        {"layout": "b"},
        {"tokens": 9},
        {"prefix_hash": 4},
        {"connector": b"2"},
        {"connector": b""},
        {"connector": b"-1"},
        {"connector": b"9" * 5000},
        {"connector": "²".encode()},
    ],
)
def test_a_handle_that_was_not_minted_here_is_stale(forged: dict[str, Any]) -> None:
    """Another boot, request, layout or a made-up field never yields KV; the true handle still does."""
    machine = worker(backend())
    kv = holding(machine)
    (refused,) = machine.handle(ServeKV(1, replace(kv, **forged), "c"), 1.0)
    assert isinstance(refused, KVRefused)
    assert refused.reason is FailReason.KV_STALE
    machine.handle(ServeKV(2, kv, "c"), 1.0)
    assert [type(event) for event in run(machine)] == [KVServed]


def test_the_lease_in_a_shown_handle_does_not_matter() -> None:
    """Clocks differ: the producer goes by its own."""
    machine = worker(backend())
    kv = holding(machine)
    machine.handle(ServeKV(2, replace(kv, expires_at=-5.0), "c"), 1.0)
    assert [type(event) for event in run(machine)] == [KVServed]


def test_a_lease_that_ends_frees_the_room() -> None:
    """The machine wakes for it by itself; a pull that comes later is refused."""
    machine = worker(backend(), lease_s=3.0)
    kv = holding(machine)
    assert machine.deadline() == pytest.approx(PREFILL_8 + 3.0)
    assert run(machine) == []
    assert machine.snapshot(4.0).kv_used_tokens == 0
    (refused,) = machine.handle(ServeKV(1, kv, "c"), 4.0)
    assert isinstance(refused, KVRefused)


def test_a_pull_under_way_outlives_the_lease() -> None:
    """Claimed KV is not taken from under the transfer."""
    machine = worker(backend(), lease_s=1.0)
    kv = holding(machine)
    machine.handle(ServeKV(1, kv, "c"), PREFILL_8 + 0.999)
    assert list(machine.advance(PREFILL_8 + 1.001)) == []
    assert machine.snapshot(PREFILL_8 + 1.001).kv_used_tokens == 8
    assert [type(event) for event in run(machine)] == [KVServed]


def test_release_frees_and_a_strange_release_does_nothing() -> None:
    """The router releases what nobody will pull; a stale handle must not free other KV."""
    machine = worker(backend())
    kv = holding(machine)
    assert list(machine.handle(Release(replace(kv, epoch=9)), 1.0)) == []
    assert machine.snapshot(1.0).kv_used_tokens == 8
    assert list(machine.handle(Release(kv), 1.0)) == []
    assert machine.snapshot(1.0).kv_used_tokens == 0
    assert machine.deadline() is None


@pytest.mark.parametrize("how", ["release", "stop"])
def test_kv_that_goes_away_under_a_pull_refuses_it(how: str) -> None:
    """Every pull is answered once."""
    machine = worker(backend())
    kv = holding(machine)
    machine.handle(ServeKV(4, kv, "c"), 1.0)
    (refused,) = machine.handle(Release(kv) if how == "release" else Stop(1), 1.002)
    assert isinstance(refused, KVRefused)
    assert refused.pull == 4
    assert machine.snapshot(1.002).kv_used_tokens == 0
    assert machine.deadline() is None


def test_an_aborted_pull_frees_the_kv_and_the_link() -> None:
    """The consumer is gone; the other transfer gets the whole bandwidth back."""
    machine = worker(backend())
    first, second = holding(machine, 1), holding(machine, 2)
    machine.handle(ServeKV(1, first, "c"), 1.0)
    machine.handle(ServeKV(2, second, "d"), 1.0)
    assert list(machine.handle(AbortServe(1), 1.005)) == []
    assert list(machine.handle(AbortServe(1), 1.005)) == []
    # 2 of 8 kB by 1.005 at half rate (2 ms each of 4 ms), 6 kB alone.
    (served,) = run(machine)
    assert served == KVServed(2, 8000, pytest.approx(0.011), 1002)
    assert machine.snapshot(2.0).kv_used_tokens == 0


def test_transfers_contend_for_the_link() -> None:
    """Two at once take 1 + 16 ms instead of 9."""
    machine = worker(backend())
    first, second = holding(machine, 1), holding(machine, 2)
    machine.handle(ServeKV(1, first, "c"), 1.0)
    machine.handle(ServeKV(2, second, "d"), 1.0)
    served = of(run(machine), KVServed)
    assert [one.transfer_s for one in served] == [pytest.approx(0.017)] * 2


def test_a_pull_number_may_not_be_used_twice() -> None:
    """That is an error of the driver, not of a peer."""
    machine = worker(backend())
    first, second = holding(machine, 1), holding(machine, 2)
    machine.handle(ServeKV(1, first, "c"), 1.0)
    with pytest.raises(ValueError, match="twice"):
        machine.handle(ServeKV(1, second, "c"), 1.0)


def test_a_decode_pulls_then_reports_then_runs() -> None:
    """PullKV at once; KVTaken before any token; the answer's end."""
    machine = worker(backend())
    kv = foreign(8)
    assert list(machine.handle(decode(1, kv, output=3), 0.0)) == [PullKV(1, kv)]
    events = [*machine.handle(KVArrived(1, 8000, 0.01, 77), 0.5), *run(machine)]
    assert [type(e) for e in events] == [KVTaken, StepTokens, StepTokens, DecodeFinished]
    assert events[0] == KVTaken(1, 8000, 0.01)
    assert [index for _, index in tokens_of(events, 1)] == [1, 2]


def test_foreign_kv_fails_the_decode() -> None:
    """A fingerprint other than the handle's means somebody else's KV: stale, never garbage."""
    machine = worker(backend())
    machine.handle(decode(1, foreign(8)), 0.0)
    (failed,) = machine.handle(KVArrived(1, 8000, 0.01, 78), 0.5)
    assert isinstance(failed, Failed)
    assert failed.reason is FailReason.KV_STALE
    assert machine.snapshot(1.0).kv_used_tokens == 0


def test_a_failed_pull_fails_the_decode_with_the_producers_reason() -> None:
    """The reason is passed on and the reserved room is free."""
    machine = worker(backend())
    machine.handle(decode(1, foreign(8)), 0.0)
    assert machine.snapshot(0.0).kv_used_tokens == 8
    events = machine.handle(KVPullFailed(1, FailReason.KV_TRANSFER, "the peer hung up"), 0.5)
    assert list(events) == [Failed(1, FailReason.KV_TRANSFER, "the peer hung up")]
    assert machine.snapshot(0.5).kv_used_tokens == 0
    assert list(machine.handle(KVPullFailed(1, FailReason.KV_TRANSFER, "again"), 0.6)) == []


def test_kv_that_comes_after_a_stop_is_dropped() -> None:
    """Stop frees the reservation; what was on its way is ignored."""
    machine = worker(backend())
    machine.handle(decode(1, foreign(8)), 0.0)
    assert list(machine.handle(Stop(1), 0.1)) == []
    assert machine.snapshot(0.1).kv_used_tokens == 0
    assert list(machine.handle(KVArrived(1, 8000, 0.01, 77), 0.2)) == []


def test_kv_that_was_not_asked_for_is_ignored() -> None:
    """A decode that still waits for room has asked for nothing."""
    machine = worker(backend(kv_capacity_tokens=16))
    holding(machine, 1, prompt_tokens=12)
    machine.handle(decode(2, foreign(8)), 1.0)
    assert list(machine.handle(KVArrived(2, 8000, 0.0, 77), 1.1)) == []
    assert machine.snapshot(1.1).waiting == 1


def test_layouts_are_checked_before_anything_is_moved() -> None:
    """Its own layout and those it accepts; anything else fails with the ones it takes."""
    machine = worker(backend(kv_accepts=("z",)))
    assert of(list(machine.handle(decode(1, foreign(layout="z")), 0.0)), PullKV)
    (failed,) = machine.handle(decode(2, foreign(layout="q")), 0.0)
    assert isinstance(failed, Failed)
    assert failed.reason is FailReason.KV_LAYOUT
    assert "a, z" in failed.message


def test_a_refused_prefill_leaves_nothing_behind() -> None:
    """The key may not be remembered as one that hands over."""
    machine = worker(backend(phases=frozenset({Phase.DECODE})))
    (failed,) = machine.handle(prefill(1, decode_here=False), 0.0)
    assert isinstance(failed, Failed)
    assert failed.reason is FailReason.INVALID
    assert machine.deadline() is None


def test_a_key_used_twice_ends_both_even_while_its_kv_is_held() -> None:
    """The held KV goes too, and its handle is stale."""
    machine = worker(backend())
    kv = holding(machine)
    (failed,) = machine.handle(prefill(1), 1.0)
    assert isinstance(failed, Failed)
    (refused,) = machine.handle(ServeKV(1, kv, "c"), 1.0)
    assert isinstance(refused, KVRefused)
    assert machine.snapshot(1.0).kv_used_tokens == 0


def test_a_late_driver_gets_the_same_story() -> None:
    """Steps, transfers and leases happen at their own times even if all are noticed at once."""
    exact, late = worker(backend(), lease_s=0.5), worker(backend(), lease_s=0.5)
    kv, same = holding(exact), holding(late)
    assert kv == same
    for machine in (exact, late):
        machine.handle(ServeKV(9, kv, "c"), 0.01)
        machine.handle(prefill(2, prompt=20, output=5), 0.012)
        machine.handle(prefill(3, prompt=4, decode_here=False), 0.013)
    assert list(late.advance(100.0)) == until(exact, 100.0)
    assert exact.snapshot(100.0) == late.snapshot(100.0)
