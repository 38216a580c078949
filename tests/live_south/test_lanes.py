"""Lanes against a scripted gRPC worker: greeting, serving, every way a connection ends, and coming back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from polyphase.v1 import worker_pb2

from router.core.messages import (
    BackendJoined,
    BackendLost,
    BackendReported,
    DecodeDone,
    PhaseFailed,
    PrefillDone,
    ReleaseKV,
    StartDecode,
    StartPrefill,
    StopPhase,
)
from router.errors import Reason
from router.live.flow import Flow
from router.live.lane import LaneBrokenError, LaneContext, LaneTimes, Outbox
from router.live.lanes import LaneSet
from router.model import KVHandle, Phase
from tests.live_south.black_hole import black_hole
from tests.live_south.scripted import (
    Facts,
    ScriptedWorker,
    decode_done,
    events,
    flow,
    load,
    prefill_done,
    serving,
    tokens,
)

# Short enough for a test, long enough for a machine under load: only the silence tests wait for silence_s.
PATIENT = LaneTimes(connect_s=10.0, backoff_min_s=0.05, backoff_max_s=0.3, silence_s=30.0)
JUMPY = LaneTimes(connect_s=10.0, backoff_min_s=0.05, backoff_max_s=0.3, silence_s=1.0)


@asynccontextmanager
async def lane_to(address: str, facts: Facts, times: LaneTimes = PATIENT) -> AsyncIterator[LaneSet]:
    """A set with one lane, to worker w1."""
    async with LaneSet(LaneContext(facts.tell, random.Random(1), times, router="test")) as lanes:
        lanes.add("w1", address)
        yield lanes


def begin(lanes: LaneSet, facts: Facts, name: str = "r1", text: str = "hi") -> Flow:
    """Start a request that prefills and decodes at w1."""
    live = flow(facts, name)
    live.payload.text = text
    live.begin(1, "w1", Phase.DECODE, asyncio.get_running_loop().time())
    lanes.start_prefill(StartPrefill(name, 1, "w1", decode_here=True), live)
    return live


async def test_a_request_runs() -> None:
    """Hello names both ends; commands arrive, tokens and events come back, the load is reported."""
    facts = Facts()
    async with serving(ScriptedWorker()) as worker, lane_to(worker.address, facts) as lanes:
        joined = await facts.wait(BackendJoined)
        assert (joined.spec.id, joined.incarnation, joined.address) == ("w1", "boot-1", worker.address)
        connection = await worker.connection()
        assert (connection.hello.backend, connection.hello.router) == ("w1", "test")
        live = begin(lanes, facts)
        start = await connection.command("start_prefill")
        assert (start.epoch, start.decode_here, start.request.text) == (1, True, "hi")
        connection.send(events(prefill_done(start.seq)))
        connection.send(tokens(start.seq, 0, [7, 8]))
        connection.send(events(decode_done(start.seq, 2)))
        connection.send(load(running=2))
        await facts.wait(BackendReported)
        assert [fact.output_tokens for fact in facts.of(DecodeDone)] == [2]
        assert len(facts.of(PrefillDone)) == 1
        assert live.sink.ids == [7, 8]


async def test_commands_gather_while_one_is_written() -> None:
    """A thousand commands all arrive, in order."""
    facts = Facts()
    async with serving(ScriptedWorker()) as worker, lane_to(worker.address, facts) as lanes:
        await facts.wait(BackendJoined)
        connection = await worker.connection()
        for i in range(1000):
            begin(lanes, facts, f"r{i}")
        await connection.command("start_prefill", 1000)
        assert [c.start_prefill.request.request_id for c in connection.commands] == [
            f"r{i}" for i in range(1000)
        ]


async def test_stop_and_release_reach_the_worker() -> None:
    """StopPhase names the seq of the start; ReleaseKV carries the handle with the lease that is left."""
    facts = Facts()
    async with serving(ScriptedWorker()) as worker, lane_to(worker.address, facts) as lanes:
        await facts.wait(BackendJoined)
        connection = await worker.connection()
        begin(lanes, facts)
        lanes.stop_phase(StopPhase("r1", 1, "w1"))
        expires = asyncio.get_running_loop().time() + 20
        lanes.release_kv(ReleaseKV("w1", KVHandle("w1", "boot-1", "r1", 1, "", 4, 0, expires)))
        release = await connection.command("release_kv")
        start, stop = await connection.command("start_prefill"), await connection.command("stop_phase")
        assert start.seq == stop.seq
        assert 0 < release.kv.lease_s <= 20


async def test_a_lane_that_is_down_answers_at_once() -> None:
    """Without a connection a start fails the phase, so that the core can go elsewhere; stops are dropped."""
    facts = Facts()
    async with LaneSet(LaneContext(facts.tell, random.Random(1), PATIENT)) as lanes:
        begin(lanes, facts)
        kv = KVHandle("w0", "boot-0", "r2", 1, "", 4, 0, 1e9)
        lanes.start_decode(StartDecode("r2", 1, "w1", kv), flow(facts, "r2"))
        lanes.stop_phase(StopPhase("r1", 1, "w1"))
        lanes.release_kv(ReleaseKV("w1", kv))
    assert [(fact.reason, fact.phase) for fact in facts.of(PhaseFailed)] == [
        (Reason.BACKEND_LOST, Phase.PREFILL),
        (Reason.BACKEND_LOST, Phase.DECODE),
    ]


def garbage() -> bytes:
    """Bytes that are no LaneResponse."""
    return b"\xff\xff\xff\xff"


def ragged() -> bytes:
    """Token columns that do not fit together."""
    return worker_pb2.LaneResponse(seqs=[1, 2], tokens=[1], indices=[0]).SerializeToString()


@pytest.mark.parametrize("frame", [garbage, ragged])
async def test_a_garbage_frame_ends_the_connection_only(frame: Callable[[], bytes]) -> None:
    """The backend is lost once, the worker sees the call cancelled, and a new connection is made."""
    facts = Facts()
    async with serving(ScriptedWorker()) as worker, lane_to(worker.address, facts) as lanes:
        await facts.wait(BackendJoined)
        connection = await worker.connection()
        begin(lanes, facts)
        connection.send_raw(frame())
        await facts.wait(BackendLost)
        await facts.wait(BackendJoined, 2)
        async with asyncio.timeout(10):
            await connection.closed.wait()
        assert len(facts.of(BackendLost)) == 1


async def test_an_ended_stream_reconnects_with_a_new_boot() -> None:
    """A worker that restarts joins again under its new incarnation."""
    facts = Facts()
    async with serving(ScriptedWorker()) as worker, lane_to(worker.address, facts):
        await facts.wait(BackendJoined)
        worker.incarnation = "boot-2"
        (await worker.connection()).end()
        again = await facts.wait(BackendJoined, 2)
        assert again.incarnation == "boot-2"
        kinds = [type(fact) for fact in facts.all]
        assert kinds == [BackendJoined, BackendLost, BackendJoined]


async def test_a_worker_that_comes_late_or_back_is_found() -> None:
    """The lane may be opened before its worker runs, and finds it again after a restart on the same port."""
    facts = Facts()
    async with serving(ScriptedWorker()) as first:
        address = first.address
    async with lane_to(address, facts) as lanes:
        await asyncio.sleep(0.3)
        lane = lanes.get("w1")
        assert lane is not None
        assert not lane.connected
        for count in (1, 2):
            async with serving(ScriptedWorker(), address):
                await facts.wait(BackendJoined, count)
            await facts.wait(BackendLost, count)
        assert len(facts.of(BackendLost)) == 2


@pytest.mark.parametrize("heartbeat_s", [None, 0.2])
async def test_silence_is_noticed_and_a_heartbeat_is_not_silence(heartbeat_s: float | None) -> None:
    """A worker that says nothing for silence_s is lost; one that only reports its load is not."""
    facts = Facts()
    async with serving(ScriptedWorker()) as worker, lane_to(worker.address, facts, JUMPY):
        connection = await worker.connection()
        if heartbeat_s is None:
            lost = await facts.wait(BackendLost)
            assert "silent" in lost.message
        else:
            for _ in range(12):
                connection.send(load(running=0))
                await asyncio.sleep(heartbeat_s)
            assert facts.of(BackendLost) == []


async def test_a_blocked_event_loop_is_not_the_workers_silence() -> None:
    """When this process itself was late, what the worker sent meanwhile is read before it is judged."""
    facts = Facts()
    async with serving(ScriptedWorker()) as worker, lane_to(worker.address, facts, JUMPY):
        connection = await worker.connection()
        for _ in range(3):
            connection.send(load(running=0))
            await asyncio.sleep(0.1)
            time.sleep(1.6)
            connection.send(load(running=0))
            await asyncio.sleep(0.4)
        assert facts.of(BackendLost) == []


async def test_a_stalled_decode_is_failed_by_the_watchdog() -> None:
    """Heartbeats keep the lane alive, but a decode that gains no token is failed and stopped."""
    facts = Facts()
    times = LaneTimes(connect_s=10.0, silence_s=2.0, decode_stall_s=0.8)
    async with serving(ScriptedWorker()) as worker, lane_to(worker.address, facts, times) as lanes:
        await facts.wait(BackendJoined)
        connection = await worker.connection()
        begin(lanes, facts)
        start = await connection.command("start_prefill")
        connection.send(events(prefill_done(start.seq)))
        while not facts.of(PhaseFailed) and not facts.of(BackendLost):
            connection.send(load(running=1))
            await asyncio.sleep(0.1)
        assert facts.of(PhaseFailed)[0].reason is Reason.BACKEND_STALLED
        assert (await connection.command("stop_phase")).seq == start.seq


def someone_else(worker: ScriptedWorker) -> None:
    """Another worker lives at the address."""
    worker.spec.id = "w2"


def no_welcome(worker: ScriptedWorker) -> None:
    """The first frame is a load report."""
    worker.first = load(running=1).SerializeToString


def impossible_spec(worker: ScriptedWorker) -> None:
    """A number that would poison every prediction."""
    worker.spec.step.base_s = float("nan")


def nameless_boot(worker: ScriptedWorker) -> None:
    """Handles could not be fenced."""
    worker.incarnation = ""


@pytest.mark.parametrize("spoil", [someone_else, no_welcome, impossible_spec, nameless_boot])
async def test_a_wrong_welcome_is_refused_and_retried(spoil: Callable[[ScriptedWorker], None]) -> None:
    """The core never hears of such a worker; the lane keeps trying, so that a correction is enough."""
    facts = Facts()
    worker = ScriptedWorker()
    good = worker.spec.SerializeToString(), worker.first, worker.incarnation
    spoil(worker)
    async with serving(worker), lane_to(worker.address, facts):
        await worker.connection(2)
        assert facts.all == []
        worker.spec.ParseFromString(good[0])
        worker.first, worker.incarnation = good[1:]
        await facts.wait(BackendJoined)


async def test_a_worker_that_never_answers_is_given_up_in_time() -> None:
    """A server that accepts the call and says nothing ends at connect_s, and is tried again."""

    async def mute(requests: object, context: grpc.aio.ServicerContext) -> None:
        calls.append(1)
        await asyncio.sleep(60)

    calls: list[int] = []
    facts = Facts()
    worker = ScriptedWorker()
    worker.lane = mute  # type: ignore[method-assign]
    times = LaneTimes(connect_s=0.5, backoff_max_s=0.2)
    async with serving(worker), lane_to(worker.address, facts, times):
        async with asyncio.timeout(15):
            while len(calls) < 2:
                await asyncio.sleep(0.05)
        assert facts.all == []


async def test_removing_a_lane_cancels_its_call() -> None:
    """grpc.aio never cancels a call that is merely dropped; the worker must see this one end at once."""
    facts = Facts()
    async with serving(ScriptedWorker()) as worker, lane_to(worker.address, facts) as lanes:
        await facts.wait(BackendJoined)
        connection = await worker.connection()
        await lanes.remove("w1")
        async with asyncio.timeout(10):
            await connection.closed.wait()
        assert len(facts.of(BackendLost)) == 1
        assert lanes.get("w1") is None


async def test_a_lane_that_breaks_as_it_is_removed_ends() -> None:
    """A cancellation in the very moment of a failure is not lost: no lane outlives its removal."""
    facts = Facts()
    for delay_s in (0.0, 0.0, 0.001, 0.002):
        async with lane_to("127.0.0.1:1", facts) as lanes:
            async with serving(ScriptedWorker()) as worker:
                await lanes.remove("w1")
                lanes.add("w1", worker.address)
                connection = await worker.connection()
                connection.send_raw(b"\xff\xff\xff\xff")
            await asyncio.sleep(delay_s)
            async with asyncio.timeout(10):
                await lanes.remove("w1")


async def test_a_cancellation_lost_in_a_failing_task_group_still_ends_the_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the connection's failure hides the cancellation, the lane notices it before it tries again."""
    facts = Facts()
    async with LaneSet(LaneContext(facts.tell, random.Random(1), PATIENT)) as lanes:
        lane = lanes.add("w1", "127.0.0.1:1")

        async def hidden() -> str:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            return "the worker broke off in the same moment"

        monkeypatch.setattr(lane, "_serve_once", hidden)
        await asyncio.sleep(0.5)
        async with asyncio.timeout(10):
            await lanes.remove("w1")


async def test_a_black_hole_is_noticed_by_silence() -> None:
    """When the network swallows everything, the lane ends after silence_s, not after gRPC's minute."""
    facts = Facts()
    async with serving(ScriptedWorker()) as worker, black_hole(worker.address) as (proxy, address):
        async with lane_to(address, facts, JUMPY):
            connection = await worker.connection()
            connection.send(load(running=1))
            await facts.wait(BackendReported)
            proxy.swallow = True
            began = asyncio.get_running_loop().time()
            await facts.wait(BackendLost, within_s=20)
            assert asyncio.get_running_loop().time() - began < 15
            proxy.swallow = False
            await facts.wait(BackendJoined, 2, within_s=20)


async def test_ping_timeout_ends_a_black_holed_call_without_our_watchdog() -> None:
    """grpc.http2.ping_timeout_ms is the option that has an effect: a stuck call ends in seconds."""
    options = (
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.http2.ping_timeout_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.use_local_subchannel_pool", 1),
    )
    async with serving(ScriptedWorker()) as worker, black_hole(worker.address) as (proxy, address):
        async with grpc.aio.insecure_channel(address, options) as channel:
            call = channel.stream_stream("/polyphase.v1.WorkerService/Lane")()
            try:
                hello = worker_pb2.LaneRequest(hello=worker_pb2.Hello(backend="w1"))
                await call.write(hello.SerializeToString())
                await call.read()
                proxy.swallow = True
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    async with asyncio.timeout(30):
                        await call.read()
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            finally:
                call.cancel()


async def test_a_worker_that_takes_no_commands_is_lost() -> None:
    """A worker that greets and then reads nothing fills its window and our queue: its lane ends."""
    facts = Facts()
    worker = ScriptedWorker()

    async def deaf(requests: object, context: grpc.aio.ServicerContext) -> None:
        await context.read()
        await context.write(worker.first())
        await asyncio.sleep(60)

    worker.lane = deaf  # type: ignore[method-assign]
    times = LaneTimes(connect_s=10.0, backoff_min_s=5.0, silence_s=30.0, max_queued_commands=200)
    async with serving(worker), lane_to(worker.address, facts, times) as lanes:
        await facts.wait(BackendJoined)
        for i in range(2000):
            begin(lanes, facts, f"r{i}", text="x" * 50_000)
            if i % 20 == 0:
                await asyncio.sleep(0.01)
            if facts.of(BackendLost):
                break
        lost = await facts.wait(BackendLost)
        assert "does not take its commands" in lost.message


async def test_an_overfull_outbox_breaks_the_lane() -> None:
    """Commands a worker does not take are bounded in number and in bytes."""
    for outbox in (Outbox(3, 1 << 20), Outbox(100, 3)):
        for _ in range(4):
            outbox.put(b"x")
        with pytest.raises(LaneBrokenError):
            async with asyncio.timeout(5):
                await outbox.overflow()


async def test_an_outbox_joins_what_waits() -> None:
    """Everything that waits goes out as one message, in order, and the next take waits."""
    outbox = Outbox(100, 1 << 20)
    for part in (b"a", b"b", b"c"):
        outbox.put(part)
    assert await outbox.take() == b"abc"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await outbox.take()
