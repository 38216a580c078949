"""`polyphase calibrate`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from backends.calibration.document import read_prior
from backends.calibration.points import COLUMNS
from backends.calibration.report_runs import DATA
from router.cli.calibrate import command
from router.cli.main import cli
from router.errors import ConfigError
from tests.calibration.runs import simulated, write_run

PRIOR = "h100-llama-3.1-8b"
KEYS = {"latency_mape", "tpot_mape", "ttft_mape"}


def test_run_writes_profile_json_and_plot(tmp_path: Path) -> None:
    """A calibrated profile checks out against the run it was fitted to, with the same errors."""
    requests = write_run(simulated(), tmp_path / "run.csv")
    profile, result, plot = tmp_path / "mine.toml", tmp_path / "mine.json", tmp_path / "mine.svg"
    limits = ["--max-num-seqs", "64", "--max-num-batched-tokens", "2048", "--kv-tokens", "1000000"]
    outputs = ["--prior", PRIOR, "--out", str(profile), "--json", str(result), "--plot", str(plot)]
    done = CliRunner().invoke(cli, ["calibrate", "run", str(requests), *limits, *outputs])
    assert done.exit_code == 0, done.output
    written = json.loads(result.read_text())
    assert written["held_out"].keys() >= KEYS
    assert written["held_out"]["latency_mape"] < 0.02 < written["prior"]["latency_mape"]
    assert "<svg" in plot.read_text()

    fitted = read_prior(str(profile)).profile
    assert fitted.spec.async_scheduling
    assert fitted.spec.max_num_seqs == 64
    assert fitted.spec.link == read_prior(PRIOR).profile.spec.link
    assert fitted.spec.step.noise_sigma == read_prior(PRIOR).profile.spec.step.noise_sigma
    assert "requests that the fit did not see" in fitted.provenance.fit_error

    arguments = [str(profile), str(requests), *limits, "--json", "-"]
    checked = json.loads(CliRunner().invoke(cli, ["calibrate", "check", *arguments]).stdout)
    assert checked["held_out"] == pytest.approx(written["held_out"], rel=1e-6)


def test_fit_writes_a_profile_of_one_group(tmp_path: Path) -> None:
    """Points of one device and model become a profile; its error and range are stated in it."""
    profile, result, plot = tmp_path / "fit.toml", tmp_path / "fit.json", tmp_path / "fit.png"
    chosen = [
        "--device",
        "rtx_pro_6000_server",
        "--model",
        "Meta-Llama-3.1-8B",
        "--precision",
        "bf16",
        "--tp",
        "1",
    ]
    outputs = ["--prior", PRIOR, "--out", str(profile), "--json", str(result), "--plot", str(plot)]
    done = CliRunner().invoke(cli, ["calibrate", "fit", str(DATA / "points.csv.gz"), *chosen, *outputs])
    assert done.exit_code == 0, done.output
    fitted = read_prior(str(profile)).profile
    assert fitted.spec.step.base_s == pytest.approx(10.8e-3, rel=0.03)
    assert fitted.spec.step.per_prefill_token_s == pytest.approx(37.8e-6, rel=0.03)
    assert "batch 1-512" in fitted.provenance.valid_range
    assert json.loads(result.read_text())["median_error"]["decode"] < 0.035
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "complaint"),
    [
        (["run", "none.csv"], 78, "No such file"),
        (["run", "none.csv", "--out", "x.toml"], 2, "--out needs --prior"),
        (["run", "none.csv", "--plot", "x.gif"], 78, "a plot is written as .svg or .png"),
        (["run", "none.csv", "--max-num-seqs", "0"], 2, "0 is not in the range"),
        (["check", "no-such-profile", "none.csv"], 78, ""),
        (["fit", str(DATA / "points.csv.gz"), "--device", "abacus"], 2, "has no such points"),
    ],
)
def test_mistakes_are_told_in_words(
    arguments: list[str], exit_code: int, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code and message say what is wrong; nothing is written."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["calibrate", *arguments])
    assert done.exit_code == exit_code, done.output
    assert complaint in done.output
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_profile_is_named_with_those_that_exist() -> None:
    """The message lists what could have been meant."""
    with pytest.raises(ConfigError, match=r"no profile no-such-profile.*h100-llama-3\.1-8b"):
        read_prior("no-such-profile")


def test_help_names_the_columns() -> None:
    """A user learns from the help what a points file must have."""
    text = " ".join(CliRunner().invoke(command, ["fit", "--help"]).output.split())
    assert all(column in text for column in COLUMNS)
