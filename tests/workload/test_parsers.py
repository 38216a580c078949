"""Trace parsers: values from good lines, an error that names line and column from bad ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from router.errors import ConfigError
from router.sim.workload import (
    Arrival,
    bundled_trace,
    chain_hashes,
    load_trace,
    parse_azure,
    parse_lengths,
    parse_mooncake,
    parse_trace,
)

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
LENGTHS = "timestamp_s,input_tokens,output_tokens"


def test_azure_rows_become_arrivals_from_zero() -> None:
    """Times count from the first row; lengths are taken as they are."""
    arrivals = parse_azure(
        [AZURE, "2023-11-16 18:15:46.6805900,374,44\n", "2023-11-16 18:15:50.9951690,396,109"]
    )
    assert [(a.prompt_tokens, a.output_tokens) for a in arrivals] == [(374, 44), (396, 109)]
    assert [a.at_s for a in arrivals] == pytest.approx([0.0, 4.314579], abs=2e-6)


def test_azure_timestamps_may_name_a_zone() -> None:
    """The 2024 traces write +00:00."""
    arrivals = parse_azure([AZURE, "2024-05-10 00:00:00.5+00:00,1,1", "2024-05-10 00:00:02+00:00,1,1"])
    assert arrivals[1].at_s == pytest.approx(1.5)


def test_rows_out_of_order_are_sorted() -> None:
    """An open loop needs times that never decrease."""
    arrivals = parse_lengths([LENGTHS, "7.5,20,2", "5.0,10,1"], workload_class="batch")
    assert arrivals == [
        Arrival(0.0, 10, 1, workload_class="batch"),
        Arrival(2.5, 20, 2, workload_class="batch"),
    ]


def test_columns_are_found_by_name() -> None:
    """Other columns, and another order, do not matter."""
    arrivals = parse_lengths(["output_tokens,user,timestamp_s,input_tokens", "3,bob,1.0,9"])
    assert arrivals == [Arrival(0.0, 9, 3)]


def test_mooncake_rows_share_prefixes_by_hash() -> None:
    """Equal leading ids give equal hashes; the last, partial block gets none."""
    rows = [
        '{"timestamp": 0, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]}',
        '{"timestamp": 2500, "input_length": 1536, "output_length": 6, "hash_ids": [0, 7, 8]}',
    ]
    first, second = parse_mooncake(rows)
    assert second.at_s == 2.5
    assert first.prefix_hashes == chain_hashes([0, 1])
    assert len(second.prefix_hashes) == 3
    assert first.prefix_hashes[0] == second.prefix_hashes[0]
    assert first.prefix_hashes[1] != second.prefix_hashes[1]


def test_hashes_depend_on_all_blocks_before() -> None:
    """The same block after another prefix is another prefix; hashes fit 64 bits."""
    assert chain_hashes([1, 9])[1] != chain_hashes([2, 9])[1]
    assert all(0 <= value < 1 << 64 for value in chain_hashes(range(50)))


@pytest.mark.parametrize(
    ("lines", "place", "expected"),
    [
        ([AZURE, "yesterday,1,1"], "line 2, column TIMESTAMP", "a date and time"),
        ([AZURE, "2023-11-16 18:15:46,x,1"], "line 2, column ContextTokens", "a whole number"),
        ([AZURE, "2023-11-16 18:15:46,1,-4"], "line 2, column GeneratedTokens", "a whole number"),
        ([AZURE, "2023-11-16 18:15:46,1,0"], "line 2, column GeneratedTokens", "from 1"),
        ([AZURE, "", "2023-11-16 18:15:46,1"], "line 3, column GeneratedTokens", "at least 3 fields"),
        ([LENGTHS, "1,1,1", "nan,1,1"], "line 3, column timestamp_s", "a time in seconds"),
        ([LENGTHS, "1e400,1,1"], "line 2, column timestamp_s", "a time in seconds"),
        ([LENGTHS, "1,99999999999,1"], "line 2, column input_tokens", "to 10000000"),
        ([LENGTHS, "1," + "9" * 5000 + ",1"], "line 2, column input_tokens", "to 10000000"),
        ([LENGTHS, "1,1.5,1"], "line 2, column input_tokens", "a whole number"),
        (["{"], "line 1, column 1", "a JSON object"),
        (["{" * 100_000], "line 1, column 1", "a JSON object"),
        (['{"timestamp": 0, "output_length": 5}'], "line 1, column input_length", "found None"),
        (['{"timestamp": -1, "input_length": 1, "output_length": 5}'], "column timestamp", "milliseconds"),
        (['{"timestamp": true, "input_length": 1, "output_length": 5}'], "column timestamp", "milliseconds"),
        (['{"timestamp": 0, "input_length": true, "output_length": 5}'], "column input_length", "True"),
        (
            ['{"timestamp": 0, "input_length": 1, "output_length": 5, "hash_ids": [1, "a"]}'],
            "column hash_ids",
            "a list of whole numbers",
        ),
        (
            ['{"timestamp": 0, "input_length": 1, "output_length": 5, "hash_ids": 3}'],
            "column hash_ids",
            "a list of whole numbers",
        ),
        (["a,b,c", "1,2,3"], "line 1, column 1", "a header with"),
        ([], "line 1, column 1", "a header with"),
    ],
)
def test_a_bad_line_is_named(lines: list[str], place: str, expected: str) -> None:
    """The error says where, what was expected, and that nothing was loaded; it stays short."""
    with pytest.raises(ConfigError) as caught:
        parse_trace(lines, "t.csv")
    assert place in caught.value.message
    assert expected in caught.value.message
    assert caught.value.message.startswith("t.csv")
    assert len(caught.value.message) < 500


def test_a_trace_without_rows_is_an_error() -> None:
    """A run without requests would look like a success."""
    with pytest.raises(ConfigError, match="holds no requests"):
        parse_trace([AZURE, "\n"], "t.csv")


def test_the_bundled_slice_is_the_start_of_the_azure_trace() -> None:
    """2,000 rows, as the NOTICE says, with the lengths of the first and last row."""
    arrivals = load_trace("azure", "chat")
    assert len(arrivals) == 2000
    assert (arrivals[0].prompt_tokens, arrivals[0].output_tokens) == (374, 44)
    assert (arrivals[-1].prompt_tokens, arrivals[-1].output_tokens) == (424, 96)
    assert arrivals[-1].at_s == pytest.approx(424.259457, abs=1e-5)
    assert {a.workload_class for a in arrivals} == {"chat"}


def test_compressed_files_read_like_plain_ones(tmp_path: Path) -> None:
    """The opener handles .gz."""
    packed = tmp_path / "trace.csv.gz"
    packed.write_bytes(gzip.compress(bundled_trace("azure").read_bytes()))
    assert load_trace(packed) == load_trace("azure")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00binary", b"x" * (1 << 21)])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    """Binary data and endless lines end in a ConfigError."""
    path = tmp_path / "trace.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_trace(path)


def test_a_cut_off_gzip_file_is_refused(tmp_path: Path) -> None:
    """Half a download is no trace."""
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(bundled_trace("azure").read_bytes())[:5000])
    with pytest.raises(ConfigError, match="Cannot read the trace"):
        load_trace(path)


def test_a_missing_file_names_the_bundled_traces(tmp_path: Path) -> None:
    """The message says what can be named instead."""
    with pytest.raises(ConfigError, match=r"No such file.*azure"):
        load_trace(tmp_path / "absent.csv")
