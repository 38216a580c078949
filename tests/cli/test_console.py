"""Units, and a summary that shows what it is given."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from router.cli import console
from router.load.report import Tally
from tests.load.test_report import answer_of, done, fly


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0 s"),
        (0.00025, "250 µs"),
        (0.01234, "12.3 ms"),
        (1.5, "1.5 s"),
        (61.0, "61 s"),
        (4321.0, "4,321 s"),
        (2e-9, "2.0e-09 s"),
    ],
)
def test_durations_pick_their_unit(seconds: float | None, text: str) -> None:
    """An LPU's quarter of a millisecond and an hour both read well."""
    assert console.duration(seconds) == text


def test_energy_and_money() -> None:
    """Small amounts keep digits, large ones get a prefix."""
    assert (console.joules(12.0), console.joules(12_345.0), console.joules(2e6)) == (
        "12 J",
        "12.3 kJ",
        "2 MJ",
    )
    assert (console.usd(0.0001234), console.usd(1234.5)) == ("$0.000123", "$1,234.50")


def printed(renderable: object) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(renderable)
    return out.getvalue()


def run_of_one() -> Tally:
    tally = Tally(lambda: 100.0)
    flight = fly(tally, 100.0, 100.0, 2)
    flight.tokens(0, answer_of(2).ids(0, 2), 100.5)
    flight.end(done(2), 101.0)
    return tally


def test_the_summary_shows_counts_places_and_pairs() -> None:
    """Of one request from a GPU to an LPU."""
    text = printed(console.summary(run_of_one().report()))
    for part in (
        "1 offered, 1 ok, 0 failed",
        "0 lost, 0 duplicated, 0 mismatched",
        "gpu → lpu",
        "h100-0",
        "TTFT",
    ):
        assert part in text
    assert "500 ms" in text


def test_the_summary_of_nothing_is_printable() -> None:
    """No samples, no backends."""
    assert "0 offered" in printed(console.summary(Tally(lambda: 0.0).report()))


def test_json_goes_to_a_file_or_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is written is what was reported."""
    report = run_of_one().report()
    target = tmp_path / "out.json"
    console.write_json(report, str(target))
    assert json.loads(target.read_text()) == json.loads(json.dumps(report))
    console.write_json(report, "-")
    assert json.loads(capsys.readouterr().out)["requests"]["ok"] == 1
