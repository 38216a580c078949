"""Answers in text: the same index discipline as for ids, and runs that share messages only where they may."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from polyphase.v1 import inference_pb2

from router.core.messages import DecodeDone, Fact, FirstToken, PhaseFailed
from router.errors import Reason
from router.live.flow import Flow
from router.live.generate import GenerateCall
from router.live.outlet import Writer
from router.live.runs import MAX_TEXT, Run
from router.model import Phase, Request
from tests.live.rig import report


class Told:
    """A sink and a listener that keep everything."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.texts: list[tuple[int, str, tuple[int, ...], int]] = []

    def text(self, epoch: int, first_index: int, text: str, ids: Any, count: int) -> None:
        """Keep it."""
        self.texts.append((first_index, text, tuple(ids), count))

    def tokens(self, epoch: int, first_index: int, ids: Any) -> None:
        """Not used."""

    def finish(self, report: Any) -> None:
        """Not used."""

    def fail(self, action: Any) -> None:
        """Not used."""


def _flow() -> tuple[Flow, Told]:
    told = Told()
    request = Request("r1", "m", prompt_tokens=4, max_new_tokens=4)
    flow = Flow(request, inference_pb2.GenerateRequest(), told, told.facts.append)
    flow.begin(1, "b", Phase.PREFILL, 10.0)
    return flow, told


def test_text_moves_the_index_by_its_tokens() -> None:
    """With ids by their number, without by the pieces; the first token is told once."""
    flow, told = _flow()
    flow.accept_text(1, 0, "ab", (7, 8), 2, 11.0)
    flow.accept_text(1, 2, "c", (), 1, 12.0)
    flow.accept_text(1, 3, "!", (), 0, 13.0)
    assert told.texts == [(0, "ab", (7, 8), 2), (2, "c", (), 1), (3, "!", (), 0)]
    assert told.facts == [FirstToken("r1", 1)]
    assert (flow.next_index, flow.last_progress, flow.counts.delivered) == (3, 13.0, 3)


def test_text_of_another_attempt_or_twice_is_dropped() -> None:
    """As with ids."""
    flow, told = _flow()
    flow.accept_text(2, 0, "x", (), 1, 11.0)
    flow.accept_text(1, 0, "a", (), 1, 11.0)
    flow.accept_text(1, 0, "a", (), 1, 11.0)
    assert [text for _, text, _, _ in told.texts] == ["a"]
    assert flow.counts.duplicated == 2


def test_a_gap_in_text_breaks_the_contract() -> None:
    """The client must not see half a sentence."""
    flow, told = _flow()
    flow.accept_text(1, 1, "b", (), 1, 11.0)
    (failed,) = told.facts
    assert isinstance(failed, PhaseFailed)
    assert failed.reason is Reason.BACKEND_BROKE_CONTRACT
    assert not told.texts


def test_text_beyond_the_limit_ends_the_request() -> None:
    """It cannot be cut at a token, so all of it goes."""
    flow, told = _flow()
    flow.accept_text(1, 0, "abc", (), 3, 11.0)
    flow.accept_text(1, 3, "de", (), 2, 11.0)
    assert isinstance(told.facts[-1], DecodeDone)
    assert told.facts[-1].overran
    assert [text for _, text, _, _ in told.texts] == ["abc"]


@pytest.mark.parametrize(
    ("epoch", "ids", "count", "wanted"),
    [(1, (3,), 1, True), (1, (), 0, True), (1, (), 1, False), (2, (3,), 1, False)],
)
def test_a_run_is_of_one_kind(epoch: int, ids: tuple[int, ...], count: int, wanted: bool) -> None:
    """Its indices could not be told otherwise."""
    run = Run(1, 0, [])
    run.add("a", (1,), 1)
    assert run.takes(epoch, ids, count) is wanted


def test_a_run_of_text_has_a_bound() -> None:
    """A reader that lags must not get a message it cannot take."""
    run = Run(1, 0, [])
    assert run.takes(1, (), 1)
    run.add("x" * (MAX_TEXT + 1), (), 1)
    assert not run.takes(1, (), 1)


class _Context:
    """A call that keeps what is written."""

    def __init__(self) -> None:
        self.messages: list[inference_pb2.GenerateResponse] = []

    async def write(self, raw: bytes) -> None:
        """Keep a message."""
        self.messages.append(inference_pb2.GenerateResponse.FromString(raw))


async def test_what_waits_shares_messages_by_kind() -> None:
    """Ids alone, ids with text, and text alone, in order and with their indices; the account comes last."""
    call = GenerateCall(asyncio.get_running_loop(), explain=False)
    call.tokens(1, 0, [5])
    call.tokens(1, 1, [6])
    call.text(1, 2, "c", (7,), 1)
    call.text(1, 3, "d", (), 1)
    call.text(1, 4, "e", (), 1)
    call.tokens(1, 5, [8])
    call.finish(report(Request("r1", "m", 4, 8), 6, None))
    context = _Context()
    writer = Writer(context, 10.0, asyncio.get_running_loop())
    await call.pump(writer)
    writer.close()
    chunks = [
        (m.tokens.first_index, list(m.tokens.ids), m.tokens.text, m.tokens.pieces) for m in context.messages
    ]
    assert chunks == [(0, [5, 6, 7], "c", 0), (3, [], "de", 2), (5, [8], "", 0)]
    assert [m.HasField("finished") for m in context.messages] == [False, False, True]
