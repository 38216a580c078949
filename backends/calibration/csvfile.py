"""Reads CSV files of measurements, plain or gzip, of bounded size. Complaints name the file and the line."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from router.errors import ConfigError

MAX_BYTES: Final = 64 << 20
"""Of text, after decompression; a gzip file of a few kilobytes can hold gigabytes."""

Row = Mapping[str, str]


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Line numbers and rows of a CSV file that has at least `columns`; raise ConfigError when it is wrong."""
    reader = csv.DictReader(_text(path).splitlines())
    try:
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise ConfigError(
                f"{path}: no column {', '.join(missing)}; nothing can be read from it. "
                f"The header must have {','.join(columns)}."
            )
        for row in reader:
            if None in row or None in row.values():
                raise ConfigError(
                    f"{path} line {reader.line_num}: {_fields(row)} fields instead of "
                    f"{len(reader.fieldnames or ())}. Correct the line."
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ConfigError(f"{path} line {reader.line_num}: {error}. Correct the line.") from error


def number(row: Row, column: str, where: str) -> float:
    """A finite number; raise ConfigError otherwise."""
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{where}: {column} is {row[column]!r}; it must be a finite number.")
    return value


def count(row: Row, column: str, where: str) -> int:
    """A whole number of at least 1; raise ConfigError otherwise."""
    value = number(row, column, where)
    if value < 1 or value != int(value) or value > 1 << 40:
        raise ConfigError(f"{where}: {column} is {row[column]!r}; it must be a whole number of at least 1.")
    return int(value)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path} holds more than {MAX_BYTES >> 20} MiB; it is not read. Cut it down.")
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}. Name a file that can be read.") from error
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a CSV file in UTF-8, plain or gzip: {error}.") from error


def _fields(row: Mapping[str | None, object]) -> int:
    extra = row.get(None)
    return (
        sum(value is not None for value in row.values()) - 1 + len(extra)
        if isinstance(extra, list)
        else sum(value is not None for value in row.values())
    )
