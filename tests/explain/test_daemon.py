"""A running daemon explains its decisions, and runs a shadow policy beside them."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from polyphase.v1 import inference_pb2

from router.cli.main import cli
from router.errors import ConfigError
from tests.live_south.daemons import code_of, daemon, fleet_client, inference_client, until_state
from tests.live_south.scripted import ScriptedWorker, decode_done, events, prefill_done, serving, tokens
from tests.live_south.test_fleet_service import READY, static


async def run(*arguments: str) -> Result:
    """A command, beside the loop that the daemon runs on."""
    return await asyncio.to_thread(CliRunner().invoke, cli, arguments)


def send(client: Any, name: str) -> Any:
    """A request, under way."""
    return client.Generate(
        inference_pb2.GenerateRequest(request_id=name, model="m", text="a secret", max_new_tokens=3)
    )


async def finish(call: Any, worker: ScriptedWorker) -> None:
    """Play the worker of a request until it has ended."""
    connection = await worker.connection()
    seq = (await connection.command("start_prefill")).seq
    connection.send(events(prefill_done(seq)))
    connection.send(tokens(seq, 0, [1]))
    connection.send(events(decode_done(seq, 1)))
    assert [each async for each in call]


async def test_a_request_is_explained_over_the_admin_port(tmp_path: Path) -> None:
    """The answer, the table, the change; and what was asked can be taken home and decided again."""
    quicker, slower = ScriptedWorker("w1"), ScriptedWorker("w2")
    for each, base_s, prompt_s in ((quicker, 0.001, 0.0001), (slower, 0.002, 0.05)):
        each.spec.step.base_s, each.spec.step.per_sequence_s = base_s, 0.0001
        each.spec.step.per_prefill_token_s = prompt_s
    async with serving(quicker) as worker, serving(slower) as other:
        entries = (
            '[policy]\nname = "least_loaded"\n' + static("w1", worker.address) + static("w2", other.address)
        )
        async with (
            daemon(entries) as router,
            fleet_client(router) as fleet,
            inference_client(router) as client,
        ):
            assert router.addresses is not None
            admin = ("--admin", router.addresses.admin)
            for name in ("w1", "w2"):
                await until_state(fleet, name, READY)
            call = send(client, "r1")
            await (await worker.connection()).command("start_prefill")
            saved = tmp_path / "r1.json"
            told = await run("explain", "r1", *admin, "--save", str(saved), "--json", "-")
            assert told.exit_code == 0, told.output
            found = json.loads(told.stdout)
            assert (found["request"], found["model"], found["verdict"]) == ("r1", "m", "w1")
            assert "2 of 2 backends can prefill" in found["sentence"]
            assert "w2" in found["goal"], found["changes_note"]
            assert "sequences decoding on w1: at least" in found["changes"][0]["text"]
            assert "secret" not in saved.read_text()
            again = json.loads((await run("explain", "--dry-run", str(saved), "--json", "-")).stdout)
            assert (again["verdict"], again["goal"]) == ("w1", found["goal"])
            await finish(call, worker)
            shown = await run("explain", "r1", *admin)
            assert "ended well" in shown.output
            missing = await run("explain", "nobody", *admin)
            assert missing.exit_code == 1
            assert "no record of request 'nobody'" in missing.output


async def test_a_router_is_asked_what_it_would_do_with_a_scenes_request(tmp_path: Path) -> None:
    """Through Plan: nothing runs."""
    (scene := tmp_path / "scene.toml").write_text(
        'fleet = "mixed"\n[request]\nmodel = "m"\nprompt_tokens = 40\nmax_new_tokens = 8\nttft_s = 1.0\n'
    )
    async with serving(ScriptedWorker("w1")) as worker, daemon(static("w1", worker.address)) as router:
        async with fleet_client(router) as fleet:
            assert router.addresses is not None
            await until_state(fleet, "w1", READY)
            told = await run(
                "explain", "--dry-run", str(scene), "--router", router.addresses.data, "--json", "-"
            )
            assert told.exit_code == 0, told.output
            assert json.loads(told.stdout)["verdict"] == "w1"
            assert router.parts is not None
            assert router.parts.core.live_requests == 0


async def test_a_request_that_no_policy_saw_is_explained_as_well() -> None:
    """It was refused by the core; the record says why."""
    async with daemon() as router, inference_client(router) as client:
        assert router.addresses is not None
        assert await code_of(send(client, "r1")) is grpc.StatusCode.NOT_FOUND
        told = await run("explain", "r1", "--admin", router.addresses.admin, "--json", "-")
        found = json.loads(told.stdout)
        assert found["verdict"] == "ended without a decision"
        assert "no backend serves model" in found["sentence"]
        save = await run("explain", "r1", "--admin", router.addresses.admin, "--save", "never.json")
        assert save.exit_code == 1
        assert "nothing was written" in save.output


async def test_a_shadow_is_asked_and_never_heeded() -> None:
    """Its agreement is on the metrics page; what it raises costs nobody an answer."""
    shadow = '[shadow]\npolicy = "round_robin"\n'
    async with (
        serving(ScriptedWorker("w1")) as worker,
        daemon(shadow + static("w1", worker.address)) as router,
    ):
        async with fleet_client(router) as fleet, inference_client(router) as client:
            assert router.addresses is not None
            await until_state(fleet, "w1", READY)
            await finish(send(client, "r1"), worker)
            same = 'polyphase_shadow_decisions_total{policy="round_robin",verdict="same"} 1.0'
            async with asyncio.timeout(20):
                while same not in await asyncio.to_thread(scrape, router.addresses.metrics):
                    await asyncio.sleep(0.05)


async def test_a_shadow_that_is_not_known_keeps_the_daemon_from_starting() -> None:
    """As the live policy would."""
    with pytest.raises(ConfigError, match="no_such"):
        async with daemon('[shadow]\npolicy = "no_such"\n'):
            pass


async def test_an_explanation_is_not_on_the_data_port() -> None:
    """Decisions name backends and tenants: operators only."""
    async with daemon() as router:
        assert router.addresses is not None
        async with grpc.aio.insecure_channel(router.addresses.data) as channel:
            call = channel.unary_unary("/polyphase.v1.DecisionService/Explain")
            assert await code_of(call(b"", timeout=10)) is grpc.StatusCode.UNIMPLEMENTED


def scrape(address: str) -> str:
    """The text of a metrics page."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text
