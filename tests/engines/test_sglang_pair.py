"""SGLang pairs: both legs at once, in one room; what happens when one fails while the other waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.engines.dialect import Ask
from backends.engines.failures import PhaseError
from backends.engines.sglang import Bootstrap, decode_ask, meeting
from router.config import StaticBackend
from router.core.messages import BackendJoined, DecodeDone, KVMoved, PhaseFailed, PrefillDone, StopPhase
from router.errors import Reason
from router.model import Phase
from tests.engines.fakes_pairs import SglangPair
from tests.engines.pairs import Pair
from tests.engines.rig import (
    Answer,
    Call,
    backend,
    engine_with,
    flow_of,
    linked,
    piece,
    start,
    start_decode,
)
from tests.live_south.scripted import Facts


def _of(config: StaticBackend, name: str, phase: Phase) -> StaticBackend:
    spec = {"models": ["m"], "phases": [phase.value], "kv_layout": "l"}
    return config.model_copy(update={"id": name, "spec": spec})


@asynccontextmanager
async def pair_of(prefill: Answer, decode: Answer, **options: Any) -> AsyncIterator[Pair]:
    """A pair whose engines answer so."""
    facts = Facts()
    async with engine_with(prefill) as first, engine_with(decode) as second:
        one = _of(backend("sglang-pair", first.url, **options), "p", Phase.PREFILL)
        other = _of(backend("sglang-pair", second.url, abort_patience_s=0.2), "d", Phase.DECODE)
        async with linked(facts, one) as prefiller, linked(facts, other) as decoder:
            await facts.wait(BackendJoined, 2)
            yield Pair(facts, (prefiller, decoder), (first, second))


@pytest.mark.parametrize("dp_size", [1, 4])
async def test_both_legs_meet_in_a_room(dp_size: int) -> None:
    """The same request at both, with place and room, and the rank that the room stands for."""
    fake = SglangPair(dp_size=dp_size)
    async with pair_of(fake.prefill, fake.decode, dp_size=dp_size) as pair:
        await pair.begin()
        done: DecodeDone = await pair.facts.wait(DecodeDone)
        await pair.idle()
    assert (pair.sink.said, done.output_tokens) == ("abc", 3)
    assert fake.faults == []
    ((room),) = fake.rooms.values()
    ranks = ("routed_dp_rank", "disagg_prefill_dp_rank")
    bare = [{key: value for key, value in body.items() if key not in ranks} for body in room.bodies]
    assert len(bare) == 2
    assert bare[0] == bare[1], "both engines get the same request"
    assert len(pair.facts.of(KVMoved)) == 1
    assert not pair.facts.of(PhaseFailed)
    assert fake.open_calls == 0


async def test_rooms_are_not_used_twice() -> None:
    """Each attempt of each request has its own."""
    fake = SglangPair()
    async with pair_of(fake.prefill, fake.decode) as pair:
        for number, epoch in enumerate((1, 2, 3)):
            flow, _ = flow_of(pair.facts, "same", text="hello")
            start(pair.prefiller, flow, decode_here=False, epoch=epoch)
            done: PrefillDone = await pair.facts.wait(PrefillDone, number + 1)
            assert done.kv is not None
            start_decode(pair.decoder, flow, done.kv, epoch)
            await pair.facts.wait(DecodeDone, number + 1)
    assert len(fake.rooms) == 3


async def test_prefill_refuses_while_decode_waits() -> None:
    """The caller learns why; decode, which would wait for minutes, is closed."""
    fake = SglangPair()

    async def refuse(call: Call) -> None:
        await call.json({"error": {"message": "too long: maximum context length"}}, 400)

    async with pair_of(refuse, fake.decode) as pair:
        await pair.begin()
        failed: PhaseFailed = await pair.facts.wait(PhaseFailed)
        await _give_up(pair)
    assert (failed.phase, failed.backend) == (Phase.PREFILL, "p")
    assert (failed.reason, failed.retryable) == (Reason.REQUEST_TOO_LARGE, False)
    assert fake.open_calls == 0


@pytest.mark.parametrize("how", ["error in 200", "abort", "cut off", "no stream"])
async def test_prefill_fails_in_its_answer(how: str) -> None:
    """Status 200 is no success: the attempt ends as one that may be made again."""
    fake = SglangPair()

    async def fail(call: Call) -> None:
        match how:
            case "error in 200":
                await call.send({"error": {"message": "boom", "code": 500}})
            case "abort":
                await call.send(piece("", finish="abort"), "[DONE]")
            case "cut off":
                await call.send(piece("a"))
            case _:
                await call.json({"object": "error", "message": "boom", "code": 500})

    async with pair_of(fail, fake.decode) as pair:
        await pair.begin()
        failed: PhaseFailed = await pair.facts.wait(PhaseFailed)
        await _give_up(pair)
    assert (failed.phase, failed.retryable) == (Phase.PREFILL, True)
    assert fake.open_calls == 0


async def test_decode_fails_while_prefill_waits() -> None:
    """Releasing the KV closes prefill's call: it would wait for minutes."""
    fake = SglangPair()

    async def refuse(call: Call) -> None:
        await call.json({"error": {"message": "full"}}, 503)

    async with pair_of(fake.prefill, refuse) as pair:
        await pair.begin()
        failed: PhaseFailed = await pair.facts.wait(PhaseFailed)
        await _give_up(pair)
    assert (failed.phase, failed.reason) == (Phase.DECODE, Reason.QUEUE_FULL)
    assert fake.open_calls == 0


async def test_a_cancelled_request_leaves_nothing() -> None:
    """Both hang in mid-transfer; both calls are closed, decode's after its patience."""

    async def hang(call: Call) -> None:
        await call.hang()

    async with pair_of(hang, hang) as pair:
        await pair.begin()
        first, second = await pair.prefill_engine.call(), await pair.decode_engine.call()
        await _give_up(pair)
        async with asyncio.timeout(10.0):
            await first.gone.wait()
            await second.gone.wait()
        assert not pair.facts.of(PhaseFailed)


async def test_decode_is_told_when_prefill_is_aborted() -> None:
    """The fake's prefill tells its decode, as SGLang does: a failure of the transfer, once nobody listens."""
    fake = SglangPair()
    asked = asyncio.Event()

    async def waiting(call: Call) -> None:
        await asked.wait()
        await fake.decode(call)

    async with pair_of(fake.prefill, waiting) as pair:
        await pair.begin()
        call = await pair.prefill_engine.call()
        assert pair.prefiller.work is not None
        pair.prefiller.work.release_kv(pair.kv, 0.0)
        async with asyncio.timeout(10.0):
            await call.gone.wait()
        asked.set()
        failed: PhaseFailed = await pair.facts.wait(PhaseFailed)
    assert (failed.phase, failed.reason) == (Phase.DECODE, Reason.KV_TRANSFER_FAILED)


async def test_prefill_that_fails_too_late() -> None:
    """Decode has its first token: what becomes of prefill's answer is of no consequence."""
    fake = SglangPair()
    out = asyncio.Event()

    async def late(call: Call) -> None:
        for room in fake.rooms.values():
            room.prefill.set()
        await out.wait()
        call.break_off()
        await call.hang()

    async def decode(call: Call) -> None:
        await call.send(piece("a"))
        await out.wait()
        await call.send(piece("b", finish="length"), "[DONE]")

    async with pair_of(late, decode) as pair:
        await pair.begin()
        await pair.facts.wait(KVMoved)
        out.set()
        await pair.facts.wait(DecodeDone)
        await pair.idle()
    assert pair.sink.said == "ab"
    assert not pair.facts.of(PhaseFailed)


async def test_an_engine_started_for_one_phase() -> None:
    """It cannot do whole requests: the message says what to set."""
    fake = SglangPair()
    async with pair_of(fake.prefill, fake.decode) as pair:
        flow, _ = flow_of(pair.facts, text="hello")
        start(pair.prefiller, flow)
        failed: PhaseFailed = await pair.facts.wait(PhaseFailed)
    assert "spec.phases" in failed.message
    assert not pair.prefill_engine.calls


def test_kv_of_another_engine_is_not_asked_for() -> None:
    """Layouts that were given the same name by mistake; and IPv6 hosts are bracketed once."""
    for connector in (b"", b"{}", b"[1]", b"\xff"):
        with pytest.raises(PhaseError, match="kv_layout"):
            decode_ask(Ask("/", {}), connector)
    for host in ("fd00::1", "[fd00::1]"):
        assert json.loads(meeting(Bootstrap(host, 1), 7))["host"] == "[fd00::1]"


async def _give_up(pair: Pair) -> None:
    """As the core does when an attempt ends before its KV has moved."""
    assert pair.prefiller.work is not None
    assert pair.decoder.work is not None
    pair.flow.close()
    pair.decoder.work.stop_phase(StopPhase(pair.flow.id, 1, "d"))
    pair.prefiller.work.release_kv(pair.kv, 0.0)
    await pair.idle()
