"""Which backends there are: those of the configuration, and those that registered.

It decides who belongs to the fleet and opens and closes their lanes; what a backend can do and how it fares
is the core's knowledge. Losing touch with a registration never stops service: a backend goes when it says
goodbye, when an operator drains it, or when its registration and its lane have both been gone for a while.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from router.address import AddressRules, HostPort, IPAddress, literal_ip, parse_host_port
from router.core.messages import BackendCordoned, BackendJoined, BackendRemoved, Fact
from router.errors import CallerError, CapacityError, Reason, Violation
from router.live.lane import Lane
from router.live.lanes import LaneSet
from router.live.southbound import Link, Opener
from router.model import BackendState, BackendView, Seconds

log = logging.getLogger(__name__)

BACKEND_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
RESOLVE_LIMIT_S: Final[Seconds] = 5.0
_POLL_S: Final[Seconds] = 0.05
_RESOLVING: Final = 8
"""Names looked up at a time: a lookup holds a thread."""

Resolve = Callable[[str, int], Awaitable[Sequence[IPAddress]]]


@dataclass(eq=False, slots=True)
class Member:
    """One backend of the fleet. Updated by the registry only."""

    id: str
    address: str
    is_static: bool
    lane: Link
    opener: Opener = Lane
    """How its link is opened."""
    registration: Registration | None = None
    """The open stream by which it registered."""
    unregistered_since: Seconds = 0.0
    """Loop time of the loss of its last registration."""
    cordoned: bool = False
    draining: bool = False
    leaving: bool = False
    """It said goodbye: it goes once nothing runs there."""


class Registration:
    """A worker's claim to be a member, as long as its stream is open."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.ended = asyncio.Event()
        """Set when the member is gone, or another stream of the same worker took over."""
        self._waiting: asyncio.Timeout | None = None

    def end(self) -> None:
        """Nothing more is expected of the worker: whoever waits for it stops waiting."""
        self.ended.set()
        if self._waiting is not None:
            self._waiting.reschedule(0.0)

    @asynccontextmanager
    async def within(self, limit_s: Seconds) -> AsyncIterator[None]:
        """Wait for the worker. Raises TimeoutError when the time is up, or when the registration ends."""
        async with asyncio.timeout(0.0 if self.ended.is_set() else limit_s) as waiting:
            self._waiting = waiting
            try:
                yield
            finally:
                self._waiting = None


@dataclass(frozen=True, slots=True)
class RegistryRules:
    """Who may register, and for how long an absent backend is remembered."""

    addresses: AddressRules
    max_backends: int = 4096
    forget_after_s: Seconds = 60.0
    may_register: bool = True


async def resolve(host: str, port: int) -> Sequence[IPAddress]:
    """All addresses of a name, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip for entry in found if (ip := literal_ip(str(entry[4][0]))) is not None]


class Registry:
    """The members by id. Also a Tap: it hears from the core when a member joins."""

    def __init__(
        self,
        lanes: LaneSet,
        tell: Callable[[Fact], None],
        view: Callable[[str], BackendView | None],
        rules: RegistryRules,
        resolver: Resolve = resolve,
    ) -> None:
        """`view` looks a backend up in the core's fleet; `resolver` turns names into addresses."""
        self.own_ports: frozenset[int] = frozenset()
        """Ports the router listens on; set once they are known. No worker may claim to be there."""
        self._lanes = lanes
        self._tell = tell
        self._view = view
        self._rules = rules
        self._resolver = resolver
        self._members: dict[str, Member] = {}
        self._drained: dict[str, tuple[str, Opener] | None] = {}
        """Backends an operator drained, until the cordon is undone; with the place of static ones."""
        self._now = asyncio.get_running_loop().time
        self._changing = asyncio.Lock()
        self._resolving = asyncio.Semaphore(_RESOLVING)

    def __iter__(self) -> Iterator[Member]:
        """The members at this time, in order of joining."""
        return iter(tuple(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def get(self, backend: str) -> Member | None:
        """One member."""
        return self._members.get(backend)

    # --- joining ---

    def add_static(self, backend: str, address: str, opener: Opener = Lane) -> None:
        """A backend of the configuration. Its address is the operator's word and is not judged."""
        self._add(backend, address, is_static=True, opener=opener)

    async def register(self, backend: str, address: str) -> Registration:
        """A worker announces itself at host:port. Raises PolyphaseError when it may not join.

        The address is resolved once and pinned: a name that points elsewhere later changes nothing.
        """
        if not self._rules.may_register:
            raise CallerError(Reason.NOT_ALLOWED, _refused(backend, "registration.enabled is false"))
        _check_id(backend)
        pinned = await self._pin(backend, address)
        async with self._changing:
            member = await self._claim(backend, address, pinned)
        if member.registration is not None:
            member.registration.end()
        member.registration = Registration(member)
        return member.registration

    async def _pin(self, backend: str, address: str) -> str:
        target = _parse(address)
        ips = await self._resolve(backend, target)
        why = self._rules.addresses.objection(ips, target.port)
        if why is None and target.port in self.own_ports and any(_is_here(ip) for ip in ips):
            why = f"{target} is this router's own listener"
        if why is not None:
            log.warning("registration of %s at %s refused: %s", backend, target, why)
            raise CallerError(Reason.NOT_ALLOWED, _refused(backend, why), violations=(_violation(why),))
        return str(HostPort(str(ips[0]), target.port))

    async def _resolve(self, backend: str, target: HostPort) -> Sequence[IPAddress]:
        if (ip := literal_ip(target.host)) is not None:
            return [ip]
        try:
            async with asyncio.timeout(RESOLVE_LIMIT_S), self._resolving:
                return await self._resolver(target.host, target.port)
        except (OSError, UnicodeError, TimeoutError):
            why = f"the name {target.host!r} could not be resolved"
            raise CallerError(
                Reason.INVALID_REQUEST, _refused(backend, why), violations=(_violation(why),)
            ) from None

    async def _claim(self, backend: str, address: str, pinned: str) -> Member:
        """The member for an id at an address, made if need be."""
        if backend in self._drained:
            raise CallerError(
                Reason.NOT_ALLOWED,
                _refused(backend, "it was drained; `polyphase fleet uncordon` lets it in again"),
            )
        known = self._members.get(backend)
        if known is None:
            if len(self._members) >= self._rules.max_backends:
                why = f"the fleet is full with {len(self._members)} backends"
                raise CapacityError(Reason.FLEET_FULL, _refused(backend, why))
            return self._add(backend, pinned, is_static=False)
        if known.address in (pinned, address):
            known.leaving = False
            return known
        if known.is_static or known.lane.connected:
            why = (
                f"that id is taken by the backend at {known.address}; use another id, or stop that one first"
            )
            raise CallerError(Reason.BACKEND_EXISTS, _refused(backend, why))
        await self._lanes.remove(backend)
        known.address, known.lane = pinned, self._lanes.add(backend, pinned)
        return known

    def _add(self, backend: str, address: str, is_static: bool, opener: Opener = Lane) -> Member:
        member = Member(backend, address, is_static, self._lanes.add(backend, address, opener), opener)
        self._members[backend] = member
        return member

    # --- leaving ---

    def lost(self, registration: Registration) -> None:
        """The stream of a registration broke. The backend stays: its lane shows whether it lives."""
        if registration.member.registration is registration:
            registration.member.registration = None
            registration.member.unregistered_since = self._now()

    def goodbye(self, registration: Registration) -> None:
        """The worker wants to leave: no new work; it goes once nothing runs there."""
        member = registration.member
        member.leaving = member.draining = True
        self._tell(BackendCordoned(member.id, cordoned=True, draining=True))

    async def remove(self, backend: str) -> None:
        """Forget a backend; what runs there is lost."""
        member = self._members.pop(backend, None)
        if member is None:
            return
        await self._lanes.remove(backend)
        self._tell(BackendRemoved(backend))
        if member.registration is not None:
            member.registration.end()
        log.info("backend %s was removed", backend)

    async def sweep(self) -> None:
        """Once a second: let go of those that left or have been gone for long."""
        for member in self:
            if self._is_over(member):
                async with self._changing:
                    # It may have registered again while we waited for our turn.
                    if self._members.get(member.id) is member and self._is_over(member):
                        await self.remove(member.id)

    def _is_over(self, member: Member) -> bool:
        if member.leaving:
            return not member.lane.connected or self.in_flight(member.id) == 0
        if member.is_static or member.registration is not None or member.lane.down_since is None:
            return False
        gone_since = max(member.lane.down_since, member.unregistered_since)
        return self._now() - gone_since >= self._rules.forget_after_s

    # --- operators ---

    def cordon(self, backend: str, undo: bool) -> BackendState:
        """No new work for a backend, or (undo) work again, also for one that was drained."""
        if undo and backend in self._drained:
            place = self._drained.pop(backend)
            if place is not None:
                self.add_static(backend, *place)
            return BackendState.CONNECTING
        member = self._known(backend)
        member.cordoned, member.draining, member.leaving = not undo, False, False
        self._tell(BackendCordoned(backend, cordoned=not undo))
        return self.state(member)

    async def drain(self, backend: str, timeout_s: Seconds) -> int:
        """Cordon, wait until nothing is in flight, then remove. Returns what is left in flight.

        When the time is up before that, the backend stays, without new work: drain again, or undo the cordon.
        Raises CallerError for an unknown backend, and when the cordon is undone meanwhile.
        """
        member = self._known(backend)
        member.cordoned = member.draining = True
        self._tell(BackendCordoned(backend, cordoned=True, draining=True))
        deadline = self._now() + timeout_s
        # Polled: the ledger is the core's, which wakes nobody.
        while (left := self.in_flight(backend)) > 0 and self._now() < deadline and member.draining:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        if not member.draining:
            text = f"the drain of {backend} was given up: its cordon was undone; the backend stays"
            raise CallerError(Reason.CANCELLED, text)
        if left == 0 and self._members.get(backend) is member:
            self._drained[backend] = (member.address, member.opener) if member.is_static else None
            await self.remove(backend)
        return left

    def in_flight(self, backend: str) -> int:
        """Phases booked at a backend by the core's ledger."""
        view = self._view(backend)
        return 0 if view is None else view.in_flight.prefills + view.in_flight.decodes

    def state(self, member: Member) -> BackendState:
        """As the core sees it; CONNECTING until it has joined for the first time."""
        view = self._view(member.id)
        return BackendState.CONNECTING if view is None else view.state

    def _known(self, backend: str) -> Member:
        member = self._members.get(backend)
        if member is None:
            text = f"there is no backend {backend[:128]!r}; nothing was changed; ListBackends names them all"
            raise CallerError(Reason.UNKNOWN_BACKEND, text)
        return member

    # --- core.ports.Tap ---

    def seen(self, fact: Any, now: Seconds, actions: Sequence[Any]) -> None:
        """A backend that was cordoned before it joined is cordoned when it does."""
        if isinstance(fact, BackendJoined):
            member = self._members.get(fact.spec.id)
            if member is not None and (member.cordoned or member.draining):
                self._tell(BackendCordoned(member.id, cordoned=True, draining=member.draining))


def _check_id(backend: str) -> None:
    if not BACKEND_ID.fullmatch(backend):
        why = "a backend id has 1 to 128 letters, digits and . _ : -, and begins with a letter or digit"
        raise CallerError(
            Reason.INVALID_REQUEST,
            f"{why}; the worker was not registered",
            violations=(Violation("backend", why),),
        )


def _parse(address: str) -> HostPort:
    try:
        return parse_host_port(address)
    except ValueError as error:
        raise CallerError(
            Reason.INVALID_REQUEST,
            f"{error}; the worker was not registered",
            violations=(_violation(str(error)),),
        ) from None


def _violation(why: str) -> Violation:
    return Violation("address", why)


def _refused(backend: str, why: str) -> str:
    return f"backend {backend[:128]!r} was not registered: {why}"


def _is_here(ip: IPAddress) -> bool:
    """Whether an address belongs to this machine: only such an address can be bound."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError:
            return False
        return True
