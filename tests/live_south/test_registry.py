"""Who may join the fleet, from where, and when a backend is let go."""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import AsyncIterator, Sequence

import pytest

from router.address import AddressRules, IPAddress, parse_host_port
from router.core.messages import BackendCordoned, BackendJoined, BackendRemoved
from router.errors import PolyphaseError, Reason
from router.live.lane import LaneContext, LaneTimes
from router.live.lanes import LaneSet
from router.live.registry import Registry, RegistryRules
from router.model import BackendView, InFlight
from tests.live_south.scripted import Facts, ScriptedWorker, serving, spec

LOOPBACK = tuple(ipaddress.ip_network(text) for text in ("127.0.0.0/8", "::1/128"))
EVERYWHERE = tuple(ipaddress.ip_network(text) for text in ("0.0.0.0/0", "::/0"))
NAMES = {"good.test": ["127.0.0.1"], "mixed.test": ["127.0.0.1", "169.254.169.254"], "empty.test": []}


async def by_table(host: str, port: int) -> Sequence[IPAddress]:
    """A resolver that knows a few names."""
    if host not in NAMES:
        raise OSError("unknown name")
    return [ipaddress.ip_address(text) for text in NAMES[host]]


class Desk:
    """A registry with a fleet the test sets."""

    def __init__(self, allowed: tuple[object, ...] = LOOPBACK, **rules: object) -> None:
        self.facts = Facts()
        self.views: dict[str, BackendView] = {}
        times = LaneTimes(backoff_min_s=0.02, backoff_max_s=0.2)
        self.lanes = LaneSet(LaneContext(self.facts.tell, random.Random(1), times))
        self.registry = Registry(
            self.lanes,
            self.facts.tell,
            self.views.get,
            RegistryRules(AddressRules(allowed), **rules),  # type: ignore[arg-type]
            by_table,
        )

    def busy(self, backend: str, decodes: int) -> None:
        """Set the core's ledger for a backend."""
        self.views[backend] = BackendView(spec(backend), in_flight=InFlight(decodes=decodes))


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """A registry that admits loopback."""
    desk = Desk()
    async with desk.lanes:
        yield desk


async def reason_of(registry: Registry, backend: str, address: str) -> Reason:
    """Why a registration is refused."""
    with pytest.raises(PolyphaseError) as caught:
        await registry.register(backend, address)
    assert caught.value.message
    return caught.value.reason


FORBIDDEN = [
    "169.254.169.254:8080",
    "169.254.1.1:8080",
    "[fe80::1]:8080",
    "[fd00:ec2::254]:8080",
    "[::ffff:169.254.169.254]:8080",
    "100.100.100.200:8080",
    "0.0.0.0:8080",
    "[::]:8080",
    "224.0.0.1:8080",
    "[ff02::1]:8080",
    "255.255.255.255:8080",
    "127.0.0.1:80",
    "127.0.0.1:1023",
    "127.0.0.1:0",
    "mixed.test:8080",
    "empty.test:8080",
]


@pytest.mark.parametrize("address", FORBIDDEN)
async def test_some_addresses_are_refused_whatever_is_allowed(address: str) -> None:
    """Metadata, link-local, unspecified and multicast addresses stay out even if all networks are allowed."""
    desk = Desk(EVERYWHERE)
    async with desk.lanes:
        assert await reason_of(desk.registry, "w1", address) is Reason.NOT_ALLOWED
        assert len(desk.registry) == 0
        assert len(desk.lanes) == 0


@pytest.mark.parametrize(
    "address", ["10.0.0.1:8080", "192.168.1.1:8080", "8.8.8.8:8080", "[2001:db8::1]:8080"]
)
async def test_networks_outside_the_list_are_refused(desk: Desk, address: str) -> None:
    """By default only this machine may register workers."""
    assert await reason_of(desk.registry, "w1", address) is Reason.NOT_ALLOWED


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254",
        "file:///etc/passwd",
        "unix:/tmp/x",
        "127.0.0.1",
        ":8080",
        "",
        "127.0.0.1:70000",
        "127.0.0.1:-1",
        "127.0.0.1:\uff18\uff10\uff18\uff10",
        "a b:8080",
        "[::1:8080",
        "x" * 10_000 + ":8080",
        "nowhere.test:8080",
        "127.0.0.1:8080/path",
    ],
)
async def test_what_is_no_address_is_refused(desk: Desk, address: str) -> None:
    """Anything but host:port, or a name nobody knows, is invalid."""
    assert await reason_of(desk.registry, "w1", address) is Reason.INVALID_REQUEST


@pytest.mark.parametrize("backend", ["", " ", "a/b", "../x", "ä", "x" * 129, "a\nb", "-a"])
async def test_bad_ids_are_refused(desk: Desk, backend: str) -> None:
    """An id becomes a metric label and a line in logs."""
    assert await reason_of(desk.registry, backend, "127.0.0.1:8080") is Reason.INVALID_REQUEST


@pytest.mark.parametrize("address", ["127.0.0.1:7601", "127.0.0.9:7601", "[::1]:7601"])
async def test_the_router_itself_is_refused(desk: Desk, address: str) -> None:
    """A lane to our own listener would loop."""
    desk.registry.own_ports = frozenset({7601})
    assert await reason_of(desk.registry, "w1", address) is Reason.NOT_ALLOWED


async def test_a_name_is_pinned_to_its_address(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane goes to the address that was judged, whatever the name says later."""
    await desk.registry.register("w1", "good.test:8080")
    monkeypatch.setitem(NAMES, "good.test", ["169.254.169.254"])
    lane = desk.lanes.get("w1")
    assert lane is not None
    assert lane.address == "127.0.0.1:8080"
    assert await reason_of(desk.registry, "w2", "good.test:8080") is Reason.NOT_ALLOWED


async def test_the_fleet_is_bounded() -> None:
    """Beyond max_backends nobody joins; known workers may still register again."""
    desk = Desk(max_backends=2)
    async with desk.lanes:
        for i in (1, 2):
            await desk.registry.register(f"w{i}", "127.0.0.1:8080")
        assert await reason_of(desk.registry, "w3", "127.0.0.1:8080") is Reason.FLEET_FULL
        await desk.registry.register("w1", "127.0.0.1:8080")


async def test_registration_can_be_off() -> None:
    """With registration.enabled = false nobody registers."""
    desk = Desk(may_register=False)
    async with desk.lanes:
        assert await reason_of(desk.registry, "w1", "127.0.0.1:8080") is Reason.NOT_ALLOWED


async def test_an_id_cannot_be_taken_while_its_lane_lives(desk: Desk) -> None:
    """Another address for a living id is refused; once the lane is gone, the worker may have moved."""
    async with serving(ScriptedWorker()) as worker:
        await desk.registry.register("w1", worker.address)
        await desk.facts.wait(BackendJoined)
        assert await reason_of(desk.registry, "w1", "127.0.0.1:8080") is Reason.BACKEND_EXISTS
    lane = desk.lanes.get("w1")
    assert lane is not None
    async with asyncio.timeout(10):
        while lane.connected:
            await asyncio.sleep(0.02)
    async with serving(ScriptedWorker()) as moved:
        await desk.registry.register("w1", moved.address)
        joined = await desk.facts.wait(BackendJoined, 2)
        assert joined.address == moved.address


async def test_a_static_id_belongs_to_the_configuration(desk: Desk) -> None:
    """A worker may register a static id only from its configured address."""
    desk.registry.add_static("w1", "127.0.0.1:8080")
    assert await reason_of(desk.registry, "w1", "127.0.0.1:8081") is Reason.BACKEND_EXISTS
    await desk.registry.register("w1", "127.0.0.1:8080")


async def test_a_lost_registration_does_not_stop_a_living_worker() -> None:
    """Only when lane and registration have both been gone for forget_after_s is the backend removed."""
    desk = Desk(forget_after_s=0.3)
    async with desk.lanes:
        async with serving(ScriptedWorker()) as worker:
            registration = await desk.registry.register("w1", worker.address)
            await desk.facts.wait(BackendJoined)
            desk.registry.lost(registration)
            await asyncio.sleep(0.5)
            await desk.registry.sweep()
            assert desk.registry.get("w1") is not None
        async with asyncio.timeout(10):
            while desk.registry.get("w1") is not None:
                await desk.registry.sweep()
                await asyncio.sleep(0.05)
        assert desk.facts.of(BackendRemoved) == [BackendRemoved("w1")]
        assert len(desk.lanes) == 0


async def test_a_registered_worker_without_lane_is_kept() -> None:
    """While the registration stream is open the lane keeps trying, and so does a static backend's."""
    desk = Desk(forget_after_s=0.01)
    async with desk.lanes:
        await desk.registry.register("w1", "127.0.0.1:1024")
        desk.registry.add_static("w2", "127.0.0.1:1024")
        await asyncio.sleep(0.1)
        await desk.registry.sweep()
        assert len(desk.registry) == 2


async def test_a_new_stream_takes_the_registration_over(desk: Desk) -> None:
    """The loss of the older stream then means nothing."""
    first = await desk.registry.register("w1", "127.0.0.1:8080")
    second = await desk.registry.register("w1", "127.0.0.1:8080")
    desk.registry.lost(first)
    member = desk.registry.get("w1")
    assert member is not None
    assert first.ended.is_set()
    assert member.registration is second


async def test_goodbye_waits_for_the_work(desk: Desk) -> None:
    """A worker that leaves gets nothing new and goes when its last phase has ended."""
    async with serving(ScriptedWorker()) as worker:
        registration = await desk.registry.register("w1", worker.address)
        await desk.facts.wait(BackendJoined)
        desk.busy("w1", 1)
        desk.registry.goodbye(registration)
        assert desk.facts.of(BackendCordoned) == [BackendCordoned("w1", True, True)]
        await desk.registry.sweep()
        assert desk.registry.get("w1") is not None
        desk.busy("w1", 0)
        await desk.registry.sweep()
        assert desk.registry.get("w1") is None
        assert registration.ended.is_set()


async def test_a_drain_waits_then_removes_and_keeps_out(desk: Desk) -> None:
    """After a drain the worker cannot register until the cordon is undone."""
    await desk.registry.register("w1", "127.0.0.1:8080")
    desk.busy("w1", 2)
    assert await desk.registry.drain("w1", 0.1) == 2
    assert desk.registry.get("w1") is not None
    desk.busy("w1", 0)
    assert await desk.registry.drain("w1", 5.0) == 0
    assert desk.facts.of(BackendRemoved) == [BackendRemoved("w1")]
    assert await reason_of(desk.registry, "w1", "127.0.0.1:8080") is Reason.NOT_ALLOWED
    desk.registry.cordon("w1", undo=True)
    await desk.registry.register("w1", "127.0.0.1:8080")


async def test_a_drained_static_backend_comes_back(desk: Desk) -> None:
    """Undoing the cordon opens its lane again."""
    desk.registry.add_static("w1", "127.0.0.1:8080")
    assert await desk.registry.drain("w1", 1.0) == 0
    desk.registry.cordon("w1", undo=True)
    member = desk.registry.get("w1")
    assert member is not None
    assert (member.address, member.is_static) == ("127.0.0.1:8080", True)


async def test_an_undone_drain_does_not_remove(desk: Desk) -> None:
    """Undoing the cordon while a drain waits keeps the backend."""
    desk.registry.add_static("w1", "127.0.0.1:8080")
    desk.busy("w1", 1)
    draining = asyncio.create_task(desk.registry.drain("w1", 30.0))
    await asyncio.sleep(0.1)
    desk.registry.cordon("w1", undo=True)
    desk.busy("w1", 0)
    with pytest.raises(PolyphaseError):
        async with asyncio.timeout(10):
            await draining
    assert desk.registry.get("w1") is not None


async def test_a_cordon_before_the_first_join_is_kept(desk: Desk) -> None:
    """The core knows no backend that never joined; the registry repeats the cordon when it does."""
    desk.registry.add_static("w1", "127.0.0.1:8080")
    desk.registry.cordon("w1", undo=False)
    before = len(desk.facts.of(BackendCordoned))
    desk.registry.seen(BackendJoined(spec("w1"), "boot-1"), 1.0, ())
    assert desk.facts.of(BackendCordoned)[before:] == [BackendCordoned("w1", True, False)]


@pytest.mark.parametrize("act", ["cordon", "drain"])
async def test_unknown_backends_are_named(desk: Desk, act: str) -> None:
    """Operators get NOT_FOUND for a typing error."""
    with pytest.raises(PolyphaseError) as caught:
        if act == "cordon":
            desk.registry.cordon("nope", undo=False)
        else:
            await desk.registry.drain("nope", 1.0)
    assert caught.value.reason is Reason.UNKNOWN_BACKEND


def test_host_and_port_round_trip() -> None:
    """Addresses print as they are written."""
    for text in ("127.0.0.1:0", "[::1]:65535", "a-b.c_d.example:1", "localhost:7600"):
        assert str(parse_host_port(text)) == text
