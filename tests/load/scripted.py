"""A router of a few lines that answers as a mock worker would, with faults on demand.

Run as a program it serves on a port of its own, to measure what the load generator costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from polyphase.v1 import common_pb2, inference_pb2, inference_pb2_grpc

from backends.models.tokens import TokenStream, kv_fingerprint, prompt_fingerprint
from router.wire import prompt_bytes

Run = tuple[int, list[int]]
"""First index and token ids."""


@dataclass
class Script:
    """What goes wrong, and how fast the tokens come."""

    drop_index: int | None = None
    repeat_index: int | None = None
    corrupt_index: int | None = None
    cut_after: int | None = None
    fail_reason: str = ""
    hang: bool = False
    step_s: float = 0.0
    tokens_per_step: int = 8


def answer(request: inference_pb2.GenerateRequest) -> list[int]:
    """The right tokens."""
    fingerprint = prompt_fingerprint(request.model, prompt_bytes(request))
    count = min(int(request.engine_options["mock.output_tokens"]), request.max_new_tokens)
    return TokenStream(fingerprint, kv_fingerprint(fingerprint), request.sampling.seed).tokens(0, count)


def runs(script: Script, request: inference_pb2.GenerateRequest) -> Iterator[Run]:
    """The tokens as the script sends them."""
    ids = answer(request)[: script.cut_after]
    if script.corrupt_index is not None:
        ids[script.corrupt_index] ^= 1
    for first in range(0, len(ids), script.tokens_per_step):
        chunk = ids[first : first + script.tokens_per_step]
        if script.drop_index is not None and first <= script.drop_index < first + len(chunk):
            at = script.drop_index - first
            yield first, chunk[:at]
            yield first + at + 1, chunk[at + 1 :]
        else:
            yield first, chunk
        if script.repeat_index is not None and first <= script.repeat_index < first + len(chunk):
            yield script.repeat_index, [ids[script.repeat_index]]


def finished(request: inference_pb2.GenerateRequest) -> inference_pb2.Finished:
    """An account with round numbers: prefill on a GPU, decode on an LPU."""
    uses = [
        common_pb2.PhaseUse(
            phase=common_pb2.PHASE_PREFILL,
            backend="h100-0",
            kind=common_pb2.BACKEND_KIND_GPU,
            device_s=0.010,
            energy_j=2.0,
            cost_usd=0.001,
        ),
        common_pb2.PhaseUse(
            phase=common_pb2.PHASE_DECODE,
            backend="lpu-0",
            kind=common_pb2.BACKEND_KIND_LPU,
            device_s=0.020,
            energy_j=1.0,
            cost_usd=0.002,
        ),
    ]
    return inference_pb2.Finished(
        request_id=request.request_id,
        usage=common_pb2.Usage(
            prompt_tokens=len(request.tokens.ids),
            output_tokens=int(request.engine_options["mock.output_tokens"]),
        ),
        times=common_pb2.PhaseTimes(
            queue_s=0.001, prefill_s=0.002, handoff_s=0.003, decode_s=0.004, e2e_s=0.010
        ),
        uses=uses,
        cost_usd=0.003,
        energy_j=3.0,
        attempts=1,
    )


class ScriptedRouter(inference_pb2_grpc.InferenceServiceServicer):
    """InferenceService by a script."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[inference_pb2.GenerateRequest] = []
        self.cancels: list[int] = []

    async def Generate(  # noqa: N802
        self, request: inference_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.requests.append(request)
        if self.script.fail_reason:
            await context.abort_with_status(rich_status(self.script.fail_reason))
        if self.script.hang:
            await asyncio.sleep(60)
        for first, ids in runs(self.script, request):
            await asyncio.sleep(self.script.step_s)
            yield inference_pb2.GenerateResponse(tokens=inference_pb2.TokenChunk(first_index=first, ids=ids))
        yield inference_pb2.GenerateResponse(finished=finished(request))

    async def Session(self, requests: Any, context: Any) -> None:  # noqa: N802
        live: dict[int, tuple[inference_pb2.GenerateRequest, Iterator[Run]]] = {}
        stepping = asyncio.create_task(self._step(live, context))
        try:
            async for message in requests:
                self.cancels.extend(message.cancels)
                for start in message.starts:
                    self.requests.append(start.request)
                    live[start.stream] = (start.request, runs(self.script, start.request))
        finally:
            stepping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await stepping

    async def _step(
        self, live: dict[int, tuple[inference_pb2.GenerateRequest, Iterator[Run]]], context: Any
    ) -> None:
        while True:
            await asyncio.sleep(max(self.script.step_s, 0.001))
            message = inference_pb2.SessionResponse()
            for stream in list(live):
                self._advance(stream, live, message)
            if message.streams or message.ends:
                await context.write(message)

    def _advance(self, stream: int, live: Any, message: inference_pb2.SessionResponse) -> None:
        request, left = live[stream]
        if self.script.hang:
            return
        end = message.ends.add
        if self.script.fail_reason:
            del live[stream]
            end(
                stream=stream,
                failure=inference_pb2.Failure(code=8, reason=self.script.fail_reason, message="no"),
            )
            return
        run = next(left, None)
        if run is None:
            del live[stream]
            end(stream=stream, finished=finished(request))
            return
        message.streams.append(stream)
        message.epochs.append(1)
        message.first_indices.append(run[0])
        message.counts.append(len(run[1]))
        message.ids.extend(run[1])


def rich_status(reason: str) -> Any:
    """RESOURCE_EXHAUSTED with an ErrorInfo."""
    from grpc_status import rpc_status

    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="polyphase"))
    return rpc_status.to_status(status_pb2.Status(code=8, message="no", details=[detail]))


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[tuple[ScriptedRouter, str]]:
    """The router and its address."""
    server = grpc.aio.server()
    router = ScriptedRouter(script)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(router, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield router, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def _serve(script: Script) -> None:
    async with serving(script) as (_, address):
        print(address, flush=True)
        await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(_serve(Script(**json.loads(sys.argv[1]))))
