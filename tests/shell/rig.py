"""A router's end of the wire for the tests of workers: plain grpc.aio calls, no code of the router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from polyphase.v1 import common_pb2, inference_pb2, worker_pb2

from backends.conformance import commands
from backends.models.tokens import TokenStream, kv_fingerprint, prompt_fingerprint
from router.grpc_options import channel_options
from router.model import (
    BackendKind,
    BackendSpec,
    ConnectorFlags,
    LinkParameters,
    Phase,
    StepParameters,
)
from router.wire import prompt_bytes

MODEL = "llama"
LANE = "/polyphase.v1.WorkerService/Lane"
PULL = "/polyphase.v1.WorkerService/PullKV"
PATIENCE_S = 20.0


def spec(backend: str, **changes: Any) -> BackendSpec:
    """A worker with steps of a millisecond."""
    values: dict[str, Any] = {
        "id": backend,
        "kind": BackendKind.GPU,
        "device": "test",
        "models": (MODEL,),
        "phases": frozenset(Phase),
        "step": StepParameters(base_s=1e-3, prefill_base_s=1e-3),
        "kv_bytes_per_token": 1000.0,
        "kv_capacity_tokens": 100_000,
        "kv_layout": "l",
        "link": LinkParameters(latency_s=1e-3),
    }
    return BackendSpec(**{**values, **changes})


FIRST_TOKEN_FROM_PREFILL = ConnectorFlags(first_token_from_prefill=True)


def request(request_id: str, max_new_tokens: int = 8, **options: str) -> inference_pb2.GenerateRequest:
    """A request with a prompt of its own."""
    made = inference_pb2.GenerateRequest(
        request_id=request_id, model=MODEL, max_new_tokens=max_new_tokens, engine_options=options
    )
    made.tokens.ids.extend(request_id.encode() * 8)
    made.sampling.seed = 7
    return made


def answer(made: inference_pb2.GenerateRequest, count: int) -> list[int]:
    """The tokens that a client expects for its request."""
    prompt_fp = prompt_fingerprint(made.model, prompt_bytes(made))
    return TokenStream(prompt_fp, kv_fingerprint(prompt_fp), made.sampling.seed).tokens(0, count)


prefill, decode = commands.prefill, commands.decode
stop, release = commands.stop, commands.release


class LaneEnd:
    """One lane as its router sees it; frames are read as they come and kept."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.welcome = worker_pb2.Welcome()
        self.tokens: dict[int, dict[int, int]] = {}
        self.events: list[worker_pb2.PhaseEvent] = []
        self.loads: list[common_pb2.LoadReport] = []
        self.frames = 0
        self.error: grpc.aio.AioRpcError | None = None
        self.ended = False
        self._changed = asyncio.Event()

    async def read(self) -> None:
        """Keep what comes until the lane ends."""
        try:
            async for raw in self.call:
                self._keep(worker_pb2.LaneResponse.FromString(raw))
        except grpc.aio.AioRpcError as error:
            self.error = error
        self.ended = True
        self._changed.set()

    def _keep(self, frame: worker_pb2.LaneResponse) -> None:
        self.frames += 1
        if frame.HasField("welcome"):
            self.welcome = frame.welcome
        for seq, token, index in zip(frame.seqs, frame.tokens, frame.indices, strict=True):
            assert index not in self.tokens.setdefault(seq, {}), "a token came twice"
            self.tokens[seq][index] = token
        self.events.extend(frame.events)
        if frame.HasField("load"):
            self.loads.append(frame.load)
        self._changed.set()

    async def send(self, *commands: worker_pb2.Command) -> None:
        """Write one message of commands."""
        await self.call.write(worker_pb2.LaneRequest(commands=commands).SerializeToString())

    async def until(self, holds: Callable[[], Any]) -> Any:
        """Wait until something holds of what came, and give it back."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := holds()):
                self._changed.clear()
                await self._changed.wait()
        return found

    async def event(self, seq: int, kind: str) -> Any:
        """The event of a sequence; another terminal event of it fails the test at once."""

        def found() -> Any:
            for event in self.events:
                if event.seq == seq and event.HasField(kind):
                    return getattr(event, kind)
                assert event.seq != seq or not event.HasField("failed"), event
            return None

        return await self.until(found)

    def answer(self, seq: int) -> list[int]:
        """The tokens of a sequence in order of their indices, which have no gap."""
        tokens = self.tokens.get(seq, {})
        first = min(tokens, default=0)
        assert sorted(tokens) == list(range(first, first + len(tokens)))
        return [tokens[index] for index in sorted(tokens)]


@asynccontextmanager
async def lane(address: str, backend: str, router: str = "test") -> AsyncIterator[LaneEnd]:
    """A lane that has been greeted, or has ended."""
    async with grpc.aio.insecure_channel(address, options=list(channel_options())) as channel:
        call = channel.stream_stream(LANE)()
        end = LaneEnd(call)
        reader = asyncio.create_task(end.read())
        try:
            hello = worker_pb2.Hello(backend=backend, router=router)
            await call.write(worker_pb2.LaneRequest(hello=hello).SerializeToString())
            await end.until(lambda: end.welcome.incarnation or end.ended)
            yield end
        finally:
            call.cancel()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


async def eventually(holds: Callable[[], Any], what: str) -> None:
    """Poll until something holds; fail with words after a while."""
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_S
    while not holds():
        assert loop.time() < until, what
        await asyncio.sleep(0.005)
