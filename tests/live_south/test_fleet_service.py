"""FleetService over real gRPC: registration streams, lists, watches, cordons and drains."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from polyphase.v1 import common_pb2, fleet_pb2, inference_pb2, worker_pb2

from tests.live_south.daemons import code_of, daemon, fleet_client, inference_client, states, until_state
from tests.live_south.scripted import (
    ScriptedWorker,
    decode_done,
    events,
    load,
    prefill_done,
    serving,
    tokens,
)

READY = fleet_pb2.BACKEND_STATE_READY
LOST = fleet_pb2.BACKEND_STATE_LOST
CORDONED = fleet_pb2.BACKEND_STATE_CORDONED
DRAINING = fleet_pb2.BACKEND_STATE_DRAINING


def announce(backend: str, address: str, leaving: bool = False) -> fleet_pb2.RegisterRequest:
    """A message of a registration stream."""
    return fleet_pb2.RegisterRequest(backend=backend, address=address, leaving=leaving)


def static(backend: str, address: str) -> str:
    """A [[backend]] entry."""
    return f'[[backend]]\nid = "{backend}"\naddress = "{address}"\n'


async def one_token(client: Any, worker: ScriptedWorker) -> inference_pb2.GenerateResponse:
    """Run a request of one token; the last message."""
    call = client.Generate(inference_pb2.GenerateRequest(model="m", text="hi", max_new_tokens=1))
    connection = await worker.connection()
    start = await connection.command("start_prefill")
    connection.send(events(prefill_done(start.seq)))
    connection.send(tokens(start.seq, 0, [5]))
    connection.send(events(decode_done(start.seq, 1)))
    last = None
    async for message in call:
        last = message
    assert last is not None
    return last


async def test_a_registered_worker_serves_and_survives_the_loss_of_its_stream() -> None:
    """Register, join, serve; when the stream breaks, the worker stays; when its lane breaks, it is LOST."""
    async with serving(ScriptedWorker()) as worker, daemon() as router:
        async with fleet_client(router) as fleet, inference_client(router) as client:
            call = fleet.Register()
            await call.write(announce("w1", worker.address))
            reply = await call.read()
            assert reply.heartbeat_s > 0
            await until_state(fleet, "w1", READY)
            call.cancel()
            last = await one_token(client, worker)
            assert last.finished.usage.output_tokens == 1
            assert (await states(fleet)) == {"w1": READY}
            (await worker.connection()).end()
            await until_state(fleet, "w1", READY)  # at once connected again


async def test_list_shows_spec_load_and_address() -> None:
    """A row has what the worker said of itself, how old that is, and what the router booked."""
    async with serving(ScriptedWorker()) as worker, daemon(static("w1", worker.address)) as router:
        async with fleet_client(router) as fleet:
            await until_state(fleet, "w1", READY)
            (await worker.connection()).send(load(running=3, kv_used_tokens=77))
            async with asyncio.timeout(10):
                while True:
                    [row] = (await fleet.ListBackends(fleet_pb2.ListBackendsRequest(), timeout=10)).backends
                    if row.load.running:
                        break
                    await asyncio.sleep(0.05)
            assert (row.spec.device, row.address, row.load.kv_used_tokens) == ("H100", worker.address, 77)
            assert 0 <= row.load_age_s < 10
            assert (row.prefills_in_flight, row.decodes_in_flight) == (0, 0)


async def test_a_backend_that_never_came_is_listed() -> None:
    """An operator sees a configured backend whose worker does not answer."""
    async with daemon(static("w1", "127.0.0.1:1")) as router, fleet_client(router) as fleet:
        assert await states(fleet) == {"w1": fleet_pb2.BACKEND_STATE_CONNECTING}


async def test_watch_tells_of_changes() -> None:
    """A watcher gets the fleet at once, and again after a cordon."""
    async with serving(ScriptedWorker()) as worker, daemon(static("w1", worker.address)) as router:
        async with fleet_client(router) as fleet:
            await until_state(fleet, "w1", READY)
            call = fleet.WatchBackends(fleet_pb2.WatchBackendsRequest())
            first = await call.read()
            assert [backend.state for backend in first.backends] == [READY]
            reply = await fleet.CordonBackend(fleet_pb2.CordonBackendRequest(backend="w1"), timeout=10)
            assert reply.state == CORDONED
            async with asyncio.timeout(10):
                while (await call.read()).backends[0].state != CORDONED:
                    pass
            call.cancel()


async def test_a_cordon_outlives_a_reconnect_and_is_undone() -> None:
    """A worker that restarts stays cordoned until an operator says otherwise."""
    async with serving(ScriptedWorker()) as worker, daemon(static("w1", worker.address)) as router:
        async with fleet_client(router) as fleet:
            await until_state(fleet, "w1", READY)
            await fleet.CordonBackend(fleet_pb2.CordonBackendRequest(backend="w1"), timeout=10)
            (await worker.connection()).end()
            await worker.connection(2)
            await until_state(fleet, "w1", CORDONED)
            undo = fleet_pb2.CordonBackendRequest(backend="w1", undo=True)
            assert (await fleet.CordonBackend(undo, timeout=10)).state == READY


async def test_drain_waits_for_the_request_then_removes() -> None:
    """The running request finishes, the drain reports it, and the backend is gone."""
    async with serving(ScriptedWorker()) as worker, daemon(static("w1", worker.address)) as router:
        async with fleet_client(router) as fleet, inference_client(router) as client:
            await until_state(fleet, "w1", READY)
            call = client.Generate(inference_pb2.GenerateRequest(model="m", text="hi", max_new_tokens=1))
            reading = asyncio.create_task(call.read())
            connection = await worker.connection()
            start = await connection.command("start_prefill")
            short = fleet_pb2.DrainBackendRequest(backend="w1", timeout_s=0.1)
            reply = await fleet.DrainBackend(short, timeout=10)
            assert (reply.drained, reply.in_flight > 0) == (False, True)
            assert (await states(fleet))["w1"] == DRAINING
            draining = asyncio.create_task(
                _drained(fleet, fleet_pb2.DrainBackendRequest(backend="w1", timeout_s=20))
            )
            connection.send(events(prefill_done(start.seq)))
            connection.send(tokens(start.seq, 0, [5]))
            connection.send(events(decode_done(start.seq, 1)))
            assert (await reading).tokens.ids == [5]
            assert await draining == (True, 0)
            assert await states(fleet) == {}
            call.cancel()


async def _drained(fleet: Any, request: fleet_pb2.DrainBackendRequest) -> tuple[bool, int]:
    reply = await fleet.DrainBackend(request, timeout=30)
    return reply.drained, reply.in_flight


async def test_goodbye_removes_an_idle_worker() -> None:
    """A worker that leaves is gone within moments, and its stream ends well."""
    async with serving(ScriptedWorker()) as worker, daemon() as router, fleet_client(router) as fleet:
        call = fleet.Register()
        await call.write(announce("w1", worker.address))
        await call.read()
        await until_state(fleet, "w1", READY)
        await call.write(announce("w1", "", leaving=True))
        await until_state(fleet, "w1", None)
        async with asyncio.timeout(10):
            assert await call.read() is grpc.aio.EOF


async def test_a_second_address_for_a_living_id_already_exists() -> None:
    """Two workers under one id would take each other's commands."""
    async with serving(ScriptedWorker()) as worker, daemon() as router, fleet_client(router) as fleet:
        first = fleet.Register()
        await first.write(announce("w1", worker.address))
        await first.read()
        await until_state(fleet, "w1", READY)
        second = fleet.Register()
        await second.write(announce("w1", "127.0.0.1:2000"))
        assert await code_of(second) is grpc.StatusCode.ALREADY_EXISTS
        first.cancel()


async def test_missed_heartbeats_end_the_stream_only() -> None:
    """A silent registration ends with DEADLINE_EXCEEDED; the backend stays while its lane lives."""
    quick = "[registration]\nheartbeat_s = 0.2\n"
    async with serving(ScriptedWorker()) as worker, daemon(quick) as router, fleet_client(router) as fleet:
        call = fleet.Register()
        await call.write(announce("w1", worker.address))
        await call.read()
        await until_state(fleet, "w1", READY)
        async with asyncio.timeout(10):
            assert await code_of(call) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await states(fleet) == {"w1": READY}


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("http://169.254.169.254", grpc.StatusCode.INVALID_ARGUMENT),
        ("file:///etc/passwd", grpc.StatusCode.INVALID_ARGUMENT),
        ("169.254.169.254:8080", grpc.StatusCode.PERMISSION_DENIED),
        ("0.0.0.0:8080", grpc.StatusCode.PERMISSION_DENIED),
        ("10.1.2.3:8080", grpc.StatusCode.PERMISSION_DENIED),
        ("127.0.0.1:22", grpc.StatusCode.PERMISSION_DENIED),
        ("admin", grpc.StatusCode.PERMISSION_DENIED),
        ("data", grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_hostile_registrations_are_refused(address: str, code: grpc.StatusCode) -> None:
    """Metadata services, files, foreign networks and our own listeners cannot be registered."""
    async with daemon() as router, fleet_client(router) as fleet:
        assert router.addresses is not None
        own = {"admin": router.addresses.admin, "data": router.addresses.data}
        call = fleet.Register()
        await call.write(announce("w1", own.get(address, address)))
        assert await code_of(call) is code
        assert await states(fleet) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e18])
async def test_impossible_drain_times_are_refused(value: float) -> None:
    """A drain needs a time that passes."""
    async with daemon(static("w1", "127.0.0.1:1")) as router, fleet_client(router) as fleet:
        call = fleet.DrainBackend(fleet_pb2.DrainBackendRequest(backend="w1", timeout_s=value), timeout=10)
        assert await code_of(call) is grpc.StatusCode.INVALID_ARGUMENT


async def test_operators_get_not_found_for_a_typing_error() -> None:
    """An unknown backend is NOT_FOUND in both commands."""
    async with daemon() as router, fleet_client(router) as fleet:
        for call in (
            fleet.CordonBackend(fleet_pb2.CordonBackendRequest(backend="x"), timeout=10),
            fleet.DrainBackend(fleet_pb2.DrainBackendRequest(backend="x"), timeout=10),
        ):
            assert await code_of(call) is grpc.StatusCode.NOT_FOUND


async def test_a_changed_announcement_ends_the_stream() -> None:
    """A heartbeat that names another address would slip past the rules."""
    async with daemon() as router, fleet_client(router) as fleet:
        call = fleet.Register()
        await call.write(announce("w1", "127.0.0.1:2000"))
        await call.read()
        await call.write(announce("w1", "127.0.0.1:3000"))
        assert await code_of(call) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_first_message_that_never_comes_or_is_garbage() -> None:
    """Half-open registrations end in time with a typed status; so do bytes that are no message."""
    limits = "[limits]\nfirst_message_timeout_s = 0.3\n"
    async with daemon(limits) as router:
        assert router.addresses is not None
        async with grpc.aio.insecure_channel(router.addresses.admin) as channel:
            raw = channel.stream_stream("/polyphase.v1.FleetService/Register")
            async with asyncio.timeout(10):
                assert await code_of(raw()) is grpc.StatusCode.DEADLINE_EXCEEDED
            call = raw()
            await call.write(b"\xff\xff\xff")
            assert await code_of(call) is grpc.StatusCode.INVALID_ARGUMENT
            call = raw()
            await call.done_writing()
            assert await code_of(call) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_spec_that_poisons_predictions_never_joins() -> None:
    """A worker with an impossible step model would fail every request of its model; it is refused."""
    worker = ScriptedWorker()
    worker.spec.step.CopyFrom(common_pb2.StepParameters(base_s=0.001, noise_sigma=1e9))
    async with serving(worker), daemon(static("w1", worker.address)) as router:
        async with fleet_client(router) as fleet:
            await worker.connection(2)
            assert await states(fleet) == {"w1": fleet_pb2.BACKEND_STATE_CONNECTING}


async def test_a_registration_storm_is_taken() -> None:
    """Two hundred workers that register at once all join; a watcher is not sent two hundred fleets."""
    worker = ScriptedWorker()

    def welcome(hello: worker_pb2.Hello) -> bytes:
        spec = common_pb2.BackendSpec()
        spec.CopyFrom(worker.spec)
        spec.id = hello.backend
        welcome = worker_pb2.Welcome(spec=spec, incarnation="boot-1")
        return worker_pb2.LaneResponse(welcome=welcome).SerializeToString()

    worker.welcome_for = welcome
    async with serving(worker), daemon() as router, fleet_client(router) as fleet:
        watching = fleet.WatchBackends(fleet_pb2.WatchBackendsRequest())
        calls = [fleet.Register() for _ in range(200)]
        for i, call in enumerate(calls):
            await call.write(announce(f"w{i}", worker.address))
        async with asyncio.timeout(60):
            messages = ready = 0
            while ready < 200:
                ready = [backend.state for backend in (await watching.read()).backends].count(READY)
                messages += 1
        assert messages < 200
        for call in (*calls, watching):
            call.cancel()
