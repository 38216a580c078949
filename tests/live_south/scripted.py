"""A worker that does what the test says: answers hello, records commands, sends the frames it is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from polyphase.v1 import common_pb2, inference_pb2, worker_pb2

from router import wire
from router.core.messages import Fact, FailRequest
from router.grpc_options import server_options
from router.live.flow import Flow, TokenCounts
from router.model import BackendKind, BackendSpec, Phase, Report, Request, StepParameters


def spec(backend: str = "w1") -> BackendSpec:
    """A small GPU that does both phases."""
    return BackendSpec(
        id=backend,
        kind=BackendKind.GPU,
        device="H100",
        models=("m",),
        phases=frozenset(Phase),
        step=StepParameters(0.001),
    )


def request(request_id: str = "r1", max_new_tokens: int = 8) -> Request:
    """A short request."""
    return Request(request_id, "m", prompt_tokens=4, max_new_tokens=max_new_tokens)


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def tokens(self, epoch: int, first_index: int, ids: Any) -> None:
        """Keep tokens, whose indices must continue."""
        assert first_index == len(self.ids)
        self.ids.extend(ids)

    def finish(self, report: Report) -> None:
        """Not used by lanes."""

    def fail(self, action: FailRequest) -> None:
        """Not used by lanes."""


class Facts:
    """Collects facts and lets a test wait for one."""

    def __init__(self) -> None:
        self.all: list[Fact] = []
        self._more = asyncio.Event()

    def tell(self, fact: Fact) -> None:
        """Take a fact."""
        self.all.append(fact)
        self._more.set()

    def of(self, kind: type[Any]) -> list[Any]:
        """The facts of a kind so far."""
        return [fact for fact in self.all if isinstance(fact, kind)]

    async def wait(self, kind: type[Any], count: int = 1, within_s: float = 10.0) -> Any:
        """The count-th fact of a kind, once it is there."""
        async with asyncio.timeout(within_s):
            while len(self.of(kind)) < count:
                self._more.clear()
                await self._more.wait()
        return self.of(kind)[count - 1]


def flow(facts: Facts, name: str = "r1", max_new_tokens: int = 8, counts: TokenCounts | None = None) -> Flow:
    """A live request whose tokens go to a Kept sink."""
    prompt = inference_pb2.GenerateRequest(
        request_id=name, model="m", text="hi", max_new_tokens=max_new_tokens
    )
    return Flow(request(name, max_new_tokens), prompt, Kept(), facts.tell, counts)


class Connection:
    """One lane as the worker sees it."""

    def __init__(self, hello: worker_pb2.Hello) -> None:
        self.hello = hello
        self.commands: list[worker_pb2.Command] = []
        self.closed = asyncio.Event()
        self.outgoing: asyncio.Queue[bytes | None] = asyncio.Queue(1000)
        self._more = asyncio.Event()

    def send(self, frame: worker_pb2.LaneResponse) -> None:
        """Send a frame."""
        self.outgoing.put_nowait(frame.SerializeToString())

    def send_raw(self, raw: bytes) -> None:
        """Send bytes as a frame."""
        self.outgoing.put_nowait(raw)

    def end(self) -> None:
        """End the stream with OK."""
        self.outgoing.put_nowait(None)

    def took(self, command: worker_pb2.Command) -> None:
        """Record a command."""
        self.commands.append(command)
        self._more.set()

    async def command(self, kind: str, count: int = 1, within_s: float = 10.0) -> Any:
        """The content of the count-th command of a kind, once it is there."""
        async with asyncio.timeout(within_s):
            while len(found := [c for c in self.commands if c.WhichOneof("command") == kind]) < count:
                self._more.clear()
                await self._more.wait()
        return getattr(found[count - 1], kind)


class ScriptedWorker:
    """A gRPC server with a Lane method. `welcome` may be replaced before a connection comes."""

    def __init__(self, backend: str = "w1") -> None:
        self.incarnation = "boot-1"
        self.spec = wire.spec_to_proto(spec(backend))
        self.connections: list[Connection] = []
        self.first: Callable[[], bytes] = self._welcome
        self.welcome_for: Callable[[worker_pb2.Hello], bytes] | None = None
        """Greets by hello; one server may host many workers."""
        self.address = ""
        self._more = asyncio.Event()

    def _welcome(self) -> bytes:
        welcome = worker_pb2.Welcome(spec=self.spec, incarnation=self.incarnation)
        return worker_pb2.LaneResponse(welcome=welcome).SerializeToString()

    async def connection(self, count: int = 1, within_s: float = 15.0) -> Connection:
        """The count-th connection, once it is there."""
        async with asyncio.timeout(within_s):
            while len(self.connections) < count:
                self._more.clear()
                await self._more.wait()
        return self.connections[count - 1]

    async def lane(self, requests: Any, context: Any) -> None:
        """The Lane method."""
        raw = await context.read()
        connection = Connection(worker_pb2.LaneRequest.FromString(raw).hello)
        self.connections.append(connection)
        self._more.set()
        reader = asyncio.create_task(self._read(context, connection))
        try:
            await context.write(self.welcome_for(connection.hello) if self.welcome_for else self.first())
            while (frame := await connection.outgoing.get()) is not None:
                await context.write(frame)
        finally:
            connection.closed.set()
            reader.cancel()

    async def _read(self, context: Any, connection: Connection) -> None:
        while (raw := await context.read()) is not grpc.aio.EOF:
            for command in worker_pb2.LaneRequest.FromString(raw).commands:
                connection.took(command)


@asynccontextmanager
async def serving(worker: ScriptedWorker, address: str = "127.0.0.1:0") -> AsyncIterator[ScriptedWorker]:
    """Run the worker on a free port, or on the one named."""
    server = grpc.aio.server(options=server_options())
    handler = grpc.stream_stream_rpc_method_handler(worker.lane)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("polyphase.v1.WorkerService", {"Lane": handler})]
    )
    worker.address = f"127.0.0.1:{server.add_insecure_port(address)}"
    await server.start()
    try:
        yield worker
    finally:
        await server.stop(0)


def tokens(seq: int, first: int, ids: list[int]) -> worker_pb2.LaneResponse:
    """A frame of consecutive tokens of one sequence."""
    count = len(ids)
    return worker_pb2.LaneResponse(seqs=[seq] * count, tokens=ids, indices=range(first, first + count))


def prefill_done(seq: int, kv: common_pb2.KVHandle | None = None) -> worker_pb2.PhaseEvent:
    """The end of a prefill."""
    return worker_pb2.PhaseEvent(seq=seq, prefill_done=worker_pb2.PrefillDone(kv=kv))


def kv_moved(seq: int) -> worker_pb2.PhaseEvent:
    """The KV arrived."""
    return worker_pb2.PhaseEvent(seq=seq, kv_moved=worker_pb2.KVMoved(bytes=100, transfer_s=0.01))


def decode_done(seq: int, count: int) -> worker_pb2.PhaseEvent:
    """The end of a decode."""
    done = worker_pb2.DecodeDone(output_tokens=count, reason=common_pb2.FINISH_REASON_STOP)
    return worker_pb2.PhaseEvent(seq=seq, decode_done=done)


def events(*items: worker_pb2.PhaseEvent) -> worker_pb2.LaneResponse:
    """A frame of events."""
    return worker_pb2.LaneResponse(events=items)


def load(**values: float) -> worker_pb2.LaneResponse:
    """A frame with a load report."""
    return worker_pb2.LaneResponse(load=common_pb2.LoadReport(**values))
