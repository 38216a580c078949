"""Engines behind a whole daemon: over gRPC on one side and HTTP on the other, routed by a policy."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from polyphase.v1 import inference_pb2

from router.live.daemon import Daemon
from tests.engines.rig import Call, engine_with, piece, three, usage
from tests.live_south.daemons import daemon, fleet_client, inference_client, until_state
from tests.live_south.test_fleet_service import LOST, READY

HELLO = inference_pb2.GenerateRequest(model="m", text="hello", max_new_tokens=8)


def _backend(name: str, engine: str, url: str, spec: str = "", options: str = "") -> str:
    return (
        f'\n[[backend]]\nid = "{name}"\nengine = "{engine}"\nurl = "{url}"\n'
        f'spec = {{ models = ["m"] {spec} }}\noptions = {{ health_interval_s = 0.1 {options} }}\n'
    )


async def _ready(router: Daemon, *names: str) -> None:
    async with fleet_client(router) as fleet:
        for name in names:
            await until_state(fleet, name, READY)


async def test_text_through_both_northbound_calls() -> None:
    """Text comes out as it went in, with the engine's count; ids come where the engine tells them."""

    async def words(call: Call) -> None:
        await call.send(piece("one "), piece("two"), piece("!", [], "stop"), usage(2, 7), "[DONE]")

    async with engine_with(words) as engine, daemon(_backend("a", "openai", engine.url)) as router:
        await _ready(router, "a")
        async with inference_client(router) as stub:
            messages = [message async for message in stub.Generate(HELLO)]
            start = inference_pb2.SessionRequest.Start(stream=1, request=HELLO)
            call = stub.Session(iter([inference_pb2.SessionRequest(starts=[start])]))
            shared = [message async for message in call]
    assert "".join(message.tokens.text for message in messages) == "one two!"
    assert [index for message in messages for index in message.tokens.ids] == []
    assert sum(message.tokens.pieces for message in messages) == 3
    assert messages[-1].finished.usage.output_tokens == 7
    assert messages[-1].finished.usage.prompt_tokens == 2, "not our estimate"
    assert "".join(text for message in shared for text in message.texts) == "one two!"
    assert sum(pieces for message in shared for pieces in message.pieces) == 3
    assert shared[-1].ends[0].finished.usage.output_tokens == 7


async def test_a_full_engine_is_passed_over() -> None:
    """429 before the first token: another backend answers, and the client does not notice."""

    async def full(call: Call) -> None:
        await call.json({"error": {"message": "full"}}, 429)

    async with engine_with(full) as busy, engine_with(three) as free:
        text = _backend("a", "vllm", busy.url) + _backend("b", "vllm", free.url)
        async with daemon('[policy]\nname = "round_robin"\n' + text) as router:
            await _ready(router, "a", "b")
            async with inference_client(router) as stub:
                for _ in range(2):  # in one of them the full one is asked first
                    messages = [message async for message in stub.Generate(HELLO)]
                    assert "".join(message.tokens.text for message in messages) == "abc"
    assert len(busy.calls) == 1
    assert len(free.calls) == 2


async def test_the_callers_fault_is_the_callers() -> None:
    """400 is not tried elsewhere, and comes out as INVALID_ARGUMENT."""

    async def refuse(call: Call) -> None:
        await call.json({"error": {"message": "bad", "type": "BadRequestError"}}, 400)

    async with engine_with(refuse) as one, engine_with(refuse) as other:
        async with daemon(_backend("a", "vllm", one.url) + _backend("b", "vllm", other.url)) as router:
            await _ready(router, "a", "b")
            async with inference_client(router) as stub:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Generate(HELLO).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(one.calls) + len(other.calls) == 1


PARAMS = {"do_remote_prefill": True, "remote_block_ids": [[1]], "remote_host": "127.0.0.1"}
SPLIT = '[policy]\nname = "round_robin"\n'


async def _first(call: Call) -> None:
    choice = {"index": 0, "text": "a", "token_ids": [11], "finish_reason": "length"}
    await call.json({"choices": [choice], "kv_transfer_params": PARAMS})


async def test_a_request_split_over_a_pair() -> None:
    """Prefill, then decode with what prefill said, and an account of both."""
    async with engine_with(_first) as prefill, engine_with(three) as decode:
        text = _backend("p", "vllm-nixl", prefill.url, ', kv_layout = "x", phases = ["prefill"]')
        text += _backend("d", "vllm-nixl", decode.url, ', kv_layout = "x", phases = ["decode"]')
        async with daemon(SPLIT + text) as router:
            await _ready(router, "p", "d")
            async with inference_client(router) as stub:
                messages = [message async for message in stub.Generate(HELLO)]
    assert "".join(message.tokens.text for message in messages) == "abc"
    finished = messages[-1].finished
    assert [use.backend for use in finished.uses] == ["p", "d"]
    assert finished.times.handoff_s > 0.0
    assert prefill.calls[0].body["max_tokens"] == 1
    assert decode.calls[0].body["kv_transfer_params"] == PARAMS


async def test_kv_that_nobody_wants_any_more_is_released() -> None:
    """The client leaves while decode has no place: prefill's KV is let go, through a decode engine."""
    gate = asyncio.Event()

    async def gated(call: Call) -> None:
        await gate.wait()
        await _first(call)

    async def refuse(call: Call) -> None:
        await call.json({"error": {"message": "no such model", "code": 404}}, 404)

    async with engine_with(gated) as prefill, engine_with(refuse) as decode:
        layout, through = ', kv_layout = "x", phases = ', f', release_through = "{decode.url}"'
        text = _backend("p", "vllm-nixl", prefill.url, f'{layout}["prefill"]', through)
        text += _backend("d", "vllm-nixl", decode.url, f'{layout}["decode"]')
        async with daemon(SPLIT + text) as router:
            await _ready(router, "p", "d")
            async with inference_client(router) as stub, fleet_client(router) as fleet:
                call = stub.Generate(HELLO)
                await prefill.call()
                decode.health = 500
                await until_state(fleet, "d", LOST)
                gate.set()
                assert router.parts is not None
                async with asyncio.timeout(20.0):
                    while not router.parts.core.relay.kv.held:
                        await asyncio.sleep(0.01)
                call.cancel()
                released = await decode.call()
    assert released.body["kv_transfer_params"] == PARAMS
    assert released.body["model"] != "m"
