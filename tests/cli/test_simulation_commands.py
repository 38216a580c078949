"""`polyphase simulate`, `replay` and `whatif`: what a user types, reads and gets as an exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from router.cli.main import cli
from tests.sim.recordings import record


def run(*arguments: str) -> Result:
    """A command in this process."""
    return CliRunner().invoke(cli, arguments)


SMALL = ("simulate", "--fleet", "homogeneous", "--requests", "150")


def test_two_policies_are_told_apart_in_tables_a_file_and_a_page(tmp_path: Path) -> None:
    """The same numbers three times; the second run of the same command writes the same bytes."""
    written: list[tuple[bytes, bytes]] = []
    for turn in ("1", "2"):
        out, page = tmp_path / f"{turn}.json", tmp_path / f"{turn}.html"
        policies = ("--policy", "predicted", "--policy", "round_robin", "--seeds", "2")
        result = run(*SMALL, *policies, "--json", str(out), "--report", str(page))
        assert result.exit_code == 0, result.output
        written.append((out.read_bytes(), page.read_bytes()))
    assert written[0] == written[1]
    document: dict[str, Any] = json.loads(written[0][0])
    assert [one["policy"] for one in document["runs"]] == ["predicted"] * 2 + ["round_robin"] * 2
    assert all(one["arrived"] == one["ok"] == 150 for one in document["runs"])
    assert "round_robin against predicted" in result.output
    assert "95 % interval" in result.output
    assert b"<svg" in written[0][1]


def test_a_trace_can_be_simulated_at_another_rate() -> None:
    """Objectives come from options, since a trace has none."""
    result = run(
        *SMALL, "--trace", "sharegpt", "--rate", "20", "--ttft-slo", "1", "--tpot-slo", "0.05", "--json", "-"
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["runs"][0]["classes"][0]["objectives"]["ttft"]["of"] == 150


def test_a_load_that_is_too_high_ends_with_exit_code_1(tmp_path: Path) -> None:
    """And with the reason."""
    (one := tmp_path / "one.toml").write_text('[[backend]]\nprofile = "h100-llama-3.1-8b"\nid = "gpu"\n')
    result = run(
        "simulate", "--fleet", str(one), "--workload", "chat", "--rate-scale", "40", "--duration", "120"
    )
    assert result.exit_code == 1
    assert "the load is above what the fleet does" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--policy", "no_such"), 78, "no_such"),
        (("--fleet", "no_such"), 78, "there is no fleet 'no_such'"),
        (("--workload", "no_such"), 78, "there is no workload 'no_such'"),
        (("--trace", "no_such.csv"), 78, "Cannot read the trace"),
        (("--model", "gpt-9"), 78, "no backend of the fleet serves model 'gpt-9'"),
        (("--workload", "chat", "--trace", "azure"), 2, "not both"),
        (("--rate", "5"), 2, "belongs to --trace"),
        (("--fail", "gpu"), 2, "ID@SECONDS"),
        (("--fail", "gpu@5"), 78, "no backend 'gpu' can fail"),
        (("--config", "no_such.toml"), 78, "no_such.toml"),
        (("--policy", "scored", "--policy", "scored"), 2, "named twice"),
        (("--rate-scale", "0"), 2, "rate-scale"),
    ],
)
def test_what_cannot_be_simulated_is_said(arguments: tuple[str, ...], code: int, says: str) -> None:
    """Before anything runs."""
    result = run("simulate", *arguments)
    assert result.exit_code == code
    assert says in " ".join(result.output.split())


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a daemon would have written."""
    return record(tmp_path_factory.mktemp("recording") / "r.jsonl", requests=200)


def test_a_recording_replays(recording: Path) -> None:
    """Exit code 0: every action is the recorded one."""
    result = run("replay", str(recording), "--json", "-")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["entries"] == found["identical"] > 1000


def test_a_recording_that_replays_differently_is_exit_code_1_and_shows_the_first_difference(
    recording: Path, tmp_path: Path
) -> None:
    """What was recorded, and what this version does."""
    (other := tmp_path / "r.jsonl").write_text(
        recording.read_text().replace('\\"predicted\\"', '\\"scored\\"', 1)
    )
    result = run("replay", str(other))
    assert result.exit_code == 1
    assert "First at entry" in result.output
    assert "replayed  StartPrefill" in result.output


def test_a_question_about_another_policy_begins_with_fidelity(recording: Path) -> None:
    """Then the ranking; the recorded policy is in it."""
    result = run("whatif", str(recording), "--policy", "round_robin", "--json", "-")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["fidelity"]["error"] < 0.2
    assert [one["candidate"] for one in found["ranking"]] == ["as recorded", "round_robin"]
    assert result.stderr.index("Fidelity") < result.stderr.index("Ranking")


def test_candidates_too_close_together_are_not_ranked(recording: Path, tmp_path: Path) -> None:
    """The recorded policy under another name."""
    (twin := tmp_path / "twin.toml").write_text('[policy]\nname = "predicted"\n')
    result = run("whatif", str(recording), "--policy", str(twin))
    assert result.exit_code == 0, result.output
    assert "No ranking" in result.output


def test_a_missing_recording_is_said() -> None:
    """And how one is made."""
    for command in ("replay", "whatif"):
        result = run(command, "absent.jsonl")
        assert result.exit_code == 78
        assert "a daemon with observe.record writes one" in " ".join(result.output.split())
