"""WorkerService for all workers of a process, behind one port.

Both methods are registered by hand as stream handlers over raw bytes: grpc.aio waits for ever for the
request of a unary handler, and a message that cannot be parsed must end in INVALID_ARGUMENT.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import ip_network
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from polyphase.v1 import worker_pb2

from backends.models.messages import FailReason
from backends.shell.host import WorkerHost
from backends.shell.lane import WRITE_TIMEOUT_S
from backends.shell.mock_worker import MockBoot
from backends.shell.port import Boot
from backends.shell.pull import KVPuller
from backends.shell.status import CallFailedError, abort
from router.address import AddressRules, IPNetwork, parse_host_port
from router.errors import Code, ConfigError, Reason
from router.grpc_options import MAX_MESSAGE_BYTES, server_options
from router.model import BackendSpec, Seconds

log = logging.getLogger(__name__)

SERVICE: Final = "polyphase.v1.WorkerService"

LOOPBACK: Final[tuple[IPNetwork, ...]] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
"""Networks that KV is pulled from unless told otherwise."""

FIRST_MESSAGE_TIMEOUT_S: Final[Seconds] = 10.0
"""A peer that opens a call and sends nothing holds a stream for no longer than this."""

_BEAT_S: Final[Seconds] = 0.05
_DRAIN_POLL_S: Final[Seconds] = 0.01
_CLOSE_GRACE_S: Final[Seconds] = 1.0

Context: TypeAlias = grpc.aio.ServicerContext
Handler = Callable[[Context], Awaitable[None]]
Request = TypeVar("Request", worker_pb2.LaneRequest, worker_pb2.PullKVRequest)


class WorkerServer:
    """Workers on one port; an async context manager.

    `boot` makes them. `listen` and `advertise` are host:port; port 0 takes a free one. `advertise` is the
    address by which peers reach this process, by default the one it listens on. Raises ConfigError when the
    fleet or an address cannot be used.
    """

    def __init__(
        self,
        specs: Sequence[BackendSpec],
        boot: Boot,
        listen: str = "127.0.0.1:0",
        advertise: str | None = None,
        allowed_networks: Sequence[IPNetwork] = LOOPBACK,
        first_message_timeout_s: Seconds = FIRST_MESSAGE_TIMEOUT_S,
        write_timeout_s: Seconds = WRITE_TIMEOUT_S,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._specs = _checked(specs)
        self._boot = boot
        self._listen = listen
        self._advertise = advertise
        self._rules = AddressRules(tuple(allowed_networks))
        self._first_message_timeout_s = first_message_timeout_s
        self._write_timeout_s = write_timeout_s
        self._max_message_bytes = max_message_bytes
        self._hosts: dict[str, WorkerHost] = {}
        self.address = ""
        """host:port the server listens on, once it has started."""

    @property
    def workers(self) -> Mapping[str, WorkerHost]:
        """The workers by backend id."""
        return self._hosts

    @property
    def advertised(self) -> str:
        """The address by which routers and peers reach the workers."""
        return self._advertise or self.address

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop(0.0)

    async def start(self) -> None:
        """Listen. Raises ConfigError when the address is taken or is not host:port."""
        self._server = grpc.aio.server(options=list(server_options(self._max_message_bytes)))
        self._server.add_generic_rpc_handlers((self._handlers(),))
        self.address = _bind(self._server, self._listen)
        self._puller = KVPuller(self._rules, self._max_message_bytes)
        self._hosts = {spec.id: self._host(spec) for spec in self._specs}
        await self._server.start()
        self._heart = asyncio.create_task(self._beat())

    def _host(self, spec: BackendSpec) -> WorkerHost:
        return WorkerHost(spec, self._boot, self.advertised, self._puller)

    async def stop(self, grace_s: Seconds) -> None:
        """Refuse new work, let what runs finish for up to `grace_s`, then close. KV still held is lost."""
        await self.drained(grace_s)
        for host in self._hosts.values():
            host.finish_lanes()
        # Lanes end by themselves now; what has not ended within the grace is cancelled.
        await self._server.stop(min(grace_s, _CLOSE_GRACE_S))
        for host in self._hosts.values():
            host.close()
        self._heart.cancel()
        await asyncio.gather(self._heart, return_exceptions=True)
        await self._puller.close()

    def restart(self, backend_id: str) -> None:
        """Let one worker come back as a new incarnation; its work and KV are lost and its lanes break."""
        self._hosts[backend_id].restart()

    async def drained(self, grace_s: Seconds) -> bool:
        """Refuse new work and wait for what runs; whether it all ended within `grace_s`."""
        for host in self._hosts.values():
            host.drain()
        until = asyncio.get_running_loop().time() + grace_s
        while not all(host.idle for host in self._hosts.values()):
            if asyncio.get_running_loop().time() >= until:
                return False
            await asyncio.sleep(_DRAIN_POLL_S)
        return True

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_BEAT_S)
            for host in self._hosts.values():
                host.beat(loop.time())

    # --- the service ---

    def _handlers(self) -> grpc.GenericRpcHandler:
        raw = grpc.stream_stream_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {"Lane": raw(self._supervised(self._lane)), "PullKV": raw(self._supervised(self._pull_kv))},
        )

    @staticmethod
    def _supervised(serve: Handler) -> Callable[[Any, Context], Awaitable[None]]:
        """A supervision point: one call's fault ends that call, typed, without a word about our insides."""

        async def handler(_: Any, context: Context) -> None:
            try:
                await serve(context)
            except CallFailedError as failure:
                await abort(context, failure)
            except Exception:
                log.exception("a call failed")
                await abort(context, CallFailedError(Code.INTERNAL, Reason.INTERNAL, "the worker failed"))

        return handler

    async def _lane(self, context: Context) -> None:
        request = await self._first(context, worker_pb2.LaneRequest)
        if not request.HasField("hello"):
            raise _invalid("the first message of a lane holds no hello")
        host = self._hosts.get(request.hello.backend)
        if host is None:
            raise CallFailedError(
                Code.NOT_FOUND,
                Reason.UNKNOWN_BACKEND,
                f"No worker {request.hello.backend[:80]!r} is here. The lane ends. "
                f"Correct the fleet: {len(self._hosts)} other workers listen at this address.",
            )
        lane = host.open_lane(self._write_timeout_s)
        try:
            host.take(lane, request.commands)
            welcome = host.welcome(asyncio.get_running_loop().time())
            await lane.serve(context, welcome, host)
        finally:
            host.close_lane(lane)

    async def _pull_kv(self, context: Context) -> None:
        try:
            final = await self._serve_pull(context)
            await context.write(final.SerializeToString())
        except grpc.aio.BaseError:
            return  # the peer left; its KV is gone here, and it tells its router

    async def _serve_pull(self, context: Context) -> worker_pb2.PullKVResponse:
        request = await self._first(context, worker_pb2.PullKVRequest)
        host = self._hosts.get(request.kv.producer)
        if host is None:
            raise CallFailedError(
                Code.FAILED_PRECONDITION,
                FailReason.KV_STALE.upper(),
                f"the KV's producer {request.kv.producer[:80]!r} is not here",
            )

        async def send(chunk: bytes) -> None:
            await self._write_chunk(context, chunk)

        served = await host.serve_kv(request.kv, request.consumer, send)
        return worker_pb2.PullKVResponse(fingerprint=served.fingerprint, bytes=served.moved_bytes)

    async def _write_chunk(self, context: Context, chunk: bytes) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await context.write(worker_pb2.PullKVResponse(chunk=chunk).SerializeToString())
        except TimeoutError:
            raise CallFailedError(
                Code.ABORTED,
                FailReason.KV_TRANSFER.upper(),
                f"the consumer took no KV for {self._write_timeout_s:g} s; the KV was freed",
            ) from None

    async def _first(self, context: Context, kind: type[Request]) -> Request:
        try:
            async with asyncio.timeout(self._first_message_timeout_s):
                message = await context.read()
        except TimeoutError:
            raise CallFailedError(
                Code.DEADLINE_EXCEEDED,
                Reason.REQUEST_TOO_SLOW,
                f"No message came within {self._first_message_timeout_s:g} s. The call ends. Send it sooner.",
            ) from None
        if message is grpc.aio.EOF:  # pyright: ignore[reportAttributeAccessIssue]
            raise _invalid("the call holds no message, or only a part of one")
        try:
            return kind.FromString(message)
        except DecodeError as error:
            raise _invalid(f"the first message is no {kind.DESCRIPTOR.name}") from error


class MockFleetServer(WorkerServer):
    """A fleet of mock workers on one port. The same `seed` gives the same noise of their steps."""

    def __init__(
        self,
        specs: Sequence[BackendSpec],
        listen: str = "127.0.0.1:0",
        seed: int = 0,
        advertise: str | None = None,
        allowed_networks: Sequence[IPNetwork] = LOOPBACK,
        first_message_timeout_s: Seconds = FIRST_MESSAGE_TIMEOUT_S,
        write_timeout_s: Seconds = WRITE_TIMEOUT_S,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        super().__init__(
            specs,
            MockBoot(seed),
            listen,
            advertise,
            allowed_networks,
            first_message_timeout_s,
            write_timeout_s,
            max_message_bytes,
        )


def _invalid(what: str) -> CallFailedError:
    return CallFailedError(
        Code.INVALID_ARGUMENT, Reason.INVALID_REQUEST, f"{what}. The call ends. Check the protocol version."
    )


def _checked(specs: Sequence[BackendSpec]) -> tuple[BackendSpec, ...]:
    if not specs:
        raise ConfigError("The fleet is empty, so that there is nothing to serve. Name at least one backend.")
    ids = [spec.id for spec in specs]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise ConfigError(
            f"The fleet names {sorted(twice)} twice. Nothing was started. Give each its own id."
        )
    return tuple(specs)


def _bind(server: grpc.aio.Server, listen: str) -> str:
    try:
        place = parse_host_port(listen)
        port = server.add_insecure_port(str(place))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"The workers cannot listen on {listen!r}: {error}. Nothing was started. Choose a free host:port."
        ) from error
    return str(type(place)(place.host, port))
