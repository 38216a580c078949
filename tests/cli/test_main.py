"""The command group: quick, readable, and plain about what is wrong."""

from __future__ import annotations

import errno
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from router.cli.main import COMMANDS, cli
from router.cli.trouble import Trouble, told
from router.errors import CapacityError, ConfigError, Reason


def test_help_lists_every_command() -> None:
    """In one screen of a usual terminal."""
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.output
    assert len(result.output.splitlines()) <= 40


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    """Usage, examples, and help within 100 columns."""
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Examples:" in result.output
    assert f"polyphase {name}" in result.output
    assert max(len(line) for line in result.output.splitlines()) <= 100


def test_an_unknown_command_is_a_usage_error() -> None:
    """Exit code 2 and the name that was given."""
    result = CliRunner().invoke(cli, ["srve"])
    assert result.exit_code == 2
    assert "srve" in result.output


def test_the_group_imports_no_command_for_its_help() -> None:
    """`polyphase --help` must not pay for gRPC, pydantic or rich."""
    probe = (
        "import sys; from router.cli.main import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "sys.exit(any(name in sys.modules for name in ('grpc', 'pydantic', 'rich', 'google.protobuf')))"
    )
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0


def test_the_version_is_that_of_the_package() -> None:
    """As in `polyphase 0.1.0`."""
    result = CliRunner().invoke(cli, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("polyphase ")
    assert result.output.split()[1][0].isdigit()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("a.toml: unknown key x."), 78, "unknown key x"),
        (CapacityError(Reason.NO_BACKEND, "No router answers."), 2, "No router answers"),
        (OSError(errno.EADDRINUSE, "Address already in use"), 78, "Address already in use"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.toml"), 2, "x.toml: No such file"),
        (ExceptionGroup("tasks", [ConfigError("in a task")]), 78, "in a task"),
        (ExceptionGroup("a", [ExceptionGroup("b", [Trouble("deep", 1)])]), 1, "deep"),
        (ExceptionGroup("a", [ConfigError("later"), Trouble("first", 2)]), 2, "first"),
    ],
)
def test_failures_become_words(error: Exception, code: int, text: str) -> None:
    """A message and an exit code by kind, also out of a task group."""
    with pytest.raises(Trouble) as caught, told():
        raise error
    assert caught.value.exit_code == code
    assert text in caught.value.message


@pytest.mark.parametrize(
    "error",
    [ValueError("bug"), OSError(errno.EIO, "odd"), ExceptionGroup("two", [ValueError(), ValueError()])],
)
def test_bugs_keep_their_traceback(error: Exception) -> None:
    """Only failures that a user can act on are put into words."""
    with pytest.raises(type(error)) as caught, told():
        raise error
    assert caught.value is error


def test_trouble_goes_to_standard_error() -> None:
    """Without a traceback, named after the command."""

    @click.command()
    def failing() -> None:
        raise Trouble("It broke. Nothing runs. Mend it.", 78)

    result = CliRunner().invoke(failing)
    assert (result.exit_code, result.stdout) == (78, "")
    assert result.stderr == "polyphase: It broke. Nothing runs. Mend it.\n"
