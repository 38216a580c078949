"""The life of the router's process: listen, serve, follow signals, drain, leave.

    SIGTERM, SIGINT   health says NOT_SERVING, new requests are refused, running ones finish; exit 0
    a second one      running requests are cut off with UNAVAILABLE, their work is stopped
    SIGHUP            the policy file is read again

Startup either succeeds as a whole or raises ConfigError with nothing left open.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from typing import Final

import grpc
from prometheus_client import CollectorRegistry

from router.address import HostPort, parse_host_port
from router.config import DaemonConfig
from router.core.messages import DrainStarted, RequestCancelled
from router.errors import ConfigError, Reason
from router.grpc_options import server_options
from router.live.admin import HEALTH, Registrable, admin_server
from router.live.assembly import Parts, PlugIns, assemble
from router.live.decision_service import SERVICE_NAME as DECISIONS
from router.live.exposition import exposed
from router.live.fleet_service import SERVICE_NAME as FLEET
from router.model import Seconds

log = logging.getLogger(__name__)

LAG_PROBE_S: Final[Seconds] = 0.1
SWEEP_S: Final[Seconds] = 1.0
_POLL_S: Final[Seconds] = 0.05
_FLUSH_S: Final[Seconds] = 1.0
"""For the last messages of calls that have ended."""
_HURRY_S: Final[Seconds] = 0.2
_CHORE_PAUSE_S: Final[Seconds] = 1.0


class ListenError(ConfigError):
    """An address cannot be listened on: in use, or not of this machine."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the daemon listens, as host:port."""

    data: str
    admin: str
    metrics: str

    def as_dict(self) -> dict[str, str]:
        """By listener."""
        return asdict(self)


class Daemon:
    """One router. `run` may be called once."""

    def __init__(self, config: DaemonConfig, plug_ins: PlugIns, *, handle_signals: bool = True) -> None:
        """With handle_signals, run must be called in the main thread."""
        self.serving = asyncio.Event()
        """Set once all listeners are open; `addresses` is valid from then on."""
        self.addresses: Addresses | None = None
        self.parts: Parts | None = None
        """What runs; for tests and for embedding."""
        self._config = config
        self._plug_ins = plug_ins
        self._handle_signals = handle_signals
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    def stop(self) -> None:
        """As SIGTERM: drain; called again, hurry."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def run(self) -> None:
        """Serve until stopped. Raises ConfigError when it cannot start."""
        seed = self._config.policy.seed
        seed = seed if seed is not None else random.SystemRandom().getrandbits(63)
        parts = assemble(self._config, self._plug_ins, seed)
        self.parts = parts
        async with AsyncExitStack() as stack:
            if parts.recorder is not None:
                stack.push_async_callback(asyncio.to_thread, parts.recorder.close)
            stack.push_async_callback(asyncio.to_thread, parts.insight.close)
            stack.callback(parts.driver.close)
            if parts.pricing is not None:
                stack.callback(parts.pricing.close)
            await stack.enter_async_context(parts.lanes)
            servers = await stack.enter_async_context(self._listening(parts))
            if self._handle_signals:
                stack.enter_context(self._signals(parts))
            await self._serve(parts, servers)

    # --- serving ---

    async def _serve(self, parts: Parts, servers: Servers) -> None:
        for backend, address, opener in parts.backends:
            parts.registry.add_static(backend, address, opener)
        async with asyncio.TaskGroup() as tasks:
            chores = [
                tasks.create_task(_chore("sweep", lambda: _sweep(parts))),
                tasks.create_task(_chore("lag probe", lambda: _probe_lag(parts.metrics.loop_lag))),
            ]
            if parts.watch is not None:
                chores.append(tasks.create_task(_chore("policy watch", parts.watch.run)))
            if parts.pricing is not None:
                chores.append(tasks.create_task(_chore("pricing", parts.pricing.run)))
            await servers.data.start()
            await servers.admin.start()
            self.serving.set()
            log.info("serving on %s", self.addresses)
            await self._stopping.wait()
            await self._drain(parts)
            await servers.data.stop(_HURRY_S if self._hurry.is_set() else _FLUSH_S)
            for chore in chores:
                chore.cancel()

    async def _drain(self, parts: Parts) -> None:
        """Let requests finish; what is left when the time is up, or on a second signal, is cut off."""
        log.info("draining: %d requests are live", len(parts.driver.flows))
        parts.health.stop_serving()
        parts.driver.tell(DrainStarted())
        parts.service.drain()
        deadline = asyncio.get_running_loop().time() + self._config.drain.grace_s
        while parts.driver.flows or parts.service.calls:
            if self._hurry.is_set() or asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(_POLL_S)
        for flow in parts.driver.flows:
            log.warning("request %s is cut off: the router shuts down", flow.id)
            parts.driver.tell(RequestCancelled(flow.id, Reason.DRAINING))

    @contextmanager
    def _signals(self, parts: Parts) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGHUP: lambda: _reload(parts),
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    # --- listeners ---

    @asynccontextmanager
    async def _listening(self, parts: Parts) -> AsyncIterator[Servers]:
        """All listeners bound, none started; all closed at the end."""
        listen = self._config.listen
        data = grpc.aio.server(options=server_options(self._config.limits.max_request_bytes))
        parts.service.register(data)
        services: list[Registrable] = [parts.fleet_service, parts.insight.service, parts.health]
        admin = admin_server(services, [FLEET, DECISIONS, HEALTH])
        try:
            data_at, admin_at = _bind(data, listen.data, "data"), _bind(admin, listen.admin, "admin")
            async with _metrics_server(listen.metrics, parts.exposition) as metrics_at:
                self.addresses = Addresses(str(data_at), str(admin_at), str(metrics_at))
                parts.registry.own_ports = frozenset({data_at.port, admin_at.port, metrics_at.port})
                yield Servers(data, admin)
        finally:
            await data.stop(0)
            await admin.stop(_HURRY_S)


@dataclass(frozen=True, slots=True)
class Servers:
    """The gRPC servers."""

    data: grpc.aio.Server
    admin: grpc.aio.Server


def _bind(server: grpc.aio.Server, address: str, name: str) -> HostPort:
    wanted = parse_host_port(address)
    try:
        port = server.add_insecure_port(str(wanted))
    except RuntimeError as error:
        raise _cannot_listen(name, wanted) from error
    if port == 0:
        raise _cannot_listen(name, wanted)
    return HostPort(wanted.host, port)


@asynccontextmanager
async def _metrics_server(address: str, exposition: CollectorRegistry) -> AsyncIterator[HostPort]:
    """Where Prometheus scrapes."""
    wanted = parse_host_port(address)
    async with AsyncExitStack() as stack:
        try:
            at = await stack.enter_async_context(exposed(exposition, wanted))
        except OSError as error:
            raise _cannot_listen("metrics", wanted) from error
        yield at


def _cannot_listen(name: str, address: HostPort) -> ListenError:
    return ListenError(
        f"listen.{name} = {address}: the address cannot be bound; another process has the port, or the host "
        "is not of this machine. The daemon does not start; stop the other process, or choose another "
        f"address (port 0 takes any free one; POLYPHASE_LISTEN__{name.upper()} overrides the file)"
    )


# --- chores ----------------------------------------------------------------------------------------


async def _chore(name: str, body: Callable[[], Awaitable[None]]) -> None:
    """A supervision point: a chore that fails is started again; the router serves without it meanwhile."""
    while True:
        try:
            await body()
        except Exception:
            log.exception("%s failed; it starts again in %s s", name, _CHORE_PAUSE_S)
        await asyncio.sleep(_CHORE_PAUSE_S)


async def _sweep(parts: Parts) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        await parts.registry.sweep()


async def _probe_lag(note: Callable[[Seconds], None]) -> None:
    """How late the loop's timers are: work that blocks it shows here first."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_PROBE_S
        await asyncio.sleep(LAG_PROBE_S)
        note(max(0.0, loop.time() - due))


def _reload(parts: Parts) -> None:
    if parts.watch is None:
        log.warning("SIGHUP ignored: no policy file is configured; set policy.file to reload a policy")
    else:
        parts.watch.poke()
