"""Reference workers in this process, as a router sees them: over gRPC, each with a device of its own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from polyphase.v1 import inference_pb2, worker_pb2

from backends.reference.assembly import Ready, Setting, prepare
from backends.reference.device import Device
from backends.reference.precision import Precision
from backends.shell.host import WorkerHost
from backends.shell.server import WorkerServer
from tests.reference.models import VOCABULARY
from tests.shell.rig import LaneEnd, lane

MODEL = "tiny"


def ready(folder: Path, role: str = "both", precision: Precision = Precision.FP32, **more: Any) -> Ready:
    """A worker that is loaded; its id is its role."""
    given: dict[str, Any] = {
        "backend": role,
        "model": folder,
        "name": MODEL,
        "device": "cpu",
        "precision": precision,
        "role": role,
        "kv_tokens": 8192,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 256,
    }
    return prepare(Setting(**{**given, **more}))


class Worker:
    """One worker and a lane to it."""

    def __init__(self, server: WorkerServer, end: LaneEnd) -> None:
        self.server = server
        self.lane = end
        self._writing = asyncio.Lock()

    async def send(self, *commands: worker_pb2.Command) -> None:
        """Write commands; gRPC takes one write at a time."""
        async with self._writing:
            await self.lane.send(*commands)

    @property
    def host(self) -> WorkerHost:
        """Behind the lane."""
        return next(iter(self.server.workers.values()))

    @property
    def kv_used_tokens(self) -> int:
        """By its own account."""
        return self.host.snapshot().kv_used_tokens


@asynccontextmanager
async def running(made: Ready) -> AsyncIterator[Worker]:
    """The worker behind its gRPC server, with a lane open."""
    device = Device()
    try:
        async with WorkerServer([made.spec], made.boot(device)) as server:
            async with lane(server.address, made.spec.id) as end:
                yield Worker(server, end)
    finally:
        await device.close()


def prompt(rng: random.Random, tokens: int) -> list[int]:
    """Random token ids, none of them special."""
    return [rng.randrange(3, VOCABULARY) for _ in range(tokens)]


def greedy(
    name: str, ids: Sequence[int], count: int, *, ignore_eos: bool = True
) -> inference_pb2.GenerateRequest:
    """A request for the likeliest tokens."""
    made = inference_pb2.GenerateRequest(request_id=name, model=MODEL, max_new_tokens=count)
    made.tokens.ids.extend(ids)
    made.sampling.temperature = 0.0
    made.sampling.ignore_eos = ignore_eos
    return made
