"""Files of engine runs: two clocks are told apart, and what cannot be used is refused with the line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends.calibration.runfile import COLUMNS, read_run
from router.errors import ConfigError
from tests.calibration.runs import simulated, write_run


def test_arrivals_are_put_on_the_engines_clock(tmp_path: Path) -> None:
    """Whatever separates the clocks, arrivals come out on the engine's, before the requests are queued."""
    run = simulated(requests=60)
    read = read_run(write_run(run, tmp_path / "run.csv"))
    # The first request finds an idle engine, so it is queued as it arrives: the offset is exact.
    assert read.arrived == pytest.approx(run.arrived, abs=1e-5)
    assert read.last - read.queued == pytest.approx(run.last - run.queued, abs=1e-6)
    assert np.all(read.queued >= read.arrived - 1e-5)


def test_a_slow_front_end_is_not_charged_to_the_engine(tmp_path: Path) -> None:
    """A request that waited long before the engine's inbox counts as arriving a step before it was queued."""
    run = simulated(requests=60)
    early = run.arrived.copy()
    early[40] -= 5.0
    path = write_run(run, tmp_path / "run.csv")
    lines = path.read_text().splitlines()
    cells = lines[41].split(",")
    cells[3] = f"{float(cells[3]) - 5.0:.6f}"
    lines[41] = ",".join(cells)
    path.write_text("\n".join(lines))
    read = read_run(path)
    assert read.queued[40] - read.arrived[40] < 1.0
    assert any("late" in note for note in read.notes)


def lines_of(tmp_path: Path) -> list[str]:
    """A good file, to be spoilt."""
    return write_run(simulated(requests=60), tmp_path / "run.csv").read_text().splitlines()


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("input_toks", "0", "input_toks is '0'"),
        ("output_toks", "12.5", "output_toks is '12.5'"),
        ("arrival_time", "", "arrival_time is ''"),
        ("queued_ts", "inf", "queued_ts is 'inf'"),
        ("last_token_ts", "-1", "last_token_ts is .* s before first_token_ts"),
        ("scheduled_ts", "-1", "scheduled_ts is .* s before queued_ts"),
    ],
)
def test_bad_cells_are_refused(tmp_path: Path, column: str, value: str, complaint: str) -> None:
    """The message names the line and the column."""
    lines = lines_of(tmp_path)
    cells = lines[7].split(",")
    cells[COLUMNS.index(column)] = value
    lines[7] = ",".join(cells)
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=f"line 8: {complaint}"):
        read_run(path)


def test_short_runs_and_wrong_headers_are_refused(tmp_path: Path) -> None:
    """Ten requests are no run, and neither is a file with other columns."""
    lines = lines_of(tmp_path)
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(lines[:11]))
    with pytest.raises(ConfigError, match="has 10 requests"):
        read_run(path)
    path.write_text("\n".join([lines[0].replace("queued_ts", "queued"), *lines[1:]]))
    with pytest.raises(ConfigError, match="no column queued_ts"):
        read_run(path)


def test_runs_without_second_tokens_are_refused(tmp_path: Path) -> None:
    """There is no time per output token in them."""
    lines = lines_of(tmp_path)
    place = COLUMNS.index("output_toks")
    spoilt = [lines[0]]
    for line in lines[1:]:
        cells = line.split(",")
        cells[place] = "1"
        spoilt.append(",".join(cells))
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(spoilt))
    with pytest.raises(ConfigError, match="second token"):
        read_run(path)
