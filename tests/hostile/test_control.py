"""Hostile workers, operators and scrapers: the admin and the metrics listener of a real router."""

from __future__ import annotations

import asyncio
import math
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from polyphase.v1 import fleet_pb2, fleet_pb2_grpc

from tests.faults.faulty import Fault, faulty
from tests.hostile.raw import connection, envelope
from tests.hostile.victim import WORKERS, Victim
from tests.live.calls import reason_of

pytestmark = pytest.mark.process

INVALID, DENIED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED
ADMIN_SERVICES = (
    "/polyphase.v1.FleetService/ListBackends",
    "/polyphase.v1.FleetService/Register",
    "/polyphase.v1.FleetService/CordonBackend",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
)


async def refusal(victim: Victim, backend: str, address: str) -> grpc.aio.AioRpcError:
    """How a registration is refused."""
    async with victim.admin() as channel:
        call = fleet_pb2_grpc.FleetServiceStub(channel).Register(timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            # The answer may come before the write has gone out.
            await call.write(fleet_pb2.RegisterRequest(backend=backend, address=address))
            await call.read()
        return caught.value


ADDRESSES: list[tuple[str, grpc.StatusCode]] = [
    ("http://169.254.169.254", INVALID),
    ("file:///etc/passwd", INVALID),
    ("unix:/run/docker.sock", INVALID),
    ("dns:///evil.example:443", INVALID),
    ("127.0.0.1", INVALID),
    ("127.0.0.1:99999", INVALID),
    ("a" * 10_000 + ":8000", INVALID),
    ("127.0.0.1:80\r\nx: y", INVALID),
    ("169.254.169.254:8000", DENIED),
    ("[::ffff:169.254.169.254]:8000", DENIED),
    ("[fd00:ec2::254]:8000", DENIED),
    ("0.0.0.0:8000", DENIED),
    ("[::]:8000", DENIED),
    ("255.255.255.255:8000", DENIED),
    ("10.0.0.1:8000", DENIED),
    ("127.0.0.1:22", DENIED),
    ("2852039166:8000", DENIED),  # 169.254.169.254 as one number, to resolvers that know it
]


@pytest.mark.parametrize(("address", "code"), ADDRESSES, ids=[repr(address[:30]) for address, _ in ADDRESSES])
async def test_a_hostile_address_is_refused(victim: Victim, address: str, code: grpc.StatusCode) -> None:
    """No worker makes the router connect to where it should not."""
    error = await refusal(victim, "w", address)
    assert error.code() in (code, INVALID), error
    assert reason_of(error) in ("INVALID_REQUEST", "NOT_ALLOWED")
    assert [row.spec.id for row in await victim.rows()] == list(WORKERS)


@pytest.mark.parametrize("listener", ["data", "admin", "metrics"])
async def test_the_router_cannot_be_its_own_worker(victim: Victim, listener: str) -> None:
    """Requests would go round in circles."""
    assert (await refusal(victim, "loop", victim.child.at[listener])).code() is DENIED


@pytest.mark.parametrize("backend", ["", "a b", "../x", "x" * 129, "w\n", "<script>", "-w"])
async def test_a_hostile_backend_id_is_refused(victim: Victim, backend: str) -> None:
    """Ids are metric labels and words in logs."""
    assert (await refusal(victim, backend, "127.0.0.1:8000")).code() is INVALID


async def test_an_id_in_use_is_refused(victim: Victim) -> None:
    """Nobody takes another worker's place while it lives."""
    error = await refusal(victim, "p1", "127.0.0.1:8000")
    assert reason_of(error) == "BACKEND_EXISTS"


SPECS: list[tuple[str, Callable[[Any], None]]] = [
    ("costs NaN", lambda spec: _set(spec, "usd_per_hour", math.nan)),
    ("negative KV bytes", lambda spec: _set(spec, "kv_bytes_per_token", -1.0)),
    ("an infinite step", lambda spec: _set(spec.step, "base_s", math.inf)),
    ("a step of 1e300 s", lambda spec: _set(spec.step, "noise_sigma", 1e300)),
    ("an unknown kind", lambda spec: _set(spec, "kind", 77)),
    ("no phase", lambda spec: spec.ClearField("phases")),
    ("no model", lambda spec: spec.ClearField("models")),
    ("another id", lambda spec: _set(spec, "id", "p1")),
]


def _set(message: Any, field: str, value: object) -> None:
    setattr(message, field, value)


@pytest.mark.parametrize("change", [change for _, change in SPECS], ids=[name for name, _ in SPECS])
async def test_a_worker_with_a_hostile_spec_never_joins(
    victim: Victim, change: Callable[[Any], None]
) -> None:
    """Numbers that would poison every prediction, and names that are not its own."""
    async with faulty("b9", Fault.NONE) as (worker, address), victim.admin() as channel:
        change(worker.spec)
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        call = stub.Register()
        await call.write(fleet_pb2.RegisterRequest(backend="b9", address=address))
        assert (await call.read()).heartbeat_s > 0
        await victim.until(lambda: _connected_twice(worker), True)
        [row] = [row for row in await victim.rows() if row.address == address]
        assert row.state == fleet_pb2.BACKEND_STATE_CONNECTING
        await victim.serves()
        await call.write(fleet_pb2.RegisterRequest(leaving=True))
        assert await call.read() is grpc.aio.EOF


async def _connected_twice(worker: Any) -> bool:
    return bool(worker.lanes >= 2)


@pytest.mark.parametrize("path", ADMIN_SERVICES)
async def test_hostile_messages_to_operators(victim: Victim, path: str) -> None:
    """No message, half a message and noise: typed, within the time for a first message."""
    for body, end, statuses in (
        (b"", True, {3}),
        (envelope(b"\xff\xff\xff"), True, {3, 0}),  # List reads nothing of its message
        (b"\x00\x00", False, {4}),
    ):
        async with connection(victim.admin_port) as raw:
            await raw.call(1, body, end=end, **{":path": path})
            if not body:
                await raw.end_stream(1)
            assert (await raw.outcome(1)).status in statuses


async def test_operations_on_backends_that_are_not_there(victim: Victim) -> None:
    """Typing errors, hostile names and impossible times change nothing."""
    async with victim.admin() as channel:
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        for backend in ("nobody", "../p1", "x" * 100_000, "p1\n"):
            for call in (
                stub.CordonBackend(fleet_pb2.CordonBackendRequest(backend=backend), timeout=20),
                stub.DrainBackend(fleet_pb2.DrainBackendRequest(backend=backend), timeout=20),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        for timeout_s in (math.nan, -1.0, 1e18):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                drain = fleet_pb2.DrainBackendRequest(backend="p1", timeout_s=timeout_s)
                await stub.DrainBackend(drain, timeout=20)
            assert caught.value.code() is INVALID


async def test_bytes_that_are_no_http2_on_the_admin_listener(victim: Victim) -> None:
    """As on the data listener."""
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", bytes(range(256))):
        async with connection(victim.admin_port, noise, polite=False) as raw:
            assert (await raw.end()).closed


# --- policies --------------------------------------------------------------------------------------

POLICIES: list[tuple[str, bytes]] = [
    ("two megabytes", b"#" * (2 << 20)),
    ("not TOML", b"[policy\nname = "),
    ("not UTF-8", b'[policy]\nname = "\xff\xfe"\n'),
    ("another table", b'[policy]\nname = "round_robin"\n[evil]\nx = 1\n'),
    ("an unknown name", b'[policy]\nname = "../../evil"\n'),
    ("an import path", b'[policy]\nname = "os:system"\n'),
    ("an unknown key", b'[policy]\nname = "round_robin"\nexec = "rm -rf /"\n'),
    ("a weight of NaN", b'[policy]\nname = "scored"\n[policy.prefill.weights]\nqueue = nan\n'),
    ("an infinite weight", b'[policy]\nname = "scored"\n[policy.prefill.weights]\nqueue = inf\n'),
    (
        "a number of 5,000 digits",
        b'[policy]\nname = "round_robin"\nmax_prefill_queue = ' + b"9" * 5_000 + b"\n",
    ),
    ("brackets 5,000 deep", b'[policy]\nname = "round_robin"\nx = ' + b"[" * 5_000 + b"]" * 5_000 + b"\n"),
    ("nothing", b""),
]


@pytest.mark.parametrize("text", [text for _, text in POLICIES], ids=[name for name, _ in POLICIES])
async def test_a_hostile_policy_file_changes_nothing(victim: Victim, text: bytes) -> None:
    """The last good policy decides on, the refusal is counted, and the log says why."""
    refused = 'polyphase_config_reloads_total{result="failed"}'
    before, said = await victim.metric(refused), len(victim.log())
    file = victim.folder / "policy.toml"
    good = file.read_bytes()
    try:
        file.write_bytes(text)
        victim.reload()
        await victim.until(lambda: victim.metric(refused), before + 1)
        assert "stays in force" in victim.log()[said:]
        await victim.serves()
    finally:
        file.write_bytes(good)
        victim.reload()
        await victim.until(lambda: victim.metric("polyphase_config_last_reload_success"), 1.0)


# --- metrics ---------------------------------------------------------------------------------------


async def test_a_scrape_for_ten_thousand_names(victim: Victim) -> None:
    """A query string of its limit and beyond is answered or refused, at once."""
    for count in (1_000, 10_000):
        names = "&".join(f"name[]=x{i}" for i in range(count))
        code = await asyncio.to_thread(_get, victim, f"/metrics?{names}")
        assert code in (200, 414)


async def test_other_methods_and_paths_on_the_metrics_listener(victim: Victim) -> None:
    """Nothing but metrics is there, and nothing can be changed."""
    for method in ("POST", "PUT", "DELETE", "TRACE"):
        assert await asyncio.to_thread(_get, victim, "/metrics", method) in (405, 501)
    assert await asyncio.to_thread(_get, victim, "/../../etc/passwd") == 200  # any path is /metrics


def _get(victim: Victim, path: str, method: str = "GET") -> int:
    wanted = urllib.request.Request(f"http://{victim.child.at['metrics']}{path}", method=method)
    try:
        with urllib.request.urlopen(wanted, timeout=20) as response:  # noqa: S310  (our own listener)
            assert b"root:" not in response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


async def test_silent_scrapers_hold_no_threads(victim: Victim) -> None:
    """A hundred connections that say nothing get a bounded number of threads; the rest are closed at once."""
    before = victim.threads()
    writers: list[asyncio.StreamWriter] = []
    try:
        for _ in range(100):
            _, writer = await asyncio.open_connection("127.0.0.1", victim.metrics_port)
            writer.write(b"GET /metr")
            writers.append(writer)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            assert victim.threads() - before <= 40
            await asyncio.sleep(0.1)
    finally:
        for writer in writers:
            writer.transport.abort()
