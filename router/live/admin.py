"""The admin listener: FleetService, health, and reflection, apart from the data port.

Health follows grpc.health.v1 (https://github.com/grpc/grpc-proto, grpc/health/v1/health.proto): Check, Watch
and List. It has its own bound on open calls, so that a busy router still answers its supervisor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Protocol

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from router.errors import CallerError, Reason
from router.grpc_options import server_options
from router.live.admin_rpc import AdminCall, AdminService, CallLimits

HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
OVERALL: Final = ""
"""The service name under which supervisors ask for the process as a whole."""

_WATCHERS: Final = 1024
_LENGTH_DELIMITED_1: Final = b"\x0a"
_LENGTH_DELIMITED_2: Final = b"\x12"


class Registrable(Protocol):
    """A service that adds itself to a server."""

    def register(self, server: grpc.aio.Server) -> None:
        """Add the methods."""
        ...


class Health:
    """Says whether the router serves. All services change together."""

    def __init__(self, services: Iterable[str], limits: CallLimits | None = None) -> None:
        """`services` are the names that may be asked for, besides the overall one. Serving from the start.

        Of the limits only the times count; health has its own bound on open calls.
        """
        self._services = (OVERALL, *services)
        self._limits = replace(limits or CallLimits(), calls=_WATCHERS)
        self._serving = True
        self._changed = asyncio.Event()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the methods to a server."""
        methods = {"Check": self._check, "Watch": self._watch, "List": self._list}
        AdminService(HEALTH, methods, self._limits).register(server)

    @property
    def serving(self) -> bool:
        """Whether new requests are welcome."""
        return self._serving

    def stop_serving(self) -> None:
        """From now on NOT_SERVING: load balancers send new requests elsewhere."""
        self._serving = False
        self._changed.set()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._services:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        serving = health_pb2.HealthCheckResponse.SERVING
        stopped = health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=serving if self._serving else stopped)

    async def _check(self, call: AdminCall) -> None:
        asked = await call.first(health_pb2.HealthCheckRequest)
        if asked.service not in self._services:
            known = ", ".join(repr(name) for name in self._services)
            raise CallerError(
                Reason.UNKNOWN_SERVICE, f"there is no service {asked.service[:128]!r}; ask for one of {known}"
            )
        await call.write(self._status(asked.service))

    async def _watch(self, call: AdminCall) -> None:
        """The status now and after its one change; then until the caller leaves or the router ends."""
        asked = await call.first(health_pb2.HealthCheckRequest)
        was_serving = self._serving
        await call.write(self._status(asked.service))
        await self._changed.wait()
        if was_serving and asked.service in self._services:
            await call.write(self._status(asked.service))
        await asyncio.Event().wait()

    async def _list(self, call: AdminCall) -> None:
        await call.first_raw()
        entries = (_map_entry(name, self._status(name).SerializeToString()) for name in self._services)
        await call.write_raw(b"".join(entries))


def _map_entry(key: str, value: bytes) -> bytes:
    """One entry of HealthListResponse.statuses (map<string, HealthCheckResponse>, field 1), encoded.

    By hand, because the stubs that grpcio-health-checking ships do not know List yet.
    """
    name = key.encode()
    entry = _LENGTH_DELIMITED_1 + _sized(name) + _LENGTH_DELIMITED_2 + _sized(value)
    return _LENGTH_DELIMITED_1 + _sized(entry)


def _sized(data: bytes) -> bytes:
    if len(data) > 127:
        raise ValueError("a length above 127 takes two bytes")
    return bytes([len(data)]) + data


def admin_server(services: Iterable[Registrable], names: Iterable[str]) -> grpc.aio.Server:
    """A server with these services and reflection over their names. It has no address yet."""
    server = grpc.aio.server(options=server_options())
    for service in services:
        service.register(server)
    # Reflection shows the shape of the API to whoever reaches the port; hence here and nowhere else.
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    return server
