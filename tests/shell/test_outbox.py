"""Frames gather while a write is in flight, carry the load in time, and are bounded."""

from collections.abc import Callable
from itertools import pairwise

from polyphase.v1 import common_pb2, worker_pb2

from backends.shell import outbox as limits
from backends.shell.outbox import Outbox


def box() -> tuple[Outbox, Callable[[float], worker_pb2.LaneResponse | None]]:
    """An outbox whose loads say how often they were asked for, and its next frame, decoded."""
    asked = 0

    def load(_: float) -> common_pb2.LoadReport:
        nonlocal asked
        asked += 1
        return common_pb2.LoadReport(running=asked)

    made = Outbox(load)

    def take(now: float) -> worker_pb2.LaneResponse | None:
        raw = made.take(now)
        return None if raw is None else worker_pb2.LaneResponse.FromString(raw)

    return made, take


def test_steps_that_wait_share_a_frame() -> None:
    """Two steps that came while the writer was busy go out as one frame, in order."""
    made, take = box()
    for index in (0, 1):
        for seq in (1, 2):
            made.token(seq, 100 * seq + index, index)
    made.event(worker_pb2.PhaseEvent(seq=1))
    frame = take(0.0)
    assert frame is not None
    assert list(frame.seqs) == [1, 2, 1, 2]
    assert list(frame.tokens) == [100, 200, 101, 201]
    assert list(frame.indices) == [0, 0, 1, 1]
    assert [event.seq for event in frame.events] == [1]
    assert not made.pending and take(0.0) is None


def test_loads_are_neither_too_frequent_nor_too_rare() -> None:
    """Under work a load goes with at most one frame in 50 ms; an idle lane sends one by itself."""
    made, take = box()
    sent: list[float] = []
    for tick in range(200):
        now = tick / 1024  # exact in binary
        made.token(1, 5, tick)
        frame = take(now)
        assert frame is not None
        if frame.HasField("load"):
            sent.append(now)
    assert len(sent) == 4 and sent[0] == 0.0
    assert all(later - earlier >= 0.05 for earlier, later in pairwise(sent))
    assert not made.load_due(0.3) and take(0.3) is None
    assert made.load_due(0.36)
    idle = take(0.36)
    assert idle is not None and idle.HasField("load") and not idle.seqs


def test_frames_stay_under_the_message_limit() -> None:
    """The largest frame of tokens and the largest frame of events fit into a message of 4 MiB."""
    made, _ = box()
    top = 2**32 - 1
    for _ in range(limits.MAX_FRAME_TOKENS + 1):
        made.token(top, top, top)
    failed = worker_pb2.PhaseFailed(message="x" * 500)
    for _ in range(limits.MAX_FRAME_EVENTS + 1):
        made.event(worker_pb2.PhaseEvent(seq=top, failed=failed))
    sizes = []
    while made.pending:
        frame = made.take(0.0)
        assert frame is not None
        sizes.append(len(frame))
    assert len(sizes) == 3
    assert max(sizes) < 1 << 20


def test_events_never_overtake_tokens() -> None:
    """An event that is added after many tokens is in the last frame of them, not in an earlier one."""
    made, take = box()
    for index in range(limits.MAX_FRAME_TOKENS + 1):
        made.token(1, 1, index)
    made.event(worker_pb2.PhaseEvent(seq=1))
    first, second = take(0.0), take(0.0)
    assert first is not None and second is not None
    assert not first.events and len(second.events) == 1


def test_a_router_that_does_not_read_fills_it() -> None:
    """What waits is counted, so that a stalled router costs bounded memory."""
    made, _ = box()
    for index in range(limits.MAX_PENDING_TOKENS):
        made.token(1, 1, index)
    assert not made.full
    made.token(1, 1, 0)
    assert made.full
