"""An engine that does what the test says, over real HTTP, and a link to it with everything it says kept."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from polyphase.v1 import inference_pb2

from backends.engines.lane import EngineLane
from backends.engines.opener import engine_opener
from router.config import StaticBackend
from router.core.messages import BackendJoined, FailRequest, StartDecode, StartPrefill
from router.live.flow import Flow
from router.live.lane import LaneContext, LaneTimes
from router.model import KVHandle, Phase, Report, Request
from tests.live_south.scripted import Facts

Answer = Callable[["Call"], Awaitable[None]]
SPEC = {"models": ["m"]}
QUICK = {"health_interval_s": 0.05, "health_timeout_s": 10.0}


class Call:
    """One POST that the engine got, and the means to answer it."""

    def __init__(self, request: web.Request, body: Any) -> None:
        self.request = request
        self.body = body
        self.gone = asyncio.Event()
        """The router closed the connection before the answer was over."""
        self.response: web.StreamResponse | None = None

    async def json(self, answer: Any, status: int = 200) -> None:
        """A whole answer."""
        self.response = web.json_response(answer, status=status)

    async def send(self, *events: Any) -> None:
        """Events of a stream: objects as JSON, text as it is."""
        for event in events:
            data = event if isinstance(event, str) else json.dumps(event)
            await self.raw(f"data: {data}\n\n".encode())

    async def raw(self, chunk: bytes) -> None:
        """Bytes of a stream."""
        if self.response is None:
            self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
            await self.response.prepare(self.request)
        assert isinstance(self.response, web.StreamResponse)
        await self.response.write(chunk)

    def break_off(self) -> None:
        """Close the connection in mid-answer."""
        assert self.request.transport is not None
        self.request.transport.abort()

    async def hang(self) -> None:
        """Say nothing more, until the router goes."""
        await asyncio.Event().wait()


class ScriptedEngine:
    """Answers every POST with `answer`; GET with `health`."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.health = 200
        self.calls: list[Call] = []
        self.probes: list[web.Request] = []
        self.url = ""
        self._called = asyncio.Event()

    async def call(self, number: int = 1) -> Call:
        """The number-th POST, once it is there."""
        async with asyncio.timeout(10.0):
            while len(self.calls) < number:
                self._called.clear()
                await self._called.wait()
        return self.calls[number - 1]

    async def get(self, request: web.Request) -> web.StreamResponse:
        """A probe."""
        self.probes.append(request)
        return web.Response(status=self.health, headers={"Location": "http://127.0.0.1:1/"})

    async def post(self, request: web.Request) -> web.StreamResponse:
        """A request."""
        call = Call(request, await request.json())
        self.calls.append(call)
        self._called.set()
        try:
            await self.answer(call)
        except (asyncio.CancelledError, ConnectionError):
            call.gone.set()
            raise
        assert call.response is not None
        return call.response


@asynccontextmanager
async def engine_with(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedEngine]:
    """A scripted engine on a free port of loopback."""
    engine = ScriptedEngine(answer)
    app = web.Application()
    app.router.add_get("/{path:.*}", engine.get)
    app.router.add_post("/{path:.*}", engine.post)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        engine.url = f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}"
        yield engine
    finally:
        await runner.cleanup()


def backend(engine: str, url: str, **options: Any) -> StaticBackend:
    """A [[backend]] of the configuration."""
    return StaticBackend(id="e1", engine=engine, url=url, spec=SPEC, options={**QUICK, **options})


def context_of(facts: Facts) -> LaneContext:
    """What the link shares with others: quick to try again, patient with answers."""
    times = LaneTimes(backoff_min_s=0.01, backoff_max_s=0.05, decode_stall_s=30.0)
    return LaneContext(facts.tell, random.Random(3), times)


@asynccontextmanager
async def linked(facts: Facts, config: StaticBackend) -> AsyncIterator[EngineLane]:
    """A link that has joined."""
    lane = engine_opener(config)(config.id, config.url, context_of(facts))
    assert isinstance(lane, EngineLane)
    task = asyncio.create_task(lane.run())
    try:
        await facts.wait(BackendJoined)
        yield lane
    finally:
        lane.closing = True
        task.cancel()
        await asyncio.wait([task])


class Answered:
    """A sink that keeps what it is given, text and ids."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.said = ""
        self.indices: list[int] = []
        """Of each call."""

    def tokens(self, epoch: int, first_index: int, ids: Sequence[int]) -> None:
        """Keep ids."""
        self.indices.append(first_index)
        self.ids.extend(ids)

    def text(self, epoch: int, first_index: int, text: str, ids: Sequence[int], count: int) -> None:
        """Keep text."""
        assert not ids or len(ids) == count
        self.indices.append(first_index)
        self.ids.extend(ids)
        self.said += text

    def finish(self, report: Report) -> None:
        """Not used by links."""

    def fail(self, action: FailRequest) -> None:
        """Not used by links."""


def flow_of(
    facts: Facts, request_id: str = "r1", *, text: str = "", tokens: int = 8
) -> tuple[Flow, Answered]:
    """A request on its way: with text, or else with ids."""
    payload = inference_pb2.GenerateRequest(request_id=request_id, model="m", max_new_tokens=tokens)
    if text:
        payload.text = text
    else:
        payload.tokens.ids.extend([5, 6, 7])
    sink = Answered()
    return Flow(Request(request_id, "m", 3, tokens), payload, sink, facts.tell), sink


def start(lane: EngineLane, flow: Flow, *, decode_here: bool = True, epoch: int = 1) -> None:
    """Tell the link to begin, as the driver does."""
    assert lane.work is not None
    flow.begin(epoch, lane.backend, Phase.PREFILL, 0.0)
    lane.work.start_prefill(StartPrefill(flow.id, epoch, lane.backend, decode_here), flow)


def start_decode(lane: EngineLane, flow: Flow, kv: KVHandle, epoch: int = 1) -> None:
    """Tell the link to take KV over."""
    assert lane.work is not None
    flow.begin(epoch, lane.backend, Phase.DECODE, 0.0)
    lane.work.start_decode(StartDecode(flow.id, epoch, lane.backend, kv), flow, 0.0)


def piece(text: str = "", ids: Sequence[int] = (), finish: str | None = None) -> dict[str, Any]:
    """An event of a completion, as vLLM sends it."""
    return {"choices": [{"index": 0, "text": text, "token_ids": list(ids), "finish_reason": finish}]}


def usage(prompt: int, output: int) -> dict[str, Any]:
    """The event that counts."""
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}}


async def three(call: Call) -> None:
    """A good answer of three tokens."""
    await call.send(piece("a", [11]), piece("b", [12]), piece("c", [13], "length"), usage(3, 3), "[DONE]")
