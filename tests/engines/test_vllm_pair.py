"""Requests split over two engines: the fields of each leg, and every exit from the handoff."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from backends.engines.failures import PhaseError
from backends.engines.nixl import MAX_PARAMS_BYTES, Hosts, connector_of
from router.core.messages import DecodeDone, FirstToken, KVMoved, PhaseFailed, PrefillDone, StopPhase
from router.errors import Reason
from router.model import FinishReason, KVHandle
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
    three,
    usage,
)
from tests.live_south.scripted import Facts

PARAMS: dict[str, Any] = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[12, 13]],
    "remote_engine_id": "b7",
    "remote_request_id": "cmpl-1",
    "remote_host": "10.0.0.5",
    "remote_port": 5600,
    "tp_size": 4,
    "something_new": {"kept": None},
}


def _prefilled(finish: str = "length", params: Any = PARAMS) -> Answer:
    async def answer(call: Call) -> None:
        choice = {"index": 0, "text": "a", "token_ids": [11], "finish_reason": finish}
        counts = {"prompt_tokens": 3, "completion_tokens": 1}
        await call.json({"choices": [choice], "usage": counts, "kv_transfer_params": params})

    return answer


def _handle(connector: bytes = b"{}") -> KVHandle:
    return KVHandle("p", "i", "r1", 1, "l", 3, 0, 1e9, connector=connector)


async def test_the_first_leg() -> None:
    """One token, not streamed, its KV kept; what the engine says of it is relayed as it is."""
    facts = Facts()
    async with engine_with(_prefilled()) as engine:
        async with linked(facts, backend("vllm-nixl", engine.url, lease_s=20.0)) as lane:
            before = asyncio.get_running_loop().time()
            flow, sink = flow_of(facts)
            flow.payload.sampling.min_new_tokens = 2
            start(lane, flow, decode_here=False)
            done: PrefillDone = await facts.wait(PrefillDone)
            after = asyncio.get_running_loop().time()
    assert done.kv is not None
    assert json.loads(done.kv.connector) == PARAMS
    assert (done.kv.producer, done.kv.request_id, done.kv.epoch, done.kv.tokens) == ("e1", "r1", 1, 3)
    assert done.kv.incarnation
    assert before + 18.0 < done.kv.expires_at < after + 20.0, "it expires before the engine's lease does"
    body = engine.calls[0].body
    wanted = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None}
    assert wanted.items() <= body["kv_transfer_params"].items()
    assert (body["max_tokens"], body["stream"], body["prompt"]) == (1, False, [5, 6, 7])
    assert not {"stream_options", "min_tokens", "max_completion_tokens"} & body.keys()
    assert sink.ids == [], "its token is computed again by decode"


async def test_the_second_leg() -> None:
    """The whole request with the parameters as they came; the first token says that the KV moved."""
    facts = Facts()
    async with engine_with(three) as engine, linked(facts, backend("vllm-nixl", engine.url)) as lane:
        flow, sink = flow_of(facts)
        start_decode(lane, flow, _handle(json.dumps(PARAMS).encode()))
        await facts.wait(DecodeDone)
        kinds = [type(fact) for fact in facts.all if isinstance(fact, KVMoved | FirstToken | DecodeDone)]
    assert kinds == [KVMoved, FirstToken, DecodeDone]
    body = engine.calls[0].body
    assert body["kv_transfer_params"] == PARAMS
    assert (body["max_tokens"], body["stream"]) == (8, True)
    assert sink.ids == [11, 12, 13]


async def test_both_legs_have_one_name() -> None:
    """By it the two engines' logs can be read together; clients' ids are not fit for a header."""
    facts = Facts()
    odd = "r\u2028 ä:1"
    async with engine_with(_prefilled()) as engine, linked(facts, backend("vllm-nixl", engine.url)) as lane:
        flow, _ = flow_of(facts, odd)
        start(lane, flow, decode_here=False)
        await facts.wait(PrefillDone)
        engine.answer = three
        start_decode(lane, flow, _handle())
        await facts.wait(DecodeDone)
    names = [call.request.headers["X-Request-Id"] for call in engine.calls]
    assert names[0] == names[1]
    assert names[0].isascii()


async def test_decode_bound_to_where_prefill_was() -> None:
    """An engine does not pull from itself: it does the whole request, and lets go of the KV."""
    facts = Facts()
    async with engine_with(_prefilled()) as engine, engine_with(_refuse_release) as decoder:
        config = backend("vllm-nixl", engine.url, release_through=decoder.url)
        async with linked(facts, config) as lane:
            flow, sink = flow_of(facts)
            start(lane, flow, decode_here=False)
            done: PrefillDone = await facts.wait(PrefillDone)
            assert done.kv is not None
            engine.answer = three
            start_decode(lane, flow, done.kv)
            await facts.wait(DecodeDone)
            await decoder.call()
    assert "kv_transfer_params" not in engine.calls[1].body
    assert sink.ids == [11, 12, 13]


@pytest.mark.parametrize("decode_here", [True, False])
async def test_a_request_of_one_token_is_not_split(decode_here: bool) -> None:
    """There is nothing to decode: its KV would be kept for nobody."""
    facts = Facts()

    async def one(call: Call) -> None:
        await call.send(piece("a", [11], "length"), usage(3, 1), "[DONE]")

    async with engine_with(one) as engine, linked(facts, backend("vllm-nixl", engine.url)) as lane:
        flow, sink = flow_of(facts, tokens=1)
        start(lane, flow, decode_here=decode_here)
        done: DecodeDone = await facts.wait(DecodeDone)
    assert "kv_transfer_params" not in engine.calls[0].body
    assert (sink.ids, done.reason) == ([11], FinishReason.LENGTH)
    assert facts.of(PrefillDone)[0].kv is None


@pytest.mark.parametrize("params", [None, PARAMS])
async def test_a_first_token_that_is_the_last(params: Any) -> None:
    """The request ends where it is, and the KV that was kept all the same is released."""
    facts = Facts()
    async with engine_with(_prefilled("stop", params)) as engine, engine_with(_refuse_release) as decoder:
        config = backend("vllm-nixl", engine.url, release_through=decoder.url)
        async with linked(facts, config) as lane:
            flow, sink = flow_of(facts)
            start(lane, flow, decode_here=False)
            done: DecodeDone = await facts.wait(DecodeDone)
            assert (sink.ids, done.reason, done.output_tokens) == ([11], FinishReason.STOP, 1)
            if params is not None:
                assert (await decoder.call()).body["kv_transfer_params"] == params
    assert len(decoder.calls) == (params is not None)
    assert facts.of(PrefillDone)[0].kv is None


async def _refuse_release(call: Call) -> None:
    await call.json({"error": {"message": "no such model", "code": 404}}, 404)


async def test_release_is_a_request_that_decode_refuses() -> None:
    """It names a model nobody serves; only KV of this connection is released."""
    facts = Facts()
    async with engine_with(_prefilled()) as engine, engine_with(_refuse_release) as decoder:
        config = backend("vllm-nixl", engine.url, release_through=decoder.url + "/")
        async with linked(facts, config) as lane:
            flow, _ = flow_of(facts)
            start(lane, flow, decode_here=False)
            done: PrefillDone = await facts.wait(PrefillDone)
            assert done.kv is not None
            assert lane.work is not None
            lane.work.release_kv(_handle(), 0.0)  # of another incarnation
            lane.work.release_kv(done.kv, 0.0)
            call = await decoder.call()
    assert call.body["kv_transfer_params"] == PARAMS
    assert call.body["model"] != "m"
    assert call.body["max_tokens"] == 1
    assert len(decoder.calls) == 1


async def test_a_release_that_fails_is_left_to_the_lease() -> None:
    """The decode engine is away, or has the model after all: no harm to the link."""
    facts = Facts()
    async with engine_with(_prefilled()) as engine, engine_with(three) as decoder:
        config = backend("vllm-nixl", engine.url, release_through=decoder.url)
        async with linked(facts, config) as lane:
            for number, name in enumerate(("r1", "r2"), start=1):
                flow, _ = flow_of(facts, name)
                start(lane, flow, decode_here=False)
                done: PrefillDone = await facts.wait(PrefillDone, number)
                assert done.kv is not None
                assert lane.work is not None
                lane.work.release_kv(done.kv, 0.0)
                await decoder.call(number)
            assert lane.connected


async def test_a_prefill_that_is_given_up_is_aborted() -> None:
    """Closing the call frees its blocks."""
    facts = Facts()

    async def slow(call: Call) -> None:
        await call.hang()

    async with engine_with(slow) as engine, linked(facts, backend("vllm-nixl", engine.url)) as lane:
        flow, _ = flow_of(facts)
        start(lane, flow, decode_here=False)
        call = await engine.call()
        assert lane.work is not None
        lane.work.stop_phase(StopPhase("r1", 1, "e1"))
        async with asyncio.timeout(10.0):
            await call.gone.wait()


async def test_decode_is_not_aborted_in_mid_transfer() -> None:
    """A stop waits for the first token; then the call is closed, and nothing is said."""
    facts = Facts()
    ready = asyncio.Event()

    async def pulling(call: Call) -> None:
        await ready.wait()
        await call.send(piece("a", [11]))
        await call.hang()

    async with engine_with(pulling) as engine, linked(facts, backend("vllm-nixl", engine.url)) as lane:
        flow, sink = flow_of(facts)
        start_decode(lane, flow, _handle())
        call = await engine.call()
        assert lane.work is not None
        flow.close()
        lane.work.stop_phase(StopPhase("r1", 1, "e1"))
        lane.work.sweep()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not call.gone.is_set()
        assert len(lane.work) == 1
        ready.set()
        async with asyncio.timeout(10.0):
            await call.gone.wait()
        assert sink.ids == []
        assert not facts.of(KVMoved)
        assert not facts.of(PhaseFailed)


async def test_decode_that_hangs_in_transfer_is_aborted_in_the_end() -> None:
    """A lease's time after the stop: an engine that lost its peer may never say anything."""
    facts = Facts()

    async def hanging(call: Call) -> None:
        await call.hang()

    async with engine_with(hanging) as engine:
        async with linked(facts, backend("vllm-nixl", engine.url, lease_s=0.1)) as lane:
            flow, _ = flow_of(facts)
            start_decode(lane, flow, _handle())
            call = await engine.call()
            assert lane.work is not None
            lane.work.stop_phase(StopPhase("r1", 1, "e1"))
            async with asyncio.timeout(10.0):
                await call.gone.wait()


async def test_after_the_first_token_decode_stops_at_once() -> None:
    """The transfer is over."""
    facts = Facts()

    async def slow(call: Call) -> None:
        await call.send(piece("a", [11]))
        await call.hang()

    async with engine_with(slow) as engine, linked(facts, backend("vllm-nixl", engine.url)) as lane:
        flow, _ = flow_of(facts)
        start_decode(lane, flow, _handle())
        await facts.wait(FirstToken)
        assert lane.work is not None
        lane.work.stop_phase(StopPhase("r1", 1, "e1"))
        async with asyncio.timeout(10.0):
            await (await engine.call()).gone.wait()


async def test_kv_that_does_not_come() -> None:
    """The engine fails the request for want of its KV: nobody is to take that for a transfer."""
    facts = Facts()

    async def lost(call: Call) -> None:
        await call.send({"error": {"message": "KV load failed", "code": 500}})

    async with engine_with(lost) as engine, linked(facts, backend("vllm-nixl", engine.url)) as lane:
        flow, _ = flow_of(facts)
        start_decode(lane, flow, _handle())
        failed: PhaseFailed = await facts.wait(PhaseFailed)
    assert (failed.reason, failed.retryable) == (Reason.KV_TRANSFER_FAILED, True)
    assert not facts.of(KVMoved)


@pytest.mark.parametrize("params", [None, {}])
async def test_an_engine_that_keeps_nothing(params: Any) -> None:
    """Started without its connector, prefill would be done for nothing, and decode without KV be wrong."""
    facts = Facts()
    async with engine_with(_prefilled(params=params)) as engine:
        async with linked(facts, backend("vllm-nixl", engine.url)) as lane:
            flow, _ = flow_of(facts)
            start(lane, flow, decode_here=False)
            failed: PhaseFailed = await facts.wait(PhaseFailed)
    assert failed.reason is Reason.KV_TRANSFER_FAILED
    assert "connector" in failed.message
    assert not facts.of(PrefillDone)


def test_what_is_no_offer_of_kv_is_refused() -> None:
    """Decode connects to where it is told, so it is told only what makes sense and is allowed."""
    assert connector_of({"choices": []}, Hosts()) is None
    for params in ([1], {"do_remote_prefill": False}, {"do_remote_prefill": "yes"}):
        with pytest.raises(PhaseError):
            connector_of({"kv_transfer_params": params}, Hosts())
    large = {**PARAMS, "remote_block_ids": [list(range(MAX_PARAMS_BYTES))]}
    with pytest.raises(PhaseError, match="bytes"):
        connector_of({"kv_transfer_params": large}, Hosts())
    with pytest.raises(PhaseError, match="kv_hosts"):
        connector_of({"kv_transfer_params": PARAMS}, Hosts(frozenset({"10.0.0.6"})))
    assert connector_of({"kv_transfer_params": PARAMS}, Hosts(frozenset({"10.0.0.5"}))) is not None
