"""A worker that answers rightly but for one fault. It does both phases, on its own gRPC server.

It is no mock: it has no engine and no KV, and it never keeps what it was told except to count.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any

import grpc
import grpc.aio
from polyphase.v1 import common_pb2, inference_pb2, worker_pb2

from router.grpc_options import server_options
from router.wire import spec_to_proto
from tests.faults.staff import worker
from tests.shell.rig import answer

Tokens = Sequence[tuple[int, int]]
"""(index, token), in the order of sending."""


class Fault(StrEnum):
    """What it does wrong."""

    NONE = "none"
    DUPLICATES = "duplicates"
    """Every token comes twice, and once more at the end."""
    SKIPS_FIRST = "skips_first"
    """The first token is left out."""
    SKIPS_LATER = "skips_later"
    """Token 3 is left out."""
    TOO_MANY = "too_many"
    """It does not stop at max_new_tokens."""
    TOO_FEW = "too_few"
    """It says it is done, two tokens short."""
    SILENT = "silent"
    """It takes the work and says nothing."""
    ZOMBIE = "zombie"
    """Like SILENT, but after it was told to stop, it begins to send wrong tokens and does not end."""
    FOREIGN_KV = "foreign_kv"
    """The handle it gives for its KV names another request."""
    TORN_FRAME = "torn_frame"
    """The columns of its frame differ in length."""


def misplaced(fault: Fault, good: list[int]) -> Tokens:
    """The tokens as the fault has them."""
    right = list(enumerate(good))
    match fault:
        case Fault.DUPLICATES:
            return [twice for one in right for twice in (one, one)] + right
        case Fault.SKIPS_FIRST:
            return right[1:]
        case Fault.SKIPS_LATER:
            return right[:3] + right[4:]
        case Fault.TOO_FEW:
            return right[:-2]
        case _:
            return right


class FaultyWorker:
    """Serves WorkerService.Lane."""

    def __init__(self, name: str, fault: Fault) -> None:
        self.fault = fault
        self.spec = spec_to_proto(worker(name))
        self.started = 0
        """Requests it was given."""
        self.stops: list[int] = []
        """Sequences it was told to stop, as often as it was told."""
        self.released = 0
        self.lanes = 0
        self._writing = asyncio.Lock()

    async def lane(self, _: Any, context: Any) -> None:
        """One lane: greet, then serve commands until the router ends it."""
        await context.read()
        self.lanes += 1
        welcome = worker_pb2.Welcome(spec=self.spec, incarnation=f"boot-{self.lanes}")
        await self._send(context, worker_pb2.LaneResponse(welcome=welcome))
        try:
            await self._serve(context)
        except* grpc.aio.BaseError:
            pass  # the router has gone, which is what it should do

    async def _serve(self, context: Any) -> None:
        async with asyncio.TaskGroup() as tasks:
            helpers = [tasks.create_task(self._beat(context))]
            while (raw := await context.read()) is not grpc.aio.EOF:
                for command in worker_pb2.LaneRequest.FromString(raw).commands:
                    helpers.extend(tasks.create_task(work) for work in self._take(context, command))
            for helper in helpers:
                helper.cancel()

    def _take(self, context: Any, command: worker_pb2.Command) -> list[Any]:
        match command.WhichOneof("command"):
            case "start_prefill":
                self.started += 1
                return [self._answer(context, command.start_prefill)]
            case "stop_phase":
                self.stops.append(command.stop_phase.seq)
                first = self.stops.count(command.stop_phase.seq) == 1
                return [self._haunt(context, command.stop_phase.seq)] if first else []
            case "release_kv":
                self.released += 1
        return []

    async def _send(self, context: Any, frame: worker_pb2.LaneResponse) -> None:
        async with self._writing:  # gRPC takes one write at a time
            await context.write(frame.SerializeToString())

    async def _beat(self, context: Any) -> None:
        while True:
            await self._send(context, worker_pb2.LaneResponse(load=common_pb2.LoadReport()))
            await asyncio.sleep(0.1)

    async def _answer(self, context: Any, start: worker_pb2.StartPrefill) -> None:
        if self.fault in (Fault.SILENT, Fault.ZOMBIE):
            return
        if not start.decode_here:
            await self._send(context, _event(start.seq, prefill_done=self._kv_ready(start)))
            return
        await self._send(context, _event(start.seq, prefill_done=worker_pb2.PrefillDone()))
        await self._decode(context, start.seq, start.request)

    async def _decode(self, context: Any, seq: int, request: inference_pb2.GenerateRequest) -> None:
        count = request.max_new_tokens + (100 if self.fault is Fault.TOO_MANY else 0)
        tokens = misplaced(self.fault, answer(request, count))
        for at in range(0, len(tokens), 2):
            frame = _tokens(seq, tokens[at : at + 2])
            if self.fault is Fault.TORN_FRAME:
                frame.indices.pop()
            await self._send(context, frame)
        if self.fault is not Fault.TOO_MANY:  # whoever does not stop does not say that it did
            done = worker_pb2.DecodeDone(output_tokens=count, reason=common_pb2.FINISH_REASON_LENGTH)
            await self._send(context, _event(seq, decode_done=done))

    async def _haunt(self, context: Any, seq: int) -> None:
        while self.fault is Fault.ZOMBIE:
            await self._send(context, _tokens(seq, [(0, 31_999), (1, 31_998)]))
            await asyncio.sleep(0.02)

    def _kv_ready(self, start: worker_pb2.StartPrefill) -> worker_pb2.PrefillDone:
        handle = common_pb2.KVHandle(
            producer=self.spec.id,
            incarnation=f"boot-{self.lanes}",
            request_id="another request" if self.fault is Fault.FOREIGN_KV else start.request.request_id,
            epoch=start.epoch,
            layout=self.spec.kv_layout,
            tokens=len(start.request.tokens.ids),
            lease_s=30.0,
        )
        return worker_pb2.PrefillDone(kv=handle)


def _event(seq: int, **event: Any) -> worker_pb2.LaneResponse:
    return worker_pb2.LaneResponse(events=[worker_pb2.PhaseEvent(seq=seq, **event)])


def _tokens(seq: int, run: Tokens) -> worker_pb2.LaneResponse:
    indices, tokens = [index for index, _ in run], [token for _, token in run]
    return worker_pb2.LaneResponse(seqs=[seq] * len(run), tokens=tokens, indices=indices)


@asynccontextmanager
async def faulty(name: str, fault: Fault) -> AsyncIterator[tuple[FaultyWorker, str]]:
    """The worker and its address."""
    made = FaultyWorker(name, fault)
    server = grpc.aio.server(options=server_options())
    handler = grpc.stream_stream_rpc_method_handler(made.lane)
    methods = grpc.method_handlers_generic_handler("polyphase.v1.WorkerService", {"Lane": handler})
    server.add_generic_rpc_handlers([methods])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield made, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
