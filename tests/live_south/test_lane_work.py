"""What a lane makes of commands and frames, without a network."""

from __future__ import annotations

import math

import pytest
from polyphase.v1 import common_pb2, worker_pb2

from router.core.messages import (
    MAX_BLOCKS_A_FACT,
    BackendReported,
    DecodeDone,
    FirstToken,
    KVBlocksChanged,
    KVMoved,
    PhaseFailed,
    PrefillDone,
    StartDecode,
    StartPrefill,
    StopPhase,
)
from router.errors import Reason
from router.live.flow import Flow, TokenCounts
from router.live.lane_work import MAX_COMMAND_BYTES, BrokenFrameError, LaneWork, Peer
from router.model import KVHandle, Phase
from tests.live_south.scripted import Facts, decode_done, events, flow, kv_moved, load, prefill_done, tokens


class Strays:
    """Hooks that keep what they hear."""

    def __init__(self) -> None:
        self.tokens: list[tuple[str, str, int]] = []
        self.reports = 0

    def stray_tokens(self, backend: str, fault: str, count: int = 1) -> None:
        """Keep."""
        self.tokens.append((backend, fault, count))

    def bad_report(self, backend: str) -> None:
        """Count."""
        self.reports += 1


class Desk:
    """A LaneWork with everything around it in the test's hands."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.strays = Strays()
        self.counts = TokenCounts()
        self.sent: list[worker_pb2.Command] = []
        peer = Peer("w1", "boot-1", "10.0.0.1:7610")
        self.work = LaneWork(peer, self.facts.tell, self._send, 10.0, self.strays, self.counts)

    def _send(self, raw: bytes) -> None:
        self.sent.extend(worker_pb2.LaneRequest.FromString(raw).commands)

    def sent_of(self, kind: str) -> list[worker_pb2.Command]:
        """Commands of one kind."""
        return [command for command in self.sent if command.WhichOneof("command") == kind]

    def prefill(self, name: str = "r1", decode_here: bool = True, epoch: int = 1) -> tuple[Flow, int]:
        """Start a prefill; the flow and its seq."""
        live = flow(self.facts, name, counts=self.counts)
        live.begin(epoch, "w1", Phase.DECODE if decode_here else Phase.PREFILL, 100.0)
        self.work.start_prefill(StartPrefill(name, epoch, "w1", decode_here), live)
        return live, self.sent[-1].start_prefill.seq

    def decode(self, name: str = "r1", epoch: int = 1) -> tuple[Flow, int]:
        """Start a decode after a handoff; the flow and its seq."""
        live = flow(self.facts, name, counts=self.counts)
        live.begin(epoch, "w1", Phase.DECODE, 100.0)
        kv = KVHandle("w0", "boot-0", name, epoch, "", 4, 0, expires_at=130.0)
        self.work.start_decode(StartDecode(name, epoch, "w1", kv), live, 100.0)
        return live, self.sent[-1].start_decode.seq


@pytest.fixture
def desk() -> Desk:
    """A fresh desk."""
    return Desk()


def handle(**changes: object) -> common_pb2.KVHandle:
    """The KV that worker w1 computed for request r1."""
    values = {"producer": "w1", "incarnation": "boot-1", "request_id": "r1", "epoch": 1, "lease_s": 30.0}
    return common_pb2.KVHandle(**{**values, **changes})


def test_both_phases_here(desk: Desk) -> None:
    """One seq covers prefill and decode, and every event becomes its fact in order."""
    live, seq = desk.prefill()
    desk.work.take(events(prefill_done(seq)), 100.1)
    desk.work.take(tokens(seq, 0, [5]), 100.2)
    last = tokens(seq, 1, [6])
    last.events.append(decode_done(seq, 2))
    desk.work.take(last, 100.3)
    assert [type(fact) for fact in desk.facts.all] == [PrefillDone, FirstToken, DecodeDone]
    assert live.sink.ids == [5, 6]
    assert desk.facts.all[0].kv is None
    assert desk.facts.all[-1].output_tokens == 2
    assert len(desk.work) == 0


def test_first_token_and_prefill_done_in_one_frame(desk: Desk) -> None:
    """PrefillDone comes before the tokens of its frame when decode goes on here."""
    _, seq = desk.prefill()
    frame = tokens(seq, 0, [5])
    frame.events.append(prefill_done(seq))
    desk.work.take(frame, 100.1)
    assert [type(fact) for fact in desk.facts.all] == [PrefillDone, FirstToken]


def test_split_prefill_yields_a_handle(desk: Desk) -> None:
    """The handle gets an expiry on our clock and the lane's address; its first token comes before it."""
    live, seq = desk.prefill(decode_here=False)
    frame = tokens(seq, 0, [5])
    frame.events.append(prefill_done(seq, handle()))
    desk.work.take(frame, 100.0)
    assert [type(fact) for fact in desk.facts.all] == [FirstToken, PrefillDone]
    kv = desk.facts.all[-1].kv
    assert (kv.expires_at, kv.source, kv.tokens) == (130.0, "10.0.0.1:7610", 0)
    assert live.next_index == 1


def test_decode_after_a_handoff(desk: Desk) -> None:
    """The command carries the lease that is left and the first index; KVMoved and DecodeDone follow."""
    _, seq = desk.decode()
    command = desk.sent[-1].start_decode
    assert (command.first_index, command.kv.lease_s) == (0, 30.0)
    desk.work.take(events(kv_moved(seq)), 100.1)
    desk.work.take(tokens(seq, 0, [1, 2, 3]), 100.2)
    desk.work.take(events(decode_done(seq, 3)), 100.3)
    assert [type(fact) for fact in desk.facts.all] == [KVMoved, FirstToken, DecodeDone]


@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": "r2"},
        {"epoch": 2},
        {"producer": "w9"},
        {"incarnation": "boot-0"},
        {"lease_s": math.nan},
    ],
)
def test_a_foreign_handle_is_refused(desk: Desk, changes: dict[str, object]) -> None:
    """A handle of another request, epoch, producer or boot never reaches a decode worker."""
    _, seq = desk.prefill(decode_here=False)
    desk.work.take(events(prefill_done(seq, handle(**changes))), 100.1)
    [fact] = desk.facts.all
    assert isinstance(fact, PhaseFailed)
    assert (fact.reason, fact.phase, fact.retryable) == (Reason.BACKEND_BROKE_CONTRACT, Phase.PREFILL, True)
    assert desk.sent_of("stop_phase")


def test_duplicates_are_dropped_and_counted(desk: Desk) -> None:
    """A token that came before does not reach the client again."""
    live, seq = desk.prefill()
    desk.work.take(events(prefill_done(seq)), 100.1)
    desk.work.take(tokens(seq, 0, [5, 6]), 100.2)
    desk.work.take(tokens(seq, 0, [5, 6, 7]), 100.3)
    assert live.sink.ids == [5, 6, 7]
    assert desk.strays.tokens == [("w1", "duplicate", 2)]


def test_a_gap_fails_the_phase(desk: Desk) -> None:
    """A skipped index ends the phase, and what follows is dropped."""
    live, seq = desk.prefill()
    desk.work.take(events(prefill_done(seq)), 100.1)
    desk.work.take(tokens(seq, 0, [5]), 100.2)
    desk.work.take(tokens(seq, 2, [7]), 100.3)
    desk.work.take(tokens(seq, 3, [8]), 100.4)
    desk.work.take(events(decode_done(seq, 4)), 100.5)
    assert live.sink.ids == [5]
    failed = desk.facts.of(PhaseFailed)
    assert [fact.reason for fact in failed] == [Reason.BACKEND_BROKE_CONTRACT]
    assert desk.facts.of(DecodeDone) == []
    assert ("w1", "gap", 1) in desk.strays.tokens


def test_a_short_count_is_a_gap(desk: Desk) -> None:
    """DecodeDone must name as many tokens as came; otherwise some were lost on the way."""
    _, seq = desk.prefill()
    desk.work.take(events(prefill_done(seq)), 100.1)
    desk.work.take(tokens(seq, 0, [5]), 100.2)
    desk.work.take(events(decode_done(seq, 2)), 100.3)
    assert desk.facts.all[-1].reason is Reason.BACKEND_BROKE_CONTRACT
    assert len(desk.work) == 0


def test_an_overrun_is_cut_off(desk: Desk) -> None:
    """Tokens beyond max_new_tokens never reach the client; the core hears that the worker overran."""
    live, seq = desk.prefill()
    desk.work.take(events(prefill_done(seq)), 100.1)
    desk.work.take(tokens(seq, 0, list(range(12))), 100.2)
    assert live.sink.ids == list(range(8))
    [done] = desk.facts.of(DecodeDone)
    assert done.overran


def test_zombies_are_dropped_and_stopped_again(desk: Desk) -> None:
    """After a stop, late tokens are dropped; a worker that goes on after a sweep is told once more."""
    live, seq = desk.prefill()
    desk.work.stop_phase(StopPhase("r1", 1, "w1"))
    assert len(desk.sent_of("stop_phase")) == 1
    desk.work.take(tokens(seq, 0, [1]), 100.1)
    assert len(desk.sent_of("stop_phase")) == 1
    desk.work.sweep(101.0)
    desk.work.take(tokens(seq, 1, [2]), 101.1)
    desk.work.take(tokens(seq, 2, [3]), 101.2)
    assert len(desk.sent_of("stop_phase")) == 2
    assert live.sink.ids == []
    assert desk.strays.tokens == [("w1", "zombie", 1)] * 3


def test_stopping_twice_or_the_unknown_is_quiet(desk: Desk) -> None:
    """A stop for work that is over sends nothing."""
    desk.prefill()
    desk.work.stop_phase(StopPhase("r1", 1, "w1"))
    desk.work.stop_phase(StopPhase("r1", 1, "w1"))
    desk.work.stop_phase(StopPhase("r9", 1, "w1"))
    assert len(desk.sent_of("stop_phase")) == 1


def test_kv_of_a_stopped_prefill_is_released(desk: Desk) -> None:
    """KV that was ready when the stop was under way does not wait for its lease to run out."""
    _, seq = desk.prefill(decode_here=False)
    desk.work.stop_phase(StopPhase("r1", 1, "w1"))
    desk.work.take(events(prefill_done(seq, handle())), 100.1)
    [release] = desk.sent_of("release_kv")
    assert release.release_kv.kv.request_id == "r1"
    assert desk.facts.all == []


def test_work_of_a_flow_that_moved_on_is_stopped(desk: Desk) -> None:
    """A sequence whose flow is in another epoch, or over, is stopped by the next sweep at the latest."""
    live, _ = desk.prefill()
    live.close()
    desk.work.sweep(101.0)
    assert len(desk.sent_of("stop_phase")) == 1
    assert len(desk.work) == 0
    assert desk.facts.all == []


def test_a_decode_without_progress_has_stalled(desk: Desk) -> None:
    """After the patience of a decode without a token the phase fails and the worker is told to stop."""
    _, seq = desk.prefill()
    desk.work.sweep(150.0)
    assert desk.facts.all == []  # still in prefill, which the core times
    desk.work.take(events(prefill_done(seq)), 150.0)
    desk.work.take(tokens(seq, 0, [1]), 155.0)
    desk.work.sweep(164.9)
    assert desk.facts.of(PhaseFailed) == []
    desk.work.sweep(165.1)
    [failed] = desk.facts.of(PhaseFailed)
    assert (failed.reason, failed.phase) == (Reason.BACKEND_STALLED, Phase.DECODE)
    assert len(desk.sent_of("stop_phase")) == 1


def test_a_handoff_is_the_cores_to_time(desk: Desk) -> None:
    """Before the KV has moved the lane does not judge; from then on tokens are due."""
    _, seq = desk.decode()
    desk.work.sweep(500.0)
    assert desk.facts.all == []
    desk.work.take(events(kv_moved(seq)), 500.0)
    desk.work.sweep(500.5)
    desk.work.sweep(511.0)
    assert desk.facts.all[-1].reason is Reason.BACKEND_STALLED


def test_a_decode_that_waits_at_a_busy_worker_has_not_stalled(desk: Desk) -> None:
    """While the worker reports waiting work and its busy time grows, a preempted decode is left alone."""
    _, seq = desk.prefill()
    desk.work.take(events(prefill_done(seq)), 100.0)
    for step in range(60):
        now = 100.0 + step
        desk.work.take(load(waiting=1, busy_decode_s=float(step)), now)
        desk.work.sweep(now)
    assert desk.facts.of(PhaseFailed) == []
    for step in range(60, 90):
        desk.work.take(load(waiting=1, busy_decode_s=60.0), 100.0 + step)
        desk.work.sweep(100.0 + step)
    assert [fact.reason for fact in desk.facts.of(PhaseFailed)] == [Reason.BACKEND_STALLED]


def test_a_busy_worker_with_nothing_waiting_has_no_excuse(desk: Desk) -> None:
    """It works for others, and forgot this one."""
    _, seq = desk.prefill()
    desk.work.take(events(prefill_done(seq)), 100.0)
    for step in range(13):
        desk.work.take(load(waiting=0, running=2, busy_decode_s=float(step)), 100.0 + step)
        desk.work.sweep(100.0 + step)
    assert len(desk.facts.of(PhaseFailed)) == 1


@pytest.mark.parametrize(
    ("proto", "reason", "retryable"),
    [
        (worker_pb2.PhaseFailed.REASON_INVALID, Reason.INVALID_REQUEST, False),
        (worker_pb2.PhaseFailed.REASON_KV_STALE, Reason.KV_STALE, True),
        (worker_pb2.PhaseFailed.REASON_DRAINING, Reason.DRAINING, True),
        (worker_pb2.PhaseFailed.REASON_INTERNAL, Reason.BACKEND_FAILED, True),
        (99, Reason.BACKEND_FAILED, True),
    ],
)
def test_failures_are_mapped(desk: Desk, proto: int, reason: Reason, retryable: bool) -> None:
    """A worker's reason becomes ours; only an invalid request is hopeless elsewhere."""
    _, seq = desk.prefill()
    failed = worker_pb2.PhaseFailed(reason=proto, message="why")
    desk.work.take(events(worker_pb2.PhaseEvent(seq=seq, failed=failed)), 100.1)
    [fact] = desk.facts.all
    assert (fact.reason, fact.retryable, fact.message, fact.backend) == (reason, retryable, "why", "w1")


def test_events_out_of_order_break_the_contract(desk: Desk) -> None:
    """A decode that ends before its KV came, or before its prefill, is not believed."""
    _, seq = desk.decode()
    desk.work.take(events(decode_done(seq, 0)), 100.1)
    _, seq = desk.prefill("r2")
    desk.work.take(events(decode_done(seq, 0)), 100.2)
    _, seq = desk.prefill("r3")
    desk.work.take(events(kv_moved(seq)), 100.3)
    _, seq = desk.prefill("r4", decode_here=False)
    desk.work.take(events(prefill_done(seq)), 100.4)
    _, seq = desk.prefill("r5")
    desk.work.take(events(worker_pb2.PhaseEvent(seq=seq)), 100.5)
    assert [fact.reason for fact in desk.facts.all] == [Reason.BACKEND_BROKE_CONTRACT] * 5
    assert len(desk.work) == 0


def test_columns_of_different_length_break_the_frame(desk: Desk) -> None:
    """A token without an index cannot be placed; the whole frame is refused."""
    _, seq = desk.prefill()
    with pytest.raises(BrokenFrameError):
        desk.work.take(worker_pb2.LaneResponse(seqs=[seq], tokens=[1]), 100.1)


def test_changes_of_the_prefix_cache_become_facts_of_this_boot(desk: Desk) -> None:
    """Frames without such say nothing; one with too many is refused, since a fact must take bounded time."""
    desk.work.take(load(running=1), 100.0)
    blocks = worker_pb2.KVBlocks(stored=[1, 2**64 - 1], removed=[7], cleared=True)
    desk.work.take(worker_pb2.LaneResponse(kv_blocks=blocks), 100.1)
    assert desk.facts.of(KVBlocksChanged) == [KVBlocksChanged("w1", "boot-1", (1, 2**64 - 1), (7,), True)]
    for much in ({"stored": range(MAX_BLOCKS_A_FACT + 1)}, {"removed": range(MAX_BLOCKS_A_FACT + 1)}):
        with pytest.raises(BrokenFrameError):
            desk.work.take(worker_pb2.LaneResponse(kv_blocks=worker_pb2.KVBlocks(**much)), 100.2)


def test_load_reports_are_thinned(desk: Desk) -> None:
    """At most one report in 50 ms becomes a fact."""
    for step in range(10):
        desk.work.take(load(running=step), 100.0 + step * 0.01)
    assert [fact.snapshot.running for fact in desk.facts.of(BackendReported)] == [0, 5]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, -math.inf])
def test_impossible_loads_are_dropped_and_counted(desk: Desk, value: float) -> None:
    """A report with a number that cannot be is dropped; the next good one counts."""
    desk.work.take(load(busy_decode_s=value), 100.0)
    desk.work.take(load(energy_j=value), 100.001)
    desk.work.take(load(running=3), 100.002)
    assert [fact.snapshot.running for fact in desk.facts.all] == [3]
    assert desk.strays.reports == 2


def test_a_prompt_too_large_for_one_message_fails_alone(desk: Desk) -> None:
    """A command that the worker's message limit would refuse must not take the lane with it."""
    live = flow(desk.facts)
    live.payload.text = "x" * (MAX_COMMAND_BYTES + 1)
    live.begin(1, "w1", Phase.PREFILL, 100.0)
    desk.work.start_prefill(StartPrefill("r1", 1, "w1", False), live)
    [fact] = desk.facts.all
    assert (fact.reason, fact.retryable) == (Reason.REQUEST_TOO_LARGE, False)
    assert desk.sent == []
    assert len(desk.work) == 0


def test_seqs_are_never_reused_on_a_lane(desk: Desk) -> None:
    """Every command has a seq of its own."""
    seqs = {desk.prefill(f"r{i}")[1] for i in range(100)}
    assert len(seqs) == 100
