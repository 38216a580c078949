"""FleetService: workers announce themselves, operators look at the fleet and take backends out of it.

Served on the admin listener only. Who may join is the registry's decision.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from polyphase.v1 import common_pb2, fleet_pb2

from router import wire
from router.core.messages import BackendCordoned, BackendJoined, BackendLost, BackendRemoved
from router.core.ports import LearningModels
from router.errors import CallerError, Reason, Violation
from router.live.admin_rpc import AdminCall, AdminService, CallLimits
from router.live.registry import Member, Registration, Registry
from router.model import BackendSpec, BackendState, BackendView, Phase, Seconds

log = logging.getLogger(__name__)

SERVICE_NAME: Final = fleet_pb2.DESCRIPTOR.services_by_name["FleetService"].full_name
MISSED_HEARTBEATS: Final = 3
MAX_DRAIN_S: Final[Seconds] = 3600.0
_STATES: Final[Mapping[BackendState, fleet_pb2.BackendState]] = {
    BackendState.CONNECTING: fleet_pb2.BACKEND_STATE_CONNECTING,
    BackendState.READY: fleet_pb2.BACKEND_STATE_READY,
    BackendState.CORDONED: fleet_pb2.BACKEND_STATE_CORDONED,
    BackendState.DRAINING: fleet_pb2.BACKEND_STATE_DRAINING,
    BackendState.LOST: fleet_pb2.BACKEND_STATE_LOST,
}


@dataclass(frozen=True, slots=True)
class FleetTimes:
    """Durations of the service, in seconds."""

    heartbeat_s: Seconds = 5.0
    """Asked of workers; after three missed ones the registration counts as lost."""
    drain_s: Seconds = 300.0
    """Of a drain that names no time."""
    settle_s: Seconds = 0.25
    """Changes within it share one message to a watcher: n backends that join would send n squared rows."""
    refresh_s: Seconds = 1.0
    """A watcher hears of loads at least this often."""


class FleetChanges:
    """Wakes watchers when a backend joins, is lost, cordoned or removed. A Tap."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def seen(self, fact: Any, now: Seconds, actions: Sequence[Any]) -> None:
        """Notice facts of the fleet."""
        if isinstance(fact, BackendJoined | BackendLost | BackendRemoved | BackendCordoned):
            self.note()

    def note(self) -> None:
        """Something changed that the core is not told of."""
        self._changed.set()
        self._changed = asyncio.Event()

    def now(self) -> asyncio.Event:
        """An event that is set by the next change."""
        return self._changed


class FleetService:
    """Answers workers and operators."""

    def __init__(
        self,
        registry: Registry,
        view: Callable[[str], BackendView | None],
        changes: FleetChanges,
        times: FleetTimes | None = None,
        limits: CallLimits | None = None,
        learning: LearningModels | None = None,
    ) -> None:
        """`view` looks a backend up in the core's fleet; `learning` says how far its models have drifted."""
        self._registry = registry
        self._view = view
        self._changes = changes
        self._times = times if times is not None else FleetTimes()
        self._limits = limits if limits is not None else CallLimits()
        self._learning = learning
        self._now = asyncio.get_running_loop().time

    def register(self, server: grpc.aio.Server) -> None:
        """Add the methods to a server."""
        methods = {
            "Register": self._register,
            "ListBackends": self._list,
            "WatchBackends": self._watch,
            "CordonBackend": self._cordon,
            "DrainBackend": self._drain,
        }
        AdminService(SERVICE_NAME, methods, self._limits).register(server)

    # --- workers ---

    async def _register(self, call: AdminCall) -> None:
        first = await call.first(fleet_pb2.RegisterRequest)
        registration = await self._registry.register(first.backend, first.address)
        self._changes.note()
        try:
            await call.write(fleet_pb2.RegisterResponse(heartbeat_s=self._times.heartbeat_s))
            if first.leaving or await self._heartbeats(call, first, registration):
                self._registry.goodbye(registration)
                await registration.ended.wait()
        finally:
            self._registry.lost(registration)

    async def _heartbeats(
        self, call: AdminCall, first: fleet_pb2.RegisterRequest, registration: Registration
    ) -> bool:
        """Read until the worker says goodbye (True) or closes its side. Raises when the claim is over."""
        while (message := await self._heartbeat(call, registration)) is not None:
            _check_same(first, message)
            if message.leaving:
                return True
        return False

    async def _heartbeat(
        self, call: AdminCall, registration: Registration
    ) -> fleet_pb2.RegisterRequest | None:
        limit_s = MISSED_HEARTBEATS * self._times.heartbeat_s
        try:
            async with registration.within(limit_s):
                return await call.read(fleet_pb2.RegisterRequest)
        except TimeoutError:
            raise _registration_over(registration, limit_s) from None

    # --- operators ---

    async def _list(self, call: AdminCall) -> None:
        await call.first(fleet_pb2.ListBackendsRequest)
        await call.write(fleet_pb2.ListBackendsResponse(backends=self._backends()))

    async def _watch(self, call: AdminCall) -> None:
        await call.first(fleet_pb2.WatchBackendsRequest)
        while True:
            changed = self._changes.now()
            await call.write(fleet_pb2.WatchBackendsResponse(backends=self._backends()))
            await _set_within(changed, self._times.refresh_s)
            await asyncio.sleep(self._times.settle_s)

    async def _cordon(self, call: AdminCall) -> None:
        asked = await call.first(fleet_pb2.CordonBackendRequest)
        state = self._registry.cordon(asked.backend, asked.undo)
        log.info("operator: backend %s %s", asked.backend, "uncordoned" if asked.undo else "cordoned")
        self._changes.note()
        await call.write(fleet_pb2.CordonBackendResponse(state=_STATES[state]))

    async def _drain(self, call: AdminCall) -> None:
        asked = await call.first(fleet_pb2.DrainBackendRequest)
        limit_s = self._drain_s(asked.timeout_s)
        left = await self._registry.drain(asked.backend, limit_s)
        log.info("operator: backend %s drained, %d phases left", asked.backend, left)
        self._changes.note()
        await call.write(fleet_pb2.DrainBackendResponse(drained=left == 0, in_flight=left))

    def _drain_s(self, asked_s: float) -> Seconds:
        if not 0.0 <= asked_s <= MAX_DRAIN_S:
            why = f"is not between 0 and {MAX_DRAIN_S:g} seconds"
            raise CallerError(
                Reason.INVALID_REQUEST,
                f"timeout_s {why}; nothing was changed; correct it, or leave it out",
                violations=(Violation("timeout_s", why),),
            )
        return asked_s or self._times.drain_s

    # --- rows ---

    def _backends(self) -> list[fleet_pb2.Backend]:
        return [self._row(member) for member in self._registry]

    def _row(self, member: Member) -> fleet_pb2.Backend:
        view = self._view(member.id)
        row = fleet_pb2.Backend(address=member.address, state=_STATES[self._registry.state(member)])
        if view is None:
            row.spec.CopyFrom(common_pb2.BackendSpec(id=member.id))
            return row
        row.spec.CopyFrom(wire.spec_to_proto(view.spec))
        if view.snapshot is not None:
            row.load.CopyFrom(wire.load_to_proto(view.snapshot))
            row.load_age_s = max(0.0, self._now() - view.snapshot.observed_at)
        row.prefills_in_flight = view.in_flight.prefills
        row.decodes_in_flight = view.in_flight.decodes
        row.kv_tokens_booked = view.in_flight.kv_tokens
        row.model_drift.CopyFrom(self._model_drift(view.spec))
        return row

    def _model_drift(self, spec: BackendSpec) -> fleet_pb2.ModelDrift:
        drift = {} if self._learning is None else self._learning.drift(spec)
        return fleet_pb2.ModelDrift(prefill=drift.get(Phase.PREFILL), decode=drift.get(Phase.DECODE))


def _registration_over(registration: Registration, limit_s: Seconds) -> CallerError:
    if registration.ended.is_set():
        return CallerError(
            Reason.CANCELLED,
            "the registration is over: the backend was removed, or registered anew on another stream",
        )
    return CallerError(
        Reason.REQUEST_TOO_SLOW,
        f"no heartbeat came for {limit_s:g} s; the backend is kept while its lane lives; register anew",
    )


async def _set_within(event: asyncio.Event, limit_s: Seconds) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return


def _check_same(first: fleet_pb2.RegisterRequest, message: fleet_pb2.RegisterRequest) -> None:
    """Heartbeats may repeat the announcement, but not change it: the address was judged once."""
    for field in ("backend", "address"):
        said = getattr(message, field)
        if said and said != getattr(first, field):
            raise CallerError(
                Reason.INVALID_REQUEST,
                f"{field} changed on an open registration; it ends here; open another one",
                violations=(Violation(field, "differs from the first message"),),
            )
