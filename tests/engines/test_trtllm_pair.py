"""TensorRT-LLM pairs: the fields of each leg, the first token, and what a server says instead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.engines.dialect import Ask
from backends.engines.failures import PhaseError
from backends.engines.trtllm import MAX_STATE_BYTES, generation_ask, kept_in
from router.core.messages import (
    BackendJoined,
    DecodeDone,
    FirstToken,
    KVMoved,
    PhaseFailed,
    PrefillDone,
    StopPhase,
)
from router.errors import Reason
from router.model import FinishReason, KVHandle
from tests.engines.fakes_pairs import TrtllmPair
from tests.engines.pairs import Pair
from tests.engines.rig import Answer, Call, backend, engine_with, flow_of, linked, piece, start, start_decode
from tests.live_south.scripted import Facts


@asynccontextmanager
async def pair_of(context: Answer, generation: Answer, **options: Any) -> AsyncIterator[Pair]:
    """A pair whose servers answer so."""
    facts = Facts()
    async with engine_with(context) as first, engine_with(generation) as second:
        one = backend("trtllm-pair", first.url)
        other = backend("trtllm-pair", second.url, **options).model_copy(update={"id": "e2"})
        async with linked(facts, one) as prefiller, linked(facts, other) as decoder:
            await facts.wait(BackendJoined, 2)
            yield Pair(facts, (prefiller, decoder), (first, second))


async def test_context_then_generation() -> None:
    """What the context server said goes on verbatim but for its type; the first token comes once."""
    fake = TrtllmPair()
    async with pair_of(fake.context, fake.generation) as pair:
        await pair.begin()
        done: DecodeDone = await pair.facts.wait(DecodeDone)
    kinds = [type(fact) for fact in pair.facts.all if isinstance(fact, PrefillDone | KVMoved | FirstToken)]
    assert kinds == [PrefillDone, KVMoved, FirstToken]
    assert (pair.sink.said, done.output_tokens, done.reason) == ("abc", 3, FinishReason.LENGTH)
    assert fake.faults == []
    assert fake.kept == {}, "the KV was fetched"


@pytest.mark.parametrize("finish", ["stop", "length", "not_finished"])
async def test_a_first_token_that_is_the_last(finish: str) -> None:
    """A context that ends with its first token hands nothing over; at the length of one it has only begun."""
    fake = TrtllmPair(finish)
    facts = Facts()
    async with engine_with(fake.context) as engine:
        async with linked(facts, backend("trtllm-pair", engine.url)) as lane:
            flow, sink = flow_of(facts, text="hello")
            start(lane, flow, decode_here=False)
            if finish == "stop":
                done: DecodeDone = await facts.wait(DecodeDone)
                assert (sink.said, done.output_tokens, done.reason) == ("a", 1, FinishReason.STOP)
            prefill: PrefillDone = await facts.wait(PrefillDone)
    assert (prefill.kv is None) == (finish == "stop")
    assert fake.faults == []


async def test_a_whole_request_has_no_parameters_of_pairs() -> None:
    """One token, or a plan that does not split."""
    fake = TrtllmPair()
    facts = Facts()
    async with engine_with(fake.context) as engine:
        async with linked(facts, backend("trtllm-pair", engine.url)) as lane:
            flow, sink = flow_of(facts, text="hello", tokens=1)
            start(lane, flow, decode_here=False)
            await facts.wait(DecodeDone)
    assert "disaggregated_params" not in engine.calls[0].body
    assert sink.said == "w"


async def test_a_reference_that_is_stale() -> None:
    """KV is asked for a second time: the generation server has none, and nobody takes that for KV."""
    fake = TrtllmPair()
    async with pair_of(fake.context, fake.generation) as pair:
        await pair.begin()
        await pair.facts.wait(DecodeDone)
        again, _ = flow_of(pair.facts, "r2", text="hello")
        start_decode(pair.decoder, again, pair.kv)
        failed: PhaseFailed = await pair.facts.wait(PhaseFailed)
    assert (failed.reason, failed.retryable) == (Reason.KV_TRANSFER_FAILED, True)
    assert len(pair.facts.of(KVMoved)) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"choices": [{"text": "a", "finish_reason": "length"}]}, Reason.KV_TRANSFER_FAILED),
        ({"choices": [{"text": "a"}]}, Reason.BACKEND_BROKE_CONTRACT),
        ({"choices": [{"text": "", "finish_reason": "cancelled"}]}, Reason.BACKEND_FAILED),
        ({"object": "error", "message": "boom", "code": 500}, Reason.BACKEND_FAILED),
        ([1], Reason.BACKEND_BROKE_CONTRACT),
    ],
)
async def test_a_context_server_that_keeps_nothing(answer: Any, reason: Reason) -> None:
    """No parameters, no end, an end that is none, an error in status 200, nonsense."""
    facts = Facts()

    async def say(call: Call) -> None:
        await call.json(answer)

    async with engine_with(say) as engine, linked(facts, backend("trtllm-pair", engine.url)) as lane:
        flow, _ = flow_of(facts, text="hello")
        start(lane, flow, decode_here=False)
        failed: PhaseFailed = await facts.wait(PhaseFailed)
    assert failed.reason is reason
    assert not facts.of(PrefillDone)


async def test_cancelled_in_either_phase() -> None:
    """A context is closed at once; a generation not before its first token, nor later than its lease."""

    async def hang(call: Call) -> None:
        await call.hang()

    async with pair_of(hang, hang, lease_s=0.2) as pair:
        flow, _ = flow_of(pair.facts, text="hello")
        start(pair.prefiller, flow, decode_here=False)
        first = await pair.prefill_engine.call()
        start_decode(pair.decoder, flow, _handle())
        second = await pair.decode_engine.call()
        flow.close()
        assert pair.prefiller.work is not None
        assert pair.decoder.work is not None
        pair.prefiller.work.stop_phase(StopPhase("r1", 1, "e1"))
        pair.decoder.work.stop_phase(StopPhase("r1", 1, "e2"))
        async with asyncio.timeout(10.0):
            await first.gone.wait()
            await second.gone.wait()
        await pair.idle()
        assert not pair.facts.of(PhaseFailed)


async def test_generation_is_not_aborted_in_mid_transfer() -> None:
    """A stop waits for the first token."""
    ready = asyncio.Event()

    async def fetching(call: Call) -> None:
        await ready.wait()
        await call.send(piece("a"))
        await call.hang()

    async with pair_of(fetching, fetching) as pair:
        flow, sink = flow_of(pair.facts, text="hello")
        start_decode(pair.decoder, flow, _handle())
        call = await pair.decode_engine.call()
        flow.close()
        assert pair.decoder.work is not None
        pair.decoder.work.stop_phase(StopPhase("r1", 1, "e2"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not call.gone.is_set()
        ready.set()
        async with asyncio.timeout(10.0):
            await call.gone.wait()
    assert sink.said == ""


def test_what_is_no_offer_of_kv_is_refused() -> None:
    """Of another type, without first token or prompt, or without bound."""
    good = {"ctx_request_id": 1, "first_gen_tokens": [1]}
    tokens: list[Any] = [{**good, "first_gen_tokens": []}, {**good, "first_gen_tokens": "x"}]
    for params in ([1], {"ctx_request_id": "1"}, *tokens):
        with pytest.raises(PhaseError):
            kept_in({"prompt_token_ids": [1]}, {"disaggregated_params": params}, 7)
    with pytest.raises(PhaseError, match="prompt"):
        kept_in({}, {"disaggregated_params": good}, 7)
    large = {**good, "encoded_opaque_state": "x" * MAX_STATE_BYTES}
    with pytest.raises(PhaseError, match="bytes"):
        kept_in({"prompt_token_ids": [1]}, {"disaggregated_params": large}, 7)
    for connector in (b"", b"{}", b"[1]", b"\xff"):
        with pytest.raises(PhaseError, match="kv_layout"):
            generation_ask(Ask("/", {}), connector)


def test_chats_have_the_prompt_beside_their_messages() -> None:
    """The generation server is not to put the prompt together again."""
    connector = kept_in(
        {"prompt_token_ids": [1]},
        {"disaggregated_params": {"ctx_request_id": 1, "first_gen_tokens": [1]}},
        7,
    )
    body = generation_ask(Ask("/", {"messages": []}), connector).body
    assert (body["prompt_token_ids"], body["messages"]) == ([1], [])
    assert "prompt" not in body


def _handle() -> KVHandle:
    connector = b'{"kind":"trtllm","params":{},"ids":[1]}'
    return KVHandle("other", "i", "r1", 1, "l", 3, 0, 1e9, connector=connector)
