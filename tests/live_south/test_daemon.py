"""The life of the daemon: starting, refusing to start, draining on signals, leaving nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import urllib.request
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from polyphase.v1 import fleet_pb2_grpc, inference_pb2, inference_pb2_grpc

from router.cli.plug_ins import plug_ins
from router.config import parse_config
from router.errors import ConfigError
from router.live.daemon import Daemon, ListenError
from tests.live_south.daemons import LISTEN, QUICK, daemon, fleet_client, inference_client, until_state
from tests.live_south.scripted import (
    Connection,
    ScriptedWorker,
    decode_done,
    events,
    prefill_done,
    serving,
    tokens,
)
from tests.live_south.test_fleet_service import READY, static

ROOT = Path(__file__).resolve().parents[2]
HELLO = inference_pb2.GenerateRequest(model="m", text="hi", max_new_tokens=3)


async def fails_to_start(text: str) -> ConfigError:
    """The error with which a daemon refuses to start."""
    with pytest.raises(ConfigError) as caught:
        async with asyncio.timeout(20):
            await Daemon(parse_config(text), plug_ins(), handle_signals=False).run()
    return caught.value


@pytest.mark.parametrize("listener", ["data", "admin", "metrics"])
async def test_a_port_in_use_is_named(listener: str) -> None:
    """The message has the key, the address and the way out; what was opened before is closed."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        text = LISTEN.replace(f'{listener} = "127.0.0.1:0"', f'{listener} = "{address}"')
        error = await fails_to_start(text)
        assert isinstance(error, ListenError)
        assert f"listen.{listener}" in error.message
        assert address in error.message


async def test_a_foreign_address_cannot_be_bound() -> None:
    """An address of no interface of this machine is reported like a port in use."""
    text = '[listen]\ndata = "192.0.2.1:0"\nadmin = "127.0.0.1:0"\nmetrics = "127.0.0.1:0"\ninsecure = true\n'
    assert isinstance(await fails_to_start(text), ListenError)


@pytest.mark.parametrize(
    "text",
    [
        'name = "no_such_policy"',
        'fallback = "no_such_policy"',
        "[policy.params]\nno_such_key = 1",
        'file = "/nowhere/policy.toml"',
    ],
)
async def test_a_broken_policy_refuses_the_start(text: str) -> None:
    """Without a last good policy there is nothing to fall back on."""
    error = await fails_to_start(f"{LISTEN}[policy]\n{text}\n")
    assert error.message


async def test_a_recording_that_cannot_be_written_refuses_the_start() -> None:
    """An operator who asked for a recording must not find out later that there is none."""
    error = await fails_to_start(f'{LISTEN}[observe]\nrecord = "/nowhere/x.jsonl"\n')
    assert "observe.record" in error.message


async def test_metrics_are_served_and_closed() -> None:
    """The metrics listener answers while the daemon runs, and its port is free afterwards."""
    async with daemon() as router:
        assert router.addresses is not None
        url = f"http://{router.addresses.metrics}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
        assert "polyphase_event_loop_lag_seconds_count" in text
        host, _, port = router.addresses.metrics.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, int(port)))


async def test_a_recording_is_written(tmp_path: Path) -> None:
    """The facts of a run end up in the file, without the prompt."""
    path = tmp_path / "run.jsonl"
    async with serving(ScriptedWorker()) as worker:
        text = f'[observe]\nrecord = "{path}"\n{static("w1", worker.address)}'
        async with daemon(text) as router, inference_client(router) as client, fleet_client(router) as fleet:
            await until_state(fleet, "w1", READY)
            call = client.Generate(inference_pb2.GenerateRequest(model="m", text="secret", max_new_tokens=3))
            await finish(await worker.connection())
            async for _ in call:
                pass
    written = path.read_text()
    assert "BackendJoined" in written
    assert "DecodeDone" in written
    assert "secret" not in written


async def test_a_daemon_leaves_no_task_behind() -> None:
    """After a drain nothing of the daemon is left on the loop."""
    before = asyncio.all_tasks()
    async with serving(ScriptedWorker()) as worker, daemon(static("w1", worker.address)) as router:
        await worker.connection()
        router.stop()
    await asyncio.sleep(0.1)
    assert {task.get_name() for task in asyncio.all_tasks() - before} == set()


# --- processes -------------------------------------------------------------------------------------


@asynccontextmanager
async def process(tmp_path: Path, extra: str) -> AsyncIterator[tuple[Process, dict[str, str]]]:
    """A daemon in a process of its own, and its addresses."""
    config = tmp_path / "polyphase.toml"
    config.write_text(LISTEN + QUICK + extra)
    command = (sys.executable, "-m", "tests.live_south.run_daemon", str(config))
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}
    child = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=env, stdout=PIPE)
    try:
        assert child.stdout is not None
        async with asyncio.timeout(60):
            line = await child.stdout.readline()
        yield child, json.loads(line)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


@asynccontextmanager
async def clients(addresses: dict[str, str]) -> AsyncIterator[tuple[Any, Any, Any]]:
    """Stubs of InferenceService, FleetService and Health."""
    async with grpc.aio.insecure_channel(addresses["data"]) as data:
        async with grpc.aio.insecure_channel(addresses["admin"]) as admin:
            yield (
                inference_pb2_grpc.InferenceServiceStub(data),
                fleet_pb2_grpc.FleetServiceStub(admin),
                health_pb2_grpc.HealthStub(admin),
            )


async def finish(connection: Connection) -> None:
    """Answer a request with three tokens."""
    start = await connection.command("start_prefill")
    connection.send(events(prefill_done(start.seq)))
    connection.send(tokens(start.seq, 0, [1, 2, 3]))
    connection.send(events(decode_done(start.seq, 3)))


async def exit_code(child: Process, within_s: float = 30.0) -> int:
    """The exit code, once the process has ended."""
    async with asyncio.timeout(within_s):
        return await child.wait()


@pytest.mark.process
async def test_sigterm_drains(tmp_path: Path) -> None:
    """Health turns first, new requests are refused, the running one finishes uncut; exit code 0."""
    async with serving(ScriptedWorker()) as worker:
        async with process(tmp_path, static("w1", worker.address)) as (child, at):
            async with clients(at) as (inference, fleet, health):
                await until_state(fleet, "w1", READY)
                running = inference.Generate(HELLO)
                connection = await worker.connection()
                await connection.command("start_prefill")
                watch = health.Watch(health_pb2.HealthCheckRequest())
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
                child.send_signal(signal.SIGTERM)
                async with asyncio.timeout(20):
                    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await inference.Generate(HELLO).read()
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                await finish(connection)
                got = [token async for message in running for token in message.tokens.ids]
                assert got == [1, 2, 3]
                assert await exit_code(child) == 0


@pytest.mark.process
async def test_a_second_signal_hurries(tmp_path: Path) -> None:
    """The running request ends with UNAVAILABLE, its work is stopped at the worker; exit code 0."""
    async with serving(ScriptedWorker()) as worker:
        async with process(tmp_path, static("w1", worker.address)) as (child, at):
            async with clients(at) as (inference, fleet, _):
                await until_state(fleet, "w1", READY)
                running = inference.Generate(HELLO)
                connection = await worker.connection()
                await connection.command("start_prefill")
                child.send_signal(signal.SIGINT)
                await asyncio.sleep(0.3)
                assert child.returncode is None
                child.send_signal(signal.SIGINT)
                with pytest.raises(grpc.aio.AioRpcError) as cut:
                    await running.read()
                assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
                assert await exit_code(child) == 0
                async with asyncio.timeout(10):
                    await connection.closed.wait()


@pytest.mark.process
async def test_the_grace_is_bounded(tmp_path: Path) -> None:
    """A request that does not end is cut off when the grace is over."""
    async with serving(ScriptedWorker()) as worker:
        extra = f"[drain]\ngrace_s = 0.5\n{static('w1', worker.address)}"
        async with process(tmp_path, extra) as (child, at), clients(at) as (inference, fleet, _):
            await until_state(fleet, "w1", READY)
            running = inference.Generate(HELLO)
            connection = await worker.connection()
            await connection.command("start_prefill")
            child.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError) as cut:
                await running.read()
            assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await exit_code(child) == 0


@pytest.mark.process
async def test_sighup_reloads_the_policy(tmp_path: Path) -> None:
    """After SIGHUP with a good file the metric says so; with a broken one the daemon lives on."""
    policy = tmp_path / "policy.toml"
    policy.write_text('[policy]\nname = "round_robin"\n')
    async with process(tmp_path, '[policy]\nfile = "policy.toml"\n') as (child, at):
        url = f"http://{at['metrics']}/metrics"

        async def until(text: str) -> None:
            async with asyncio.timeout(20):
                while text not in await asyncio.to_thread(_scrape, url):
                    await asyncio.sleep(0.1)

        child.send_signal(signal.SIGHUP)
        await until('polyphase_config_reloads_total{result="ok"} 1.0')
        policy.write_text('[policy]\nname = "no_such_policy"\n')
        await until('polyphase_config_reloads_total{result="failed"} 1.0')
        child.send_signal(signal.SIGTERM)
        assert await exit_code(child) == 0


def _scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310  (our own listener)
        return str(response.read().decode())
