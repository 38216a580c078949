"""What the suite makes of frames that no worker should send."""

from __future__ import annotations

import math
from typing import Any

import pytest
from polyphase.v1 import common_pb2, worker_pb2

from backends.conformance import commands
from backends.conformance.journal import Journal, Rule
from backends.conformance.lane import Lane
from backends.conformance.verdicts import Target
from tests.shell.rig import request

Frame = worker_pb2.LaneResponse
KV = common_pb2.KVHandle(producer="w")
HERE, PEER, DECODE = 1, 2, 3


class NoCall:
    """Takes everything."""

    async def write(self, _: bytes) -> None:
        """Drop it."""


def event(seq: int, **kind: Any) -> worker_pb2.PhaseEvent:
    """An event."""
    return worker_pb2.PhaseEvent(seq=seq, **kind)


def tokens(seq: int, *indices: int) -> Frame:
    """Tokens of one sequence."""
    return Frame(seqs=[seq] * len(indices), tokens=[9] * len(indices), indices=indices)


def opened(seq: int) -> Frame:
    """PrefillDone or KVMoved."""
    if seq == DECODE:
        return Frame(events=[event(seq, kv_moved=worker_pb2.KVMoved(bytes=1))])
    done = worker_pb2.PrefillDone(kv=KV if seq == PEER else None)
    return Frame(events=[event(seq, prefill_done=done)])


def ended(seq: int, count: int, **cost: float) -> Frame:
    """DecodeDone."""
    done = worker_pb2.DecodeDone(output_tokens=count, cost=worker_pb2.PhaseCost(**cost))
    return Frame(events=[event(seq, decode_done=done)])


def loads(*steps: int) -> list[Frame]:
    """Reports."""
    return [Frame(load=common_pb2.LoadReport(steps=count)) for count in steps]


async def told(*frames: Frame) -> dict[Rule, int]:
    """What is broken after frames on a lane that has started three sequences."""
    journal = Journal()
    lane = Lane(NoCall(), Target("w", "nowhere:1"), journal, 1.0)
    made = request("r")
    await lane.send(
        commands.prefill(HERE, made, decode_here=True),
        commands.prefill(PEER, made),
        commands.decode(DECODE, made, KV, 1),
    )
    for frame in frames:
        lane._take(frame)
    return dict(journal.broken)


@pytest.mark.parametrize(
    ("frames", "broken"),
    [
        ([opened(HERE), tokens(HERE, 0, 1), tokens(HERE, 2), ended(HERE, 3)], {}),
        ([opened(DECODE), tokens(DECODE, 1, 2), ended(DECODE, 3)], {}),
        ([opened(PEER)], {}),
        ([Frame(seqs=[HERE], tokens=[1, 2], indices=[0])], {Rule.COLUMNS: 1, Rule.ORDER: 1}),
        ([Frame(events=[event(HERE)])], {Rule.COLUMNS: 1}),
        ([tokens(77, 0)], {Rule.COLUMNS: 1}),
        ([opened(HERE), tokens(HERE, 0, 0, 1)], {Rule.TOKENS: 1}),
        ([opened(HERE), tokens(HERE, 0, 2, 3)], {Rule.TOKENS: 1}),
        ([opened(DECODE), tokens(DECODE, 0, 1)], {Rule.TOKENS: 1}),
        ([tokens(HERE, 0), opened(HERE)], {Rule.ORDER: 1}),
        ([tokens(PEER, 0)], {Rule.ORDER: 1}),
        ([ended(DECODE, 1)], {Rule.ORDER: 1}),
        ([opened(HERE), tokens(HERE, 0), ended(HERE, 2)], {Rule.ORDER: 1}),
        ([opened(HERE), tokens(HERE, 0), ended(HERE, 1), ended(HERE, 1)], {Rule.ORDER: 1}),
        ([opened(HERE), tokens(HERE, 0), ended(HERE, 1), tokens(HERE, 1)], {Rule.ORDER: 1}),
        ([opened(DECODE), opened(DECODE)], {Rule.ORDER: 1}),
        ([Frame(events=[event(HERE, kv_moved=worker_pb2.KVMoved())])], {Rule.ORDER: 1}),
        ([Frame(events=[event(HERE, prefill_done=worker_pb2.PrefillDone(kv=KV))])], {Rule.ORDER: 1}),
        ([Frame(events=[event(PEER, prefill_done=worker_pb2.PrefillDone())])], {Rule.ORDER: 1}),
        ([opened(HERE), tokens(HERE, 0), ended(HERE, 1, device_s=-1.0)], {Rule.COSTS: 1}),
        ([opened(HERE), tokens(HERE, 0), ended(HERE, 1, energy_j=math.nan)], {Rule.COSTS: 1}),
        (loads(3, 3, 4), {}),
        (loads(3, 2), {Rule.COUNTERS: 1}),
        ([Frame(load=common_pb2.LoadReport(energy_j=-1.0))], {Rule.COUNTERS: 1}),
    ],
)
async def test_frames(frames: list[Frame], broken: dict[Rule, int]) -> None:
    """Each slip is noted once, under its rule."""
    assert await told(*frames) == broken


async def test_what_comes_after_a_stop_is_not_judged() -> None:
    """Stops and ends cross."""
    journal = Journal()
    lane = Lane(NoCall(), Target("w", "nowhere:1"), journal, 1.0)
    await lane.send(commands.prefill(HERE, request("r"), decode_here=True), commands.stop(HERE))
    for frame in (opened(HERE), tokens(HERE, 0, 5), ended(HERE, 9)):
        lane._take(frame)
    assert not journal.broken
