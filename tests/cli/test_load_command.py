"""`polyphase load` as a user runs it: against a scripted router in another process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process


@contextmanager
def scripted(**script: Any) -> Iterator[str]:
    """The address of a scripted router."""
    command = [sys.executable, "-m", "tests.load.scripted", json.dumps(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(scope="module")
def good_router() -> Iterator[str]:
    """One that does everything right."""
    with scripted() as target:
        yield target


def polyphase(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "router.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


SHORT = ("--rate", "100", "--duration", "0.5", "--output-tokens", "10", "--prompt-tokens", "20")


@pytest.mark.parametrize("mode", [(), ("--generate",)], ids=["sessions", "generate"])
def test_a_good_run_exits_0_and_writes_json(good_router: str, tmp_path: Path, mode: tuple[str, ...]) -> None:
    """The JSON has what it promises, and the summary is printed."""
    file = tmp_path / "out.json"
    result = polyphase("load", good_router, *SHORT, *mode, "--json", str(file))
    assert result.returncode == 0, result.stderr
    report = json.loads(file.read_text())
    assert report["requests"]["ok"] == report["requests"]["total"] > 10
    assert report["integrity"] == {"lost": 0, "duplicated": 0, "mismatched": 0}
    assert {"ttft_s", "tpot_s", "e2e_s", "phases", "backends", "cost_usd", "energy_j"} <= set(report)
    assert all(report["e2e_s"][q] > 0 for q in ("p50", "p90", "p99"))
    assert "0 lost, 0 duplicated, 0 mismatched" in result.stdout


def test_json_on_standard_output_stays_alone(good_router: str) -> None:
    """The summary moves to standard error, so that the JSON can be piped."""
    result = polyphase("load", good_router, *SHORT, "--json", "-")
    assert json.loads(result.stdout)["requests"]["failed"] == 0
    assert "Integrity" in result.stderr


def test_a_crossed_limit_exits_1(good_router: str) -> None:
    """And says which one, by how much; a kept one does not."""
    crossed = polyphase("load", good_router, *SHORT, "--max-ttft-p99", "0.000001")
    assert crossed.returncode == 1
    assert "TTFT p99" in crossed.stderr and "is above 1e-06 s" in crossed.stderr
    kept = polyphase("load", good_router, *SHORT, "--max-ttft-p99", "30", "--max-failed-ratio", "0")
    assert kept.returncode == 0, kept.stderr


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"drop_index": 3}, "lost, duplicated or mismatched"),
        ({"corrupt_index": 3}, "lost, duplicated or mismatched"),
        ({"fail_reason": "QUEUE_FULL"}, "requests failed"),
    ],
    ids=["lost", "mismatched", "failed"],
)
def test_a_bad_router_exits_1(script: dict[str, Any], words: str) -> None:
    """Integrity has no tolerance; failures have none unless one is given."""
    with scripted(**script) as target:
        result = polyphase("load", target, *SHORT)
    assert result.returncode == 1
    assert words in result.stderr


def test_a_trace_is_replayed(good_router: str, tmp_path: Path) -> None:
    """All its rows, at a multiple of its speed; the lengths are the trace's."""
    trace = tmp_path / "trace.csv"
    trace.write_text("timestamp_s,input_tokens,output_tokens\n0,10,3\n20,11,4\n40,12,5\n")
    result = polyphase("load", good_router, "--trace", str(trace), "--speed", "100", "--json", "-")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["requests"]["total"], report["tokens"]) == (3, 12)
    assert report["duration_s"] >= 0.4


def test_nobody_there_exits_2() -> None:
    """With a next step, at once, without a traceback."""
    result = polyphase("load", "127.0.0.1:1", *SHORT)
    assert result.returncode == 2
    assert "No router answers at 127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 3


@pytest.mark.parametrize(
    "arguments",
    [("load",), ("load", "nonsense"), ("load", "h:1", "--rate", "0"), ("load", "h:1", "--sessions", "0")],
)
def test_wrong_usage_exits_2(arguments: tuple[str, ...]) -> None:
    """Before anything is sent."""
    assert polyphase(*arguments).returncode == 2


def test_a_bad_trace_exits_78(tmp_path: Path) -> None:
    """EX_CONFIG, with file, line and column."""
    trace = tmp_path / "trace.csv"
    trace.write_text("timestamp_s,input_tokens,output_tokens\n0,ten,3\n")
    result = polyphase("load", "127.0.0.1:1", "--trace", str(trace))
    assert result.returncode == 78
    assert "trace.csv, line 2, column input_tokens" in result.stderr


def test_ctrl_c_prints_the_summary() -> None:
    """What was done until then, as a clean run: nothing failed."""
    with scripted(step_s=0.05, tokens_per_step=1) as target:
        command = [sys.executable, "-m", "router.cli.main", "load", target, "--rate", "50", "--json", "-"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            while "sent" not in process.stderr.readline():
                pass  # the first line of progress: requests are under way
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=30)
    requests = json.loads(out)["requests"]
    assert process.returncode == 0
    assert requests["cancelled"] > 0
    assert requests["failed"] == 0


def test_fleet_without_a_router_exits_2() -> None:
    """The admin commands say where they looked."""
    result = polyphase("fleet", "ls", "--admin", "127.0.0.1:1")
    assert result.returncode == 2
    assert "127.0.0.1:1" in result.stderr and "--admin" in result.stderr
    assert "Traceback" not in result.stderr
