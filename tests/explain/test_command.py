"""`polyphase explain --dry-run`: what a user types and reads."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from router.cli.main import cli

SCENE = """
fleet = "mixed"
policy = "least_loaded"
[request]
prompt_tokens = 4000
max_new_tokens = 300
[load.b200]
decodes = 4
kv_tokens = 18_000
[[case]]
name = "busy"
[[case]]
name = "full"
request = { prompt_tokens = 120_000 }
load = { b200 = { kv_tokens = 1_100_000 }, h100-0 = { state = "lost" }, h100-1 = { state = "cordoned" } }
"""


def run(*arguments: str) -> Result:
    """The command in this process."""
    return CliRunner().invoke(cli, ["explain", *arguments])


def scene(folder: Path) -> str:
    """A file with two cases."""
    (path := folder / "scene.toml").write_text(SCENE)
    return str(path)


def test_a_scene_is_explained_in_a_sentence_a_table_and_a_change(tmp_path: Path) -> None:
    """And the same in JSON."""
    result = run("--dry-run", scene(tmp_path), "--case", "busy")
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "5 of 6 backends can prefill, 6 can decode" in text
    assert "Scores, best first" in text
    assert "Runner-up:" in text
    assert "The smallest change that would have made it go to" in text
    as_json = run("--dry-run", scene(tmp_path), "--case", "busy", "--json", "-")
    found = json.loads(as_json.stdout)
    assert found["policy"] == "least_loaded"
    assert found["candidates"][0]["score"] >= found["candidates"][1]["score"]
    assert found["changes"] == sorted(found["changes"], key=lambda one: one["effort"])
    assert found["changes"][0]["before"] != found["changes"][0]["after"]


def test_a_saved_scene_is_decided_the_same_way(tmp_path: Path) -> None:
    """--save writes all that the decision depends on."""
    saved = tmp_path / "saved.json"
    first = run("--dry-run", scene(tmp_path), "--case", "full", "--save", str(saved), "--json", "-")
    assert first.exit_code == 0, first.output
    again = json.loads(run("--dry-run", str(saved), "--json", "-").stdout)
    was = json.loads(first.stdout)
    for key in ("verdict", "sentence", "candidates", "exclusions", "changes"):
        assert again[key] == was[key], key


def test_changes_can_be_left_out_and_the_policy_replaced(tmp_path: Path) -> None:
    """A quick look at another policy."""
    result = run("--dry-run", scene(tmp_path), "--no-changes", "--policy", "round_robin", "--json", "-")
    found = json.loads(result.stdout)["cases"]
    assert [one["policy"] for one in found] == ["round_robin"] * 2
    assert all(not one["changes"] and not one["changes_note"] for one in found)


def test_what_cannot_be_explained_is_said(tmp_path: Path) -> None:
    """Usage errors are 2, bad files 78, and a router that is not there 2."""
    path = scene(tmp_path)
    assert run().exit_code == 2
    assert run("r1", "--dry-run", path).exit_code == 2
    assert run("--dry-run", path, "--case", "none").exit_code == 2
    (bad := tmp_path / "bad.toml").write_text("request = 3")
    assert run("--dry-run", str(bad)).exit_code == 78
    nobody = run("r1", "--admin", "127.0.0.1:1")
    assert nobody.exit_code == 2
    assert "No router answers at 127.0.0.1:1" in nobody.output
