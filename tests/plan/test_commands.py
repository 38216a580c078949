"""`polyphase bound` and `polyphase advise` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from router.cli.main import cli


def run(*arguments: str) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def test_the_example_is_printed_and_written(tmp_path: Path) -> None:
    """Six fleets."""
    file = tmp_path / "rows.json"
    result = run("bound", "--example", "azure", "--json", file)
    assert result.exit_code == 0, result.output
    assert "51.9" in result.output
    rows = json.loads(file.read_text())["rows"]
    assert [round(row["requests_per_s"], 1) for row in rows] == [0.0, 25.1, 17.3, 43.9, 51.9, 29.4]


def test_bound_prints_the_ladder_the_ratios_and_the_duals(tmp_path: Path) -> None:
    """On an overloaded fleet, with a reason."""
    file = tmp_path / "bound.json"
    result = run(
        *("bound", "--fleet", "homogeneous", "--trace", "azure", "--ttft-slo", "1", "--tpot-slo", "0.05"),
        *("--rate-scale", "30", "--requests", "300", "--window", "1", "--json", file),
    )
    assert result.exit_code == 0, result.output
    for words in (
        "online",
        "clairvoyant",
        "B2",
        "B1",
        "Worth of",
        "one h100 more",
        "Unstable: ",
        "what binds",
    ):
        assert words in result.output
    found = json.loads(file.read_text())
    assert found["capacity"]["overload"]
    assert found["ratios"]["online/clairvoyant"] <= 1.0


def test_bound_takes_a_power_cap() -> None:
    """A watt more is worth something once it binds."""
    result = run(
        *("bound", "--fleet", "homogeneous", "--workload", "chat", "--requests", "60"),
        *("--rate-scale", "10", "--power-cap-w", "600"),
    )
    assert result.exit_code == 0, result.output
    assert "one watt more" in result.output


def test_bound_refuses_what_makes_no_sense() -> None:
    """Two sources of requests; objectives beside a workload that has its own."""
    assert run("bound", "--workload", "chat", "--trace", "azure").exit_code == 2
    assert "belong to --trace" in run("bound", "--workload", "chat", "--ttft-slo", "1").output


def test_advise_prints_writes_and_draws(tmp_path: Path) -> None:
    """A small workload on two devices."""
    file, picture = tmp_path / "advice.json", tmp_path / "fleets.svg"
    result = run(
        *("advise", "--workload", "on-device-assistant", "--devices", "xdna2,rtx-4090", "--power-kw", "1"),
        *("--json", file, "--chart", picture, "--capital", "rtx-4090=2000", "--rack-kw", "10"),
        *("--usd-per-rack-month", "1000"),
    )
    assert result.exit_code == 0, result.output
    for words in ("Fleets that hold", "1 x xdna2", "rigidity", "What flips", "is an assumption"):
        assert words in result.output
    assert json.loads(file.read_text())["answers"][0]["holds"]
    assert picture.read_text().startswith("<svg")


def test_advise_says_why_there_is_no_answer() -> None:
    """More power than the box has; and an objective that no device keeps: exit 1 with the reason."""
    result = run("advise", "--workload", "on-device-assistant", "--devices", "rtx-4090", "--power-kw", "0.1")
    assert result.exit_code != 0
    assert "have to be provisioned at the site" in result.output + str(result.exception)


def test_advise_refuses_a_capital_without_a_number() -> None:
    """Usage, not a traceback."""
    result = run("advise", "--workload", "chat", "--capital", "h100")
    assert result.exit_code == 2
    assert "DEVICE=USD" in result.output
