"""`polyphase dev` and the commands it is made of, as processes, over real gRPC."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process

POLYPHASE = (sys.executable, "-m", "router.cli.main")
QUICK = ("dev", "--base-port", "0", "--speed", "10")


def polyphase(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*POLYPHASE, *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, **env},
    )


@contextmanager
def running(*arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on; killed at the end if it has not left."""
    with subprocess.Popen(
        [*POLYPHASE, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def children_of(pid: int) -> list[int]:
    """Processes that a process started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], within_s: float = 20.0) -> bool:
    """Whether all ended in time."""
    until = time.monotonic() + within_s
    while any(alive(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line on standard output."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_dev_runs_end_to_end(tmp_path: Path) -> None:
    """Nothing failed, every token right, prefill and decode on different kinds, all backends listed."""
    file = tmp_path / "out.json"
    result = polyphase(*QUICK, "--duration", "3", "--json", str(file))
    assert result.returncode == 0, result.stdout + result.stderr
    report: dict[str, Any] = json.loads(file.read_text())
    assert report["requests"]["ok"] == report["requests"]["total"] > 10
    assert report["integrity"] == {"lost": 0, "duplicated": 0, "mismatched": 0}
    assert report["requests"]["split"] > 0
    assert any(pair["prefill"] != pair["decode"] for pair in report["pairs"])
    assert {backend["kind"] for backend in report["backends"]} == {"gpu", "lpu", "tpu", "npu"}
    assert sum(backend["decodes"] for backend in report["backends"]) == report["requests"]["ok"]
    assert report["cost_usd"] > 0 and report["energy_j"] > 0
    assert report["e2e_s"]["p99"] >= report["e2e_s"]["p50"] >= report["ttft_s"]["p50"] > 0
    for address in report["endpoints"].values():
        assert address in result.stdout
    assert "Who fed whom" in result.stdout


def test_ctrl_c_ends_dev_with_its_summary_and_its_children() -> None:
    """Exit code 0: nothing had failed; no process stays behind."""
    with running(*QUICK, "--duration", "600", "--json", "-") as process:
        assert process.stderr is not None
        while "sent" not in process.stderr.readline():
            pass
        children = children_of(process.pid)
        assert len(children) == 2
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(out)["requests"]["failed"] == 0
    assert gone(children)


def test_children_do_not_outlive_a_dev_that_was_killed() -> None:
    """Their standard input ends with the parent, however it died."""
    with running(*QUICK, "--duration", "600") as process:
        line_of(process)
        children = children_of(process.pid)
        assert len(children) == 2
        process.kill()
    assert gone(children)


def test_a_daemon_that_dies_ends_dev_with_its_last_words() -> None:
    """Not with a summary of a run that never was."""
    with running(*QUICK, "--duration", "600") as process:
        line_of(process)
        children = children_of(process.pid)
        os.kill(children[-1], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "The daemon was killed by signal 9" in errors
    assert "Traceback" not in errors
    assert gone(children)


def test_a_port_in_use_is_said_in_words() -> None:
    """Which one, and what to do; nothing is left running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = polyphase("dev", "--base-port", str(port), "--duration", "1")
    assert result.returncode == 78
    assert f"127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--fleet", "absent"), "there is no fleet 'absent'"),
        (("--policy", "absent"), "absent"),
        (("--trace", "absent.csv"), "absent.csv"),
    ],
)
def test_what_cannot_be_used_exits_78(arguments: tuple[str, ...], words: str) -> None:
    """A fleet, a policy or a trace that is not there."""
    result = polyphase(*QUICK, "--duration", "1", *arguments)
    assert result.returncode == 78, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_serve_mock_load_and_fleet_work_together() -> None:
    """As separate commands: workers register, a load runs clean, a backend is cordoned and drained."""
    any_ports = {f"POLYPHASE_LISTEN__{name}": "127.0.0.1:0" for name in ("DATA", "ADMIN", "METRICS")}
    with running("serve", "--supervised", "--log-level", "error", **any_ports) as daemon:
        places = json.loads(line_of(daemon))
        admin = ("--admin", places["admin"])
        with running(
            "mock",
            "--supervised",
            "--fleet",
            "gpu-lpu",
            "--listen",
            "127.0.0.1:0",
            "--register",
            places["admin"],
        ) as mock:
            line_of(mock)
            assert wait_for_ready(places["admin"], 4)
            load = polyphase(
                "load", places["data"], "--rate", "40", "--duration", "1", "--output-tokens", "20"
            )
            assert load.returncode == 0, load.stderr
            listed = polyphase("fleet", "ls", *admin)
            assert "lpu-0" in listed.stdout and "ready" in listed.stdout
            assert polyphase("fleet", "cordon", "lpu-0", *admin).stdout == "lpu-0 is cordoned.\n"
            assert polyphase("fleet", "uncordon", "lpu-0", *admin).stdout == "lpu-0 is ready.\n"
            assert polyphase("fleet", "drain", "lpu-0", *admin).returncode == 0
            assert polyphase("fleet", "drain", "absent", *admin).returncode == 1
            mock.send_signal(signal.SIGTERM)
            assert mock.wait(timeout=30) == 0
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=30) == 0


def wait_for_ready(admin: str, count: int) -> bool:
    """Whether so many backends became ready in time."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        listed = json.loads(polyphase("fleet", "ls", "--json", "--admin", admin).stdout or "[]")
        if sum(backend["state"] == "ready" for backend in listed) >= count:
            return True
    return False


def test_serve_checks_a_configuration(tmp_path: Path) -> None:
    """--check says yes or no and starts nothing."""
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('[policy]\nname = "round_robin"\n')
    bad.write_text("[limits]\nmax_promt_tokens = 5\n")
    assert polyphase("serve", "--config", str(good), "--check").returncode == 0
    result = polyphase("serve", "--config", str(bad), "--check")
    assert result.returncode == 78
    assert "max_promt_tokens" in result.stderr
