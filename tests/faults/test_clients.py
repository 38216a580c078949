"""Clients that leave, stop reading or change their mind, whatever their request is doing at that time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from polyphase.v1 import inference_pb2, inference_pb2_grpc

from router.core.flight import Stage as FlightStage
from router.model import Priority
from tests.faults.client import Heard, eventually
from tests.faults.policies import LateBinding
from tests.faults.stage import Stage, stage
from tests.live.wires import SMALL_WINDOW, cuttable
from tests.shell.rig import answer, request

ROUNDS = 5
PROMISE_S = 0.1
"""Slots and KV are free so soon after a client has gone. The best of some rounds has to keep it: on a machine
that others use, no single round can be held to it."""


def flight_in(on: Stage, name: str, *stages: FlightStage) -> bool:
    """Whether a request is in one of these stages of its life."""
    flight = on.parts.core.relay.flights.get(name)
    return flight is not None and flight.stage in stages


async def reached(on: Stage, name: str, *stages: FlightStage) -> None:
    """Wait until a request is in one of these stages."""
    await eventually(lambda: flight_in(on, name, *stages), f"{name} never came to {stages}")


async def in_prefill(on: Stage, heard: Heard) -> None:
    """The prompt is being computed."""
    await eventually(lambda: on.fleet.workers["p1"].snapshot().running, "the prefill never began")


async def in_handoff(on: Stage, heard: Heard) -> None:
    """The KV is on its way from one worker to the other."""
    await eventually(lambda: on.fleet.workers["p1"].transferring, "the KV never moved")


async def in_decode(on: Stage, heard: Heard) -> None:
    """Tokens flow."""
    await heard.until(5)


Wait = Callable[[Stage, Heard], Awaitable[None]]
WHERE: list[tuple[Wait, str]] = [
    (in_prefill, "p1,prefill_s=0.3 d1"),
    (in_handoff, "p1,link_s=5 d1"),
    (in_decode, "p1 d1"),
    (in_decode, "b1"),
]


@asynccontextmanager
async def leaving(on: Stage, name: str, how: str) -> AsyncIterator[tuple[Heard, Callable[[], object]]]:
    """A request on a connection of its own, and a way for its client to go."""
    async with cuttable(on.port) as (port, cut):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            heard = on.ask(name, 90_000, stub)
            yield heard, heard.call.cancel if how == "cancels" else cut.set


@pytest.mark.parametrize(("where", "workers"), WHERE, ids=[f"{f.__name__}-{w}" for f, w in WHERE])
@pytest.mark.parametrize("how", ["cancels", "vanishes"])
async def test_a_client_that_leaves_frees_everything(
    where: Wait, workers: str, how: str, record_property: Callable[[str, object], None]
) -> None:
    """A cancelled call or a dead connection stops the work and frees slots and KV at both workers."""
    took: list[float] = []
    async with stage(workers) as on:
        for i in range(ROUNDS):
            async with leaving(on, f"leaves{i}", how) as (heard, leave):
                await where(on, heard)
                leave()
                took.append(await on.quiet())
    record_property("seconds", took)
    assert min(took) < PROMISE_S, took


@pytest.mark.parametrize("how", ["cancels", "vanishes"])
async def test_a_client_that_leaves_the_queue(
    how: str, record_property: Callable[[str, object], None]
) -> None:
    """A request that waits for a place is forgotten; the one that has the place goes on."""
    took: list[float] = []
    async with stage("p1 d1,slots=1,step_s=0.01") as on:
        holder = on.ask("holder", 90_000)
        await holder.until(1)
        for i in range(ROUNDS):
            async with leaving(on, f"queued{i}", how) as (heard, leave):
                name = heard.made.request_id
                await reached(on, name, FlightStage.QUEUED)
                leave()
                took.append(await eventually(lambda: on.left()["open calls"] == 1, "the call is held"))
                assert on.left()["live requests"] == on.left()["flows"] == 1
                assert on.parts.core.queue_depth(Priority.NORMAL) == 0
        await holder.until(len(holder.ids) + 5)
    record_property("seconds", took)
    assert min(took) < PROMISE_S, took


@pytest.mark.parametrize("how", ["cancels", "vanishes"])
async def test_a_session_that_ends_takes_its_requests_along(how: str) -> None:
    """Thirty requests of one session, queued, in prefill, in the handoff and in decode: all are stopped."""
    async with stage("p1,prefill_s=0.02,link_s=0.05 d1,slots=8") as on, cuttable(on.port) as (port, cut):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).Session()
            for i in range(30):
                start = inference_pb2.SessionRequest.Start(stream=i, request=request(f"s{i}", 90_000))
                await call.write(inference_pb2.SessionRequest(starts=[start]))
            assert (await call.read()).streams
            stages = {flight.stage for flight in on.parts.core.relay.flights.values()}
            assert {FlightStage.QUEUED, FlightStage.DECODE} <= stages
            if how == "cancels":
                call.cancel()
            else:
                cut.set()
            await on.quiet()


async def test_a_cancel_between_prefill_and_decode_releases_the_kv() -> None:
    """Nobody pulls the KV of a request that is gone: its producer is told at once, not by its lease's end."""
    took: list[float] = []
    async with stage("p1 d1") as on:
        on.replace(LateBinding())
        for i in range(ROUNDS):
            heard = on.ask(f"between{i}")
            await eventually(lambda: on.parts.core.relay.kv.held, "the prefill never ended")
            assert flight_in(on, heard.made.request_id, FlightStage.BINDING)
            assert on.kv_tokens("p1") > 0
            heard.call.cancel()
            took.append(await on.quiet())
        assert on.parts.core.relay.kv.moved_tokens == 0
    assert min(took) < PROMISE_S, took


async def test_a_client_that_stops_reading_is_given_up() -> None:
    """Its window is full, its time is up: the decode is stopped, the slot is free, others are served."""
    async with stage("p1 d1,step_s=0.00001", config="[limits]\nwrite_timeout_s = 0.5\n") as on:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{on.port}", options=SMALL_WINDOW) as channel:
            call = channel.unary_stream("/polyphase.v1.InferenceService/Generate")(
                _long().SerializeToString()
            )
            await call.read()
            await eventually(lambda: len(on.parts.driver.flows) == 0, "the reader was never given up")
            failed = 'polyphase_cancels_total{reason="SLOW_READER",stage="decode"}'
            assert on.metric(failed) == 1
            await on.quiet()
            await on.ask("others").answer()
            call.cancel()


def _long() -> Any:
    return request("deaf", 131_072)


async def test_a_slow_client_gets_every_token() -> None:
    """A reader that is slow but reads loses nothing: tokens that wait share a message."""
    async with stage("p1 d1,step_s=0.00001") as on:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{on.port}", options=SMALL_WINDOW) as channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request("slow", 60_000))
            ids: list[int] = []
            while (message := await call.read()) is not grpc.aio.EOF:
                assert not message.tokens.ids or message.tokens.first_index == len(ids)
                ids.extend(message.tokens.ids)
                await asyncio.sleep(0.001)
            assert ids == answer(request("slow", 60_000), 60_000)
