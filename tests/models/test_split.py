"""Two workers on a bare heap: a prefill here, a decode there, KV between them, no event loop anywhere."""

import heapq
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest

from backends.models.messages import (
    DecodeFinished,
    KVArrived,
    KVPullFailed,
    KVRefused,
    KVServed,
    KVTaken,
    PrefillFinished,
    PullKV,
    RunPrefill,
    ServeKV,
    StepTokens,
    WorkerCommand,
    WorkerEvent,
)
from backends.models.worker import WorkerMachine
from router.model import Phase, Seconds
from tests.models.drive import backend, decode, prefill, worker

PREFILL_8 = 0.002 + 0.006 + 32e-6


class Heap:
    """A driver in virtual time: commands at their times, machines at their deadlines, pulls between them."""

    def __init__(self, workers: Sequence[WorkerMachine], consumer: str) -> None:
        self.workers = {one.spec.id: one for one in workers}
        self.consumer = consumer
        self.log: list[tuple[Seconds, str, WorkerEvent]] = []
        self._due: list[tuple[Seconds, int, str, WorkerCommand]] = []
        self._order = count()
        self._pulls: dict[int, int] = {}
        self._starts: dict[int, RunPrefill] = {}

    def at(self, when: Seconds, name: str, command: WorkerCommand) -> None:
        """Put a command on the heap."""
        heapq.heappush(self._due, (when, next(self._order), name, command))

    def run(self) -> None:
        """Until nothing is due."""
        while True:
            wakes = [
                (due, -1, name) for name, one in self.workers.items() if (due := one.deadline()) is not None
            ]
            head = min([*wakes, *[(when, n, name) for when, n, name, _ in self._due[:1]]], default=None)
            if head is None:
                return
            now, number, name = head
            machine = self.workers[name]
            if number < 0:
                produced = machine.advance(now)
            else:
                command = heapq.heappop(self._due)[3]
                produced = machine.handle(command, now)
            for event in produced:
                self._carry(now, name, event)

    def _carry(self, now: Seconds, name: str, event: WorkerEvent) -> None:
        self.log.append((now, name, event))
        match event:
            case PrefillFinished(kv=kv) if kv is not None:
                self.at(now, self.consumer, decode(1000 + event.key, kv, output=5))
            case PullKV(key=key, kv=kv):
                pull = next(self._order)
                self._pulls[pull] = key
                self.at(now, kv.producer, ServeKV(pull, kv, name))
            case KVServed(pull=pull):
                arrived = KVArrived(self._pulls[pull], event.moved_bytes, event.transfer_s, event.fingerprint)
                self.at(now, self.consumer, arrived)
            case KVRefused(pull=pull):
                self.at(now, self.consumer, KVPullFailed(self._pulls[pull], event.reason, event.message))
            case _:
                pass

    def of(self, name: str, kind: type[Any]) -> list[tuple[Seconds, Any]]:
        """Times and events of one kind from one worker."""
        return [(at, event) for at, who, event in self.log if who == name and isinstance(event, kind)]


def fleet() -> Heap:
    """A prefill worker and a decode worker of equal silicon."""
    producer = worker(backend("p", phases=frozenset({Phase.PREFILL})))
    consumer = worker(backend("d", phases=frozenset({Phase.DECODE}), max_num_seqs=2))
    return Heap([producer, consumer], "d")


def test_one_request_over_two_workers() -> None:
    """Prefill, 9 ms of transfer, four decode steps; token 0 from one, 1 to 4 from the other."""
    heap = fleet()
    heap.at(0.0, "p", prefill(1, prompt=8, output=5, decode_here=False))
    heap.run()
    tokens = [
        (at, who, step.keys, step.indices) for at, who, step in heap.log if isinstance(step, StepTokens)
    ]
    arrival = PREFILL_8 + 0.009
    times = [PREFILL_8]
    for context in (9, 10, 11, 12):
        times.append((times[-1] if len(times) > 1 else arrival) + 0.011 + context * 0.00001)
    assert tokens == [
        (pytest.approx(at), "d" if i else "p", ((1001,) if i else (1,)), (i,)) for i, at in enumerate(times)
    ]
    ((taken_at, taken),) = heap.of("d", KVTaken)
    assert (taken_at, taken.moved_bytes, taken.transfer_s) == (
        pytest.approx(arrival),
        8000,
        pytest.approx(0.009),
    )
    ((_, done),) = heap.of("d", DecodeFinished)
    assert done.output_tokens == 5
    for one in heap.workers.values():
        assert one.snapshot(9.0).kv_used_tokens == 0
        assert one.deadline() is None


def test_many_requests_contend_and_all_end() -> None:
    """20 at once: rooms, slots and the link are all too small for them, and every one ends."""
    heap = fleet()
    for key in range(20):
        heap.at(0.001 * key, "p", prefill(key, prompt=8, output=5, decode_here=False))
    heap.run()
    ends = [event.key for _, event in heap.of("d", DecodeFinished)]
    assert sorted(ends) == [1000 + key for key in range(20)]
    transfers = [event.transfer_s for _, event in heap.of("p", KVServed)]
    assert max(transfers) > 0.0091
    for one in heap.workers.values():
        assert one.snapshot(9.0).kv_used_tokens == 0
    produced = sum(len(step.keys) for _, _, step in heap.log if isinstance(step, StepTokens))
    assert produced == 20 * 5


def test_the_story_repeats_exactly() -> None:
    """The same commands give the same log."""

    def told() -> list[tuple[Seconds, str, WorkerEvent]]:
        heap = fleet()
        for key in range(12):
            heap.at(0.004 * key, "p", prefill(key, prompt=4 + key, output=5, decode_here=False))
        heap.run()
        return heap.log

    assert told() == told()
