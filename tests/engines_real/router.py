"""The daemon as a process, in front of real engines, and a client of it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from polyphase.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, inference_pb2_grpc

from tests.faults.processes import LISTEN, Child

LAYOUT = "vllm-0.32-tiny-bf16"


@dataclass(slots=True)
class Outcome:
    """What a client saw of one request."""

    ids: list[int] = field(default_factory=list[int])
    error: str = ""
    """Reason of the failure, as in ErrorInfo."""
    ttft_s: float = 0.0
    e2e_s: float = 0.0
    attempts: int = 0
    backends: tuple[str, ...] = ()


def entry(name: str, engine: str, url: str, phases: Sequence[str] = (), **options: Any) -> str:
    """A [[backend]] of the daemon's configuration."""
    spec = 'models = ["tiny"], kind = "cpu", device = "cpu", kv_bytes_per_token = 2048'
    if phases:
        spec += f", kv_layout = {LAYOUT!r}, phases = {list(phases)!r}"
    shown = ", ".join(f"{key} = {value!r}" for key, value in options.items())
    return (
        f"\n[[backend]]\nid = {name!r}\nengine = {engine!r}\nurl = {url!r}\n"
        f"spec = {{ {spec} }}\noptions = {{ {shown} }}\n"
    )


class Daemon:
    """A running router."""

    def __init__(self, child: Child) -> None:
        self.data = child.at["data"]
        self.admin = child.at["admin"]

    async def until_ready(self, count: int) -> None:
        """Until so many backends serve."""
        async with grpc.aio.insecure_channel(self.admin) as channel, asyncio.timeout(60.0):
            stub = fleet_pb2_grpc.FleetServiceStub(channel)
            while await self._ready(stub) < count:
                await asyncio.sleep(0.1)

    async def _ready(self, stub: Any) -> int:
        listed = await stub.ListBackends(fleet_pb2.ListBackendsRequest(), timeout=10)
        return sum(backend.state == fleet_pb2.BACKEND_STATE_READY for backend in listed.backends)


@contextmanager
def daemon(folder: Path, text: str) -> Iterator[Daemon]:
    """A daemon with this configuration; drained at the end."""
    path = folder / "daemon.toml"
    path.write_text(LISTEN + text)
    with (folder / "daemon.log").open("ab") as log:
        child = Child(("router.cli.main", "serve", "--config", str(path), "--supervised"), log)
        try:
            yield Daemon(child.ready())
        finally:
            child.signal(signal.SIGTERM)
            child.signal(signal.SIGTERM)
            time.sleep(1.0)
            child.kill()


def request(prompt: Sequence[int], count: int) -> inference_pb2.GenerateRequest:
    """A greedy request that does not stop early."""
    message = inference_pb2.GenerateRequest(model="tiny", max_new_tokens=count)
    message.tokens.ids.extend(prompt)
    message.sampling.temperature = 0.0
    message.sampling.ignore_eos = True
    return message


async def ask(stub: Any, prompt: Sequence[int], count: int, cancel_after_s: float | None = None) -> Outcome:
    """Run one request; with a time, leave it then. A connection that breaks is no answer: then ask again."""
    outcome = await _ask(stub, prompt, count, cancel_after_s)
    for _ in range(3):
        if outcome.error == "UNAVAILABLE":
            await asyncio.sleep(1.0)
            outcome = await _ask(stub, prompt, count, cancel_after_s)
    return outcome


async def _ask(stub: Any, prompt: Sequence[int], count: int, cancel_after_s: float | None) -> Outcome:
    outcome, began = Outcome(), time.perf_counter()
    call = stub.Generate(request(prompt, count), timeout=280.0)
    leave = None
    if cancel_after_s is not None:
        leave = asyncio.get_running_loop().call_later(cancel_after_s, call.cancel)
    try:
        async for message in call:
            _take(outcome, message, began)
    except grpc.aio.AioRpcError as error:
        outcome.error = _reason(error)
    except asyncio.CancelledError:
        if cancel_after_s is None:
            raise
        outcome.error = "CANCELLED"
    finally:
        if leave is not None:
            leave.cancel()
        call.cancel()
    outcome.e2e_s = time.perf_counter() - began
    return outcome


def _take(outcome: Outcome, message: inference_pb2.GenerateResponse, began: float) -> None:
    if message.tokens.ids and not outcome.ids:
        outcome.ttft_s = time.perf_counter() - began
    outcome.ids.extend(message.tokens.ids)
    if message.HasField("finished"):
        outcome.attempts = message.finished.attempts
        outcome.backends = tuple(use.backend for use in message.finished.uses)


def _reason(error: grpc.aio.AioRpcError) -> str:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = rpc_status.status_pb2.Status.FromString(value)
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return error.code().name


def stub_of(channel: grpc.aio.Channel) -> Any:
    """An InferenceService stub."""
    return inference_pb2_grpc.InferenceServiceStub(channel)
