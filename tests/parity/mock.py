"""One workload twice: through `polyphase mock` over gRPC in real time, and through its engines alone.

The engines run in virtual time. Both see the same arrivals: the virtual run takes the moments at which the
real one sent its requests. Both measure at the same points: from the command to the first token, and to the
last. What is left between the two is the wire, the event loops on both ends, and the noise, drawn anew.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
from polyphase.v1 import inference_pb2, worker_pb2

from backends.catalogue import load_fleet
from backends.models.engine import BatchEngine
from backends.models.messages import DecodeFinished, RunPrefill, StepTokens
from backends.shell.wire import OUTPUT_OPTION
from router.cli.children import child
from router.grpc_options import channel_options
from router.load.samples import QUANTILES, percentile
from router.model import BackendSpec, Seconds
from router.sim.workload import Arrival
from router.wire import BYTES_PER_TOKEN

LANE = "/polyphase.v1.WorkerService/Lane"
METRICS = ("TTFT", "TPOT", "E2E")
LEAD_S = 0.5
"""Between the greeting of the lanes and the first request."""
PATIENCE_S = 60.0
"""For the answers that are under way when the last request has been sent."""


@dataclass(slots=True)
class Call:
    """One request, and when its tokens came; times are seconds from the start of the run."""

    backend: str
    arrival: Arrival
    sent: Seconds = 0.0
    first: Seconds = 0.0
    last: Seconds = 0.0

    def values(self) -> Mapping[str, Seconds]:
        """TTFT, TPOT (of answers of two tokens or more) and E2E."""
        found = {"TTFT": self.first - self.sent, "E2E": self.last - self.sent}
        if (more := self.arrival.output_tokens - 1) > 0:
            found["TPOT"] = (self.last - self.first) / more
        return found


@dataclass(frozen=True, slots=True)
class Row:
    """A percentile of a metric, in real and in virtual time."""

    metric: str
    quantile: str
    real_s: Seconds
    virtual_s: Seconds

    @property
    def error(self) -> float:
        """How far the real one is off."""
        return self.real_s / self.virtual_s - 1.0


# --- real time -------------------------------------------------------------------------------------


class _TimedLane:
    """One lane; the sequence of a command is the position of its call."""

    def __init__(
        self, stream: Any, frames: AsyncIterator[bytes], calls: Sequence[Call], started: Seconds
    ) -> None:
        self._stream = stream
        self._frames = frames
        self._calls = calls
        self._started = started
        self._open: set[int] = set()
        self._waiting: set[int] = set()
        self.done = asyncio.Event()
        self.done.set()

    async def send(self, seq: int) -> None:
        """Write the command of a call, now."""
        call = self._calls[seq]
        message = worker_pb2.LaneRequest(commands=[_command(seq, call.arrival)]).SerializeToString()
        self._open.add(seq)
        self._waiting.add(seq)
        self.done.clear()
        call.sent = self._now()
        await self._stream.write(message)

    async def read(self) -> None:
        """Note when tokens come, until the lane ends."""
        async for raw in self._frames:
            now = self._now()
            frame = worker_pb2.LaneResponse.FromString(raw)
            if self._waiting:
                for seq in self._waiting.intersection(frame.seqs):
                    self._calls[seq].first = now
                    self._waiting.discard(seq)
            for event in frame.events:
                assert not event.HasField("failed"), event
                if event.HasField("decode_done"):
                    self._calls[event.seq].last = now
                    self._open.discard(event.seq)
            if not self._open:
                self.done.set()

    def _now(self) -> Seconds:
        return asyncio.get_running_loop().time() - self._started


def _command(seq: int, arrival: Arrival) -> worker_pb2.Command:
    request = inference_pb2.GenerateRequest(
        request_id=f"r{seq}",
        model=arrival.workload_class,
        text="x" * (BYTES_PER_TOKEN * arrival.prompt_tokens),
        max_new_tokens=arrival.output_tokens,
        engine_options={OUTPUT_OPTION: str(arrival.output_tokens)},
    )
    start = worker_pb2.StartPrefill(seq=seq, epoch=1, request=request, decode_here=True)
    return worker_pb2.Command(start_prefill=start)


async def in_real_time(fleet: str, calls: Sequence[Call]) -> None:
    """Send the calls at their arrivals' times through a mock in another process; fills their times in."""
    names = sorted({call.backend for call in calls})
    arguments = ("mock", "--supervised", "--fleet", fleet, "--listen", "127.0.0.1:0")
    async with child("mock fleet", arguments, {}) as mock, AsyncExitStack() as stack:
        started = asyncio.get_running_loop().time() + LEAD_S
        lanes = {
            name: await stack.enter_async_context(_lane(mock.ready["mock"], name, calls, started))
            for name in names
        }
        for seq, call in enumerate(calls):
            delay = started + call.arrival.at_s - asyncio.get_running_loop().time()
            if delay > 0:
                await asyncio.sleep(delay)
            await lanes[call.backend].send(seq)
        async with asyncio.timeout(PATIENCE_S):
            for one in lanes.values():
                await one.done.wait()


@asynccontextmanager
async def _lane(
    address: str, backend: str, calls: Sequence[Call], started: Seconds
) -> AsyncIterator[_TimedLane]:
    async with grpc.aio.insecure_channel(address, options=list(channel_options())) as channel:
        stream = channel.stream_stream(LANE)()
        hello = worker_pb2.Hello(backend=backend, router="parity")
        await stream.write(worker_pb2.LaneRequest(hello=hello).SerializeToString())
        frames = aiter(stream)
        await anext(frames)  # the greeting
        one = _TimedLane(stream, frames, calls, started)
        async with asyncio.TaskGroup() as group:  # a lane that breaks ends the run
            reader = group.create_task(one.read())
            yield one
            reader.cancel()
            stream.cancel()


# --- virtual time ----------------------------------------------------------------------------------


def in_virtual_time(specs: Sequence[BackendSpec], calls: Sequence[Call], seed: int = 1) -> Sequence[Call]:
    """The same calls, sent when the real ones were, through the engines alone."""
    again = [Call(call.backend, call.arrival, call.sent) for call in calls]
    for spec in specs:
        engine = BatchEngine(spec, Random(f"{seed}/{spec.id}"), 0.0, emit_tokens=False)
        for seq, call in enumerate(again):
            if call.backend == spec.id:
                _wake(engine, again, call.sent)
                a = call.arrival
                command = RunPrefill(seq, "", 1, a.prompt_tokens, (), a.output_tokens, True, True, 0)
                _note(engine.handle(command, call.sent), again, call.sent)
        _wake(engine, again, float("inf"))
    return again


def _wake(engine: BatchEngine, calls: Sequence[Call], until: Seconds) -> None:
    while (due := engine.deadline()) is not None and due <= until:
        _note(engine.advance(due), calls, due)


def _note(events: Sequence[Any], calls: Sequence[Call], now: Seconds) -> None:
    for event in events:
        if isinstance(event, StepTokens):
            for key, index in zip(event.keys, event.indices, strict=True):
                if index == 0:
                    calls[key].first = event.at
        elif isinstance(event, DecodeFinished):
            calls[event.key].last = now


# --- both ------------------------------------------------------------------------------------------


def compare(real: Sequence[Call], virtual: Sequence[Call]) -> Sequence[Row]:
    """Percentiles of both, by metric."""
    rows: list[Row] = []
    for metric in METRICS:
        sides = [
            sorted(values[metric] for call in calls if metric in (values := call.values()))
            for calls in (real, virtual)
        ]
        rows += [
            Row(metric, name, percentile(sides[0], q), percentile(sides[1], q))
            for name, q in QUANTILES.items()
        ]
    return rows


async def run(fleet: str, arrivals: Sequence[Arrival]) -> Sequence[Row]:
    """Both runs of one workload; its requests go to the fleet's backends in turn."""
    specs = load_fleet(fleet).backends
    model = specs[0].models[0]
    turns = cycle(spec.id for spec in specs)
    calls = [
        Call(name, Arrival(a.at_s, a.prompt_tokens, a.output_tokens, workload_class=model))
        for a, name in zip(arrivals, turns, strict=False)
    ]
    await in_real_time(fleet, calls)
    return compare(calls, in_virtual_time(specs, calls))


def written_fleet(folder: Path, profile: str, replicas: int) -> str:
    """A fleet file of one profile that prefills and decodes."""
    path = folder / "parity.toml"
    path.write_text(f'[[backend]]\nprofile = "{profile}"\nid = "b"\nreplicas = {replicas}\n')
    return str(path)


def run_workload(profile: str, replicas: int, arrivals: Sequence[Arrival]) -> Sequence[Row]:
    """Both runs on `replicas` backends of one profile."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run(written_fleet(Path(folder), profile, replicas), arrivals))
