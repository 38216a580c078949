"""Health and reflection on the admin listener, and what is not on the data listener."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from polyphase.v1 import inference_pb2

from router.live.daemon import Daemon
from tests.live_south.daemons import code_of, daemon, fleet_client, inference_client, until_state
from tests.live_south.scripted import ScriptedWorker, load, serving
from tests.live_south.test_fleet_service import READY, static

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
INFERENCE = "polyphase.v1.InferenceService"


def asked(service: str = "") -> health_pb2.HealthCheckRequest:
    """A health request."""
    return health_pb2.HealthCheckRequest(service=service)


def admin(router: Daemon) -> grpc.aio.Channel:
    """A channel to the admin listener."""
    assert router.addresses is not None
    return grpc.aio.insecure_channel(router.addresses.admin)


async def test_check_knows_the_process_and_the_service() -> None:
    """The overall name and InferenceService serve; another name is NOT_FOUND."""
    async with daemon() as router, admin(router) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", INFERENCE):
            assert (await health.Check(asked(name), timeout=10)).status == SERVING
        assert await code_of(health.Check(asked("nope"), timeout=10)) is grpc.StatusCode.NOT_FOUND


async def test_watch_sees_the_drain() -> None:
    """A watcher hears SERVING at once and NOT_SERVING when the daemon drains; so does an unknown name's."""
    async with daemon() as router, admin(router) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        call, unknown = health.Watch(asked(INFERENCE)), health.Watch(asked("nope"))
        assert (await call.read()).status == SERVING
        assert (await unknown.read()).status == UNKNOWN
        router.stop()
        async with asyncio.timeout(10):
            assert (await call.read()).status == NOT_SERVING
        call.cancel()
        unknown.cancel()


def health_list_response() -> Any:
    """grpc.health.v1.HealthListResponse as health.proto defines it: map<string, Response> statuses = 1."""
    file = descriptor_pb2.FileDescriptorProto(name="list.proto", package="t", syntax="proto3")
    status = file.message_type.add(name="Response")
    status.field.add(name="status", number=1, type=5, label=1)
    listed = file.message_type.add(name="Listed")
    entry = listed.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, type_name=".t.Response", label=1)
    listed.field.add(name="statuses", number=1, type=11, type_name=".t.Listed.StatusesEntry", label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Listed"))


async def test_list_names_every_service() -> None:
    """List answers in the wire format of health.proto."""
    async with daemon() as router, admin(router) as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/List")
        listed = health_list_response().FromString(await call(b"", timeout=10))
        assert {name: row.status for name, row in listed.statuses.items()} == {
            "": SERVING,
            INFERENCE: SERVING,
        }


async def test_reflection_is_on_the_admin_listener_only() -> None:
    """Reflection lists the admin services; the data listener has neither reflection nor admin methods."""
    async with daemon() as router, admin(router) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {service.name for service in (await call.read()).list_services_response.service}
        call.cancel()
        assert {"polyphase.v1.FleetService", "grpc.health.v1.Health"} <= listed
        assert router.addresses is not None
        async with grpc.aio.insecure_channel(router.addresses.data) as data:
            stub = reflection_pb2_grpc.ServerReflectionStub(data)
            assert await code_of(stub.ServerReflectionInfo()) is grpc.StatusCode.UNIMPLEMENTED
            for method in ("/polyphase.v1.FleetService/ListBackends", "/grpc.health.v1.Health/Check"):
                assert (
                    await code_of(data.unary_unary(method)(b"", timeout=10)) is grpc.StatusCode.UNIMPLEMENTED
                )


async def test_health_answers_while_requests_pile_up() -> None:
    """Three hundred open requests and as many watchers of the fleet do not keep the supervisor waiting."""
    async with serving(ScriptedWorker()) as worker, daemon(static("w1", worker.address)) as router:
        async with (
            fleet_client(router) as fleet,
            inference_client(router) as client,
            admin(router) as channel,
        ):
            await until_state(fleet, "w1", READY)
            request = inference_pb2.GenerateRequest(model="m", text="hi", max_new_tokens=4)
            calls = [client.Generate(request) for _ in range(300)]
            connection = await worker.connection()
            connection.send(load(running=300))
            health = health_pb2_grpc.HealthStub(channel)
            for _ in range(20):
                assert (await health.Check(asked(), timeout=10)).status == SERVING
            for call in calls:
                call.cancel()


async def test_health_requests_that_never_come_are_ended() -> None:
    """A half-open health check holds nothing for ever."""
    async with daemon() as router, admin(router) as channel:
        call = channel.stream_stream("/grpc.health.v1.Health/Check")()
        await call.done_writing()
        assert await code_of(call) is grpc.StatusCode.INVALID_ARGUMENT
