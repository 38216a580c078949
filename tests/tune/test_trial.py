"""`polyphase policy test`: scenes as unit tests, and expectations that are rewritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from router.cli.main import cli
from router.errors import ConfigError
from router.model import Decision, Reject, RoutePlan, Wait
from router.tune.expectation import parse_expectation, said

SCENES = Path(__file__).parent / "scenes"


def run(*arguments: object) -> Result:
    """The command in this process."""
    return CliRunner().invoke(cli, ["policy", "test", *map(str, arguments)])


def copied(folder: Path, *changes: tuple[str, str]) -> Path:
    """The scenes with something changed."""
    text = (SCENES / "least_loaded.toml").read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (path := folder / "scenes.toml").write_text(text)
    return path


def test_the_shipped_scenes_pass() -> None:
    """A folder is searched for files."""
    result = run(SCENES)
    assert result.exit_code == 0, result.output
    assert "5 of 5 as expected" in result.output


def test_a_failure_says_what_came_instead_and_why(tmp_path: Path) -> None:
    """Expectation, answer, and the policy's own sentence; exit code 1."""
    result = run(copied(tmp_path, ('expect = "b200-1"', 'expect = "h100-0 -> b200-1"')), "--quiet")
    assert result.exit_code == 1
    assert "FAIL scenes.toml: prompts wait at one fast GPU" in result.output
    assert "expected  h100-0 -> b200-1" in result.output
    assert "got       b200-1" in result.output
    assert "4 of 4 backends can prefill" in result.output
    assert "ok " not in result.output
    assert "4 of 5 as expected" in result.output


def test_another_policy_can_be_held_against_the_same_scenes() -> None:
    """Round robin looks at no load."""
    result = run(SCENES, "--policy", "round_robin", "--json", "-")
    found = json.loads(result.stdout)["cases"]
    assert result.exit_code == 1
    assert {one["case"][:8]: one["passed"] for one in found}["nobody i"] is True
    assert not all(one["passed"] for one in found)


def test_rewriting_changes_the_wrong_lines_and_no_others(tmp_path: Path) -> None:
    """Comments and layout stay; the file passes afterwards."""
    original = (SCENES / "least_loaded.toml").read_text()
    path = copied(tmp_path, ('"b200-1"', '"b200-0"'), ('"wait: state:lost"', "'h100-0'"))
    result = run(path, "--rewrite")
    assert result.exit_code == 0, result.output
    assert "2 expectations rewritten" in result.output
    assert path.read_text() == original
    assert run(path).exit_code == 0


def test_a_single_scene_and_json_are_rewritten_too(tmp_path: Path) -> None:
    """Without [[case]], the expectation is at the top."""
    (one := tmp_path / "one.toml").write_text(
        'fleet = "fast-slow"\nexpect = "h100-1"\n[request]\nprompt_tokens = 10\nmax_new_tokens = 9\n'
    )
    document = {"fleet": "fast-slow", "request": {"prompt_tokens": 10, "max_new_tokens": 9}, "expect": "wait"}
    (two := tmp_path / "two.json").write_text(json.dumps(document))
    assert run(one, two).exit_code == 1
    assert run(one, two, "--rewrite").exit_code == 0
    assert run(one, two).exit_code == 0
    assert json.loads(two.read_text())["expect"] == "b200-0"


def test_what_cannot_be_rewritten_is_left_alone(tmp_path: Path) -> None:
    """A case without an expectation does not pass, and has no line to be rewritten."""
    path = copied(tmp_path, ('expect = "b200-1"\n', ""))
    before = path.read_text()
    assert run(path).exit_code == 1
    result = run(path, "--rewrite")
    assert result.exit_code == 78
    assert "Nothing was written" in result.output
    assert path.read_text() == before
    assert run(path, "--rewrite", "--policy", "scored").exit_code == 2


def test_a_folder_without_scenes_is_said(tmp_path: Path) -> None:
    """Not taken for a folder in which everything passes."""
    result = run(tmp_path)
    assert result.exit_code == 78
    assert "0 files of scenes" in result.output


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a", RoutePlan("a", "a", Decision("p"))),
        ("a -> b", RoutePlan("a", "b", Decision("p"))),
        ("a->b", RoutePlan("a", "b", Decision("p"))),
        ("a -> later", RoutePlan("a", None, Decision("p"))),
        ("wait", Wait("kv_full")),
        ("wait: kv_full", Wait("kv_full")),
        ("reject", Reject("no")),
        ("reject: Deadline", Reject("the deadline is near")),
    ],
)
def test_an_expectation_is_met(text: str, answer: RoutePlan | Wait | Reject) -> None:
    """And what is said of the answer is an expectation that it meets."""
    assert parse_expectation(text, "here").met_by(answer)
    assert parse_expectation(said(answer), "here").met_by(answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a", RoutePlan("a", "b", Decision("p"))),
        ("b -> a", RoutePlan("a", "b", Decision("p"))),
        ("a", RoutePlan("a", None, Decision("p"))),
        ("wait: slots", Wait("kv_full")),
        ("wait", Reject("no")),
        ("reject", Wait("kv_full")),
        ("a", Wait("kv_full")),
    ],
)
def test_an_expectation_is_not_met(text: str, answer: RoutePlan | Wait | Reject) -> None:
    """By anything else."""
    assert not parse_expectation(text, "here").met_by(answer)


@pytest.mark.parametrize("text", ["", "a b", "a -> b -> c", 5, "->"])
def test_what_is_no_expectation_is_refused(text: object) -> None:
    """With the forms that there are."""
    with pytest.raises(ConfigError, match="PREFILL -> DECODE"):
        parse_expectation(text, "here")
