"""Points files: what is read, what is refused, what no law covers."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from backends.calibration.points import COLUMNS, Quantity, read_points, series_of
from backends.calibration.report_runs import DATA
from router.errors import ConfigError

HEADER = ",".join(COLUMNS)


def write(path: Path, *lines: str, header: str = HEADER) -> Path:
    """A points file."""
    path.write_text("\n".join((header, *lines)) + "\n")
    return path


def row(metric: str, batch: str, context: str, value: str, unit: str = "ms") -> str:
    """A line of it."""
    return f"d,m,bf16,1,{metric},{batch},{context},{value},{unit},s,A"


def test_contexts_are_read_in_all_their_spellings(tmp_path: Path) -> None:
    """Cached prompts, answers and serving lengths become the inputs of the laws."""
    path = write(
        tmp_path / "p.csv",
        row("decode_step_latency", "4", "512+128", "5.0"),
        row("prefill_latency", "2", "8192(cached 4096)", "100"),
        row("tpot_agg", "8", "1024/512", "20"),
        row("ttft_agg", "8", "1024/512", "90"),
        row("kv_transfer_time", "1", "128", "0.54", "ms (20 MB)"),
        row("output_tps", "1", "1024", "8", "tok/s"),
    )
    series, uncovered = series_of(read_points(path))
    found = {one.group.quantity: (one.inputs, one.seconds) for one in series}
    assert found[Quantity.DECODE] == (((4.0, 4 * 576.0), (1.0, 1024.0)), (0.005, 0.125))
    assert found[Quantity.PREFILL][0] == ((8192.0, 2 * 4096 * (4096 + 2048.0)),)
    assert found[Quantity.SERVING] == (((8.0, 1024.0, 512.0),), (0.02,))
    assert found[Quantity.LINK][0] == ((20e6,),)
    assert [(one.metric, one.rows) for one in uncovered] == [("ttft_agg", 1)]


def test_queueing_serving_points_are_left_out_with_the_reason(tmp_path: Path) -> None:
    """A long wait for the first token means that fewer sequences run than are in flight."""
    lines = (row("tpot_agg", "8", "1024/512", "20"), row("ttft_agg", "8", "1024/512", "9000"))
    series, uncovered = series_of(read_points(write(tmp_path / "p.csv", *lines)))
    assert series == ()
    assert any("queued" in one.reason for one in uncovered)


def test_every_row_of_the_shipped_file_is_covered_or_counted() -> None:
    """No row disappears between reading and reporting."""
    points = read_points(DATA / "points.csv.gz")
    series, uncovered = series_of(points)
    assert len(points) == 14_189
    assert sum(len(one.seconds) for one in series) + sum(one.rows for one in uncovered) == len(points)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("device,model\nd,m\n", "no column precision"),
        (f"{HEADER}\n{row('x', '1', '1', 'fast')}\n", "line 2: value is 'fast'"),
        (f"{HEADER}\n{row('x', '1', '1', 'nan')}\n", "line 2: value is 'nan'"),
        (f"{HEADER}\nd,m,bf16\n", "line 2: 3 fields instead of 11"),
        (f"{HEADER}\n{row('x', '1', '1', '1')},more\n", "line 2: 12 fields instead of 11"),
        ("", "no column"),
    ],
)
def test_malformed_files_are_refused_with_the_line(tmp_path: Path, text: str, complaint: str) -> None:
    """The message names the file, the line and what is wrong."""
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_points(path)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    """A missing file, a broken gzip and a gzip bomb end in a message, not in a traceback or a full memory."""
    broken, bomb = tmp_path / "broken.csv.gz", tmp_path / "bomb.csv.gz"
    broken.write_bytes(gzip.compress(b"x" * 10_000)[:40])
    with gzip.open(bomb, "wb", compresslevel=9) as file:
        for _ in range(65):
            file.write(bytes(1 << 20))
    for path, complaint in ((tmp_path / "none.csv", "No such file"), (broken, "not a CSV"), (bomb, "64 MiB")):
        with pytest.raises(ConfigError, match=complaint):
            read_points(path)
