"""`polyphase conformance` against a mock in another process: names, exit codes, JSON, a real drain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backends.conformance.run import CHECKS, chosen, conform
from backends.conformance.verdicts import Settings, Target
from backends.shell.mock_worker import MockBoot
from backends.shell.server import WorkerServer
from router.cli.main import cli
from router.errors import BackendError, ConfigError
from tests.conformance.stage import worker

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mock() -> Iterator[tuple[str, int]]:
    """The address and the process id of a mock worker `w`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "protos")))}
    command = (sys.executable, "-m", "tests.shell.fleet_process", "w")
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True) as child:
        assert child.stdout is not None
        yield child.stdout.readline().strip(), child.pid
        child.kill()


def run(*words: str) -> Result:
    """The command, as a user has it."""
    return CliRunner().invoke(cli, ["conformance", *words])


@pytest.mark.process
def test_against_a_process(mock: tuple[str, int]) -> None:
    """A few checks as a table and as JSON; then a real drain, which ends the worker."""
    address, pid = mock
    shown = run(f"w@{address}", "--only", "hello.welcome", "--only", "phase.here")
    assert shown.exit_code == 0, shown.output
    assert "hello.welcome" in shown.output and "2 pass, 0 fail, 0 skip" in shown.output
    drained = run(f"w@{address}", "--only", "drain", "--json", "--drain", f"kill -TERM {pid}")
    assert drained.exit_code == 0, drained.output
    report = json.loads(drained.stdout)
    assert report["counts"] == {"pass": 1, "fail": 0, "skip": 0}
    assert report["targets"] == [{"backend": "w", "address": address}]
    (result,) = report["results"]
    assert result["name"] == "drain" and "DRAINING" in result["evidence"] and "duty" in result["where"]


def test_wrong_words() -> None:
    """Targets and options are refused before anything is sent."""
    assert run().exit_code == 2
    assert "ID@HOST:PORT" in run("127.0.0.1:1").output
    assert run("w@nowhere").exit_code == 2
    assert run("w@127.0.0.1:1", "w@127.0.0.1:2").exit_code == 2
    assert run("w@127.0.0.1:1", "--drain", "'").exit_code == 2
    unknown = run("w@127.0.0.1:1", "--only", "no-such")
    assert unknown.exit_code == 78 and "handle.once" in unknown.output


def test_the_list() -> None:
    """Every check with its rule and its place in the documents; the places exist."""
    listed = run("--list")
    assert listed.exit_code == 0
    assert all(check.name in listed.output for check in CHECKS)
    guide = (ROOT / "docs/guides/write-a-backend.md").read_text()
    for check in CHECKS:
        path, _, place = check.where.partition(", ")
        text = (ROOT / path).read_text()
        words = place.replace("duties ", "duty ").split(" and ")[0]
        number = words.removeprefix("duty ")
        assert f"\n{number}. **" in guide if number.isdigit() else words in text, check.where


def test_names() -> None:
    """Checks are chosen by name or by group; another name is refused with the choice."""
    assert [check.name for check in chosen(["load.cadence"])] == ["load.cadence"]
    assert {check.name.partition(".")[0] for check in chosen(["cancel", "drain"])} == {"cancel", "drain"}
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    with pytest.raises(ConfigError, match=r"no-such.*handle\.once"):
        chosen(["no-such"])


async def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that does not answer, or is somebody else, is told in words."""
    monkeypatch.setattr("backends.conformance.channels.CONNECT_S", 0.5)
    with pytest.raises(BackendError, match="nobody answers"):
        await conform([Target("w", "127.0.0.1:9")], Settings())
    monkeypatch.undo()
    async with WorkerServer([worker("w")], MockBoot(0)) as server:
        with pytest.raises(BackendError, match="NOT_FOUND"):
            await conform([Target("x", server.address)], Settings())
