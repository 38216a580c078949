"""Reads workloads: recorded arrivals with their prompt and output lengths.

The parsers take lines of text and give values; only `load_trace` and `bundled_trace` touch files.
Times are seconds from the first arrival of the trace. A file that breaks its format raises ConfigError
with the line, the column and what was expected there; nothing is guessed or skipped.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, TextIO, cast

from router.errors import ConfigError
from router.model import Seconds

MOONCAKE_BLOCK_TOKENS: Final = 512
"""Tokens per entry of hash_ids (Mooncake, FAST '25 artefact, traces/README)."""
MAX_TOKENS: Final = 10_000_000
MAX_LINE_CHARS: Final = 1 << 20
MAX_ROWS: Final = 5_000_000
"""A gzip bomb or a wrong file ends here instead of filling the memory."""
BUNDLED: Final[Mapping[str, str]] = {
    "azure": "azure_2023_conv.csv",
    "azure-code": "azure_2023_code.csv.gz",
    "mooncake": "mooncake_conversation.jsonl.gz",
    "sharegpt": "sharegpt_lengths.csv.gz",
    "vision": "servegen_vlm_image.csv.gz",
}
"""Traces that ship with the package, by the name the command line takes."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a workload, with the output length that only the workload knows."""

    at_s: Seconds
    """Seconds after the start of the workload, at least 0."""
    prompt_tokens: int
    output_tokens: int
    prefix_hashes: tuple[int, ...] = ()
    """64-bit hashes of the full MOONCAKE_BLOCK_TOKENS blocks of the prompt, each chained to the one before;
    empty when unknown."""
    workload_class: str = ""


class _Line:
    """One line under the parser: builds the errors that name it."""

    __slots__ = ("number", "source")

    def __init__(self, source: str, number: int) -> None:
        self.source = source
        self.number = number

    def wrong(self, column: str, expected: str, found: object) -> ConfigError:
        shown = repr(found) if len(repr(found)) <= 60 else repr(found)[:57] + "..."
        return ConfigError(
            f"{self.source}, line {self.number}, column {column}: expected {expected}, found {shown}. "
            "The trace was not loaded; correct or remove the line."
        )

    def tokens(self, column: str, value: object, least: int = 1) -> int:
        """A count of tokens, from `least` to MAX_TOKENS."""
        expected = f"a whole number from {least} to {MAX_TOKENS}"
        if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
            value = int(value) if len(value) <= 20 else MAX_TOKENS + 1
        if type(value) is not int or not least <= value <= MAX_TOKENS:
            raise self.wrong(column, expected, value)
        return value

    def seconds(self, column: str, value: object, unit: str = "seconds") -> float:
        """A finite time that is not negative."""
        try:
            time = float(cast("Any", value))
        except (TypeError, ValueError):
            time = math.nan
        if not math.isfinite(time) or time < 0 or isinstance(value, bool):
            raise self.wrong(column, f"a time in {unit}, zero or later", value)
        return time

    def timestamp(self, column: str, value: str) -> float:
        """An ISO 8601 date and time in seconds since 1970; UTC unless it names a zone. Exact to 1 us."""
        try:
            time = datetime.fromisoformat(value.strip())
        except ValueError:
            raise self.wrong(column, "a date and time such as 2023-11-16 18:15:46.68", value) from None
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


MODALITIES: Final = ("image_tokens", "audio_tokens", "video_tokens")


# A reader of the time column: (line, column, text) -> seconds on the file's own clock.
_Clock = Callable[[_Line, str, str], float]


def parse_azure(lines: Iterable[str], source: str = "trace", workload_class: str = "") -> list[Arrival]:
    """Azure LLM inference traces: CSV with TIMESTAMP (ISO 8601), ContextTokens, GeneratedTokens."""
    columns = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    return _parse_csv(lines, columns, _Line.timestamp, source, workload_class)


def parse_lengths(lines: Iterable[str], source: str = "trace", workload_class: str = "") -> list[Arrival]:
    """CSV with timestamp_s (seconds), input_tokens, output_tokens."""
    columns = ("timestamp_s", "input_tokens", "output_tokens")
    return _parse_csv(lines, columns, _Line.seconds, source, workload_class)


def parse_pairs(lines: Iterable[str], source: str = "trace", workload_class: str = "") -> list[Arrival]:
    """CSV with input_tokens, output_tokens and no times: all arrive at once, for a process to spread."""
    columns = ("input_tokens", "output_tokens")
    arrivals = [
        Arrival(0.0, line.tokens(columns[0], prompt), line.tokens(columns[1], output), (), workload_class)
        for line, (prompt, output) in _rows(lines, columns, source)
    ]
    return _from_zero(arrivals, source)


def parse_modalities(lines: Iterable[str], source: str = "trace", workload_class: str = "") -> list[Arrival]:
    """ServeGen traces: CSV with timestamp_s, text_tokens, output_tokens, and lists (1;2;3) of the tokens of
    images, audio and videos. Tokens of all of them count as prompt tokens: the encoders are not modelled."""
    columns = ("timestamp_s", "text_tokens", "output_tokens", *MODALITIES)
    arrivals = [
        Arrival(
            line.seconds(columns[0], time),
            max(1, line.tokens("text_tokens", text or "0", least=0) + sum(_parts(line, more))),
            line.tokens(columns[2], output),
            workload_class=workload_class,
        )
        for line, (time, text, output, *more) in _rows(lines, columns, source)
    ]
    return _from_zero(arrivals, source)


def parse_mooncake(lines: Iterable[str], source: str = "trace", workload_class: str = "") -> list[Arrival]:
    """Mooncake traces: one JSON object a line with timestamp (ms), input_length, output_length, hash_ids."""
    arrivals = [
        _mooncake_row(_Line(source, number), line, workload_class)
        for number, line in _numbered(lines, source)
    ]
    return _from_zero(arrivals, source)


def parse_trace(lines: Iterable[str], source: str = "trace", workload_class: str = "") -> list[Arrival]:
    """Any of these formats, told apart by the first line."""
    iterator = iter(lines)
    first = next(iterator, "")
    parse = _format_of(first, source)
    return parse(_with_first(first, iterator), source, workload_class)


def load_trace(name: str | Path, workload_class: str = "") -> list[Arrival]:
    """Read a trace file, gzip-compressed if it ends in .gz, or a bundled trace by name (`azure`)."""
    path = bundled_trace(str(name)) if str(name) in BUNDLED else Path(name)
    try:
        with _open_text(path) as file:
            return parse_trace(_bounded_lines(file, path.name), path.name, workload_class)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"Cannot read the trace {path}: {cause}. No workload was loaded. Name a readable CSV or JSONL "
            f"file (.gz too), or a bundled trace: {', '.join(BUNDLED)}."
        ) from error


def bundled_trace(name: str) -> Path:
    """Where a bundled trace lies."""
    return Path(__file__).parent / "traces" / BUNDLED[name]


def chain_hashes(block_ids: Iterable[int]) -> tuple[int, ...]:
    """64-bit hashes of prompt prefixes: each covers its block id and the hash before it."""
    hashes: list[int] = []
    previous = 0
    for block_id in block_ids:
        digest = blake2b(previous.to_bytes(8, "little"), digest_size=8, key=b"%x" % block_id).digest()
        previous = int.from_bytes(digest, "little")
        hashes.append(previous)
    return tuple(hashes)


def _format_of(first: str, source: str) -> Callable[[Iterable[str], str, str], list[Arrival]]:
    header = {name.strip() for name in first.lstrip("\ufeff").split(",")}
    if first.lstrip().startswith("{"):
        return parse_mooncake
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= header:
        return parse_azure
    if {"timestamp_s", "input_tokens", "output_tokens"} <= header:
        return parse_lengths
    if {"timestamp_s", "text_tokens", "output_tokens", *MODALITIES} <= header:
        return parse_modalities
    if {"input_tokens", "output_tokens"} <= header:
        return parse_pairs
    raise _Line(source, 1).wrong(
        "1",
        "a header with TIMESTAMP,ContextTokens,GeneratedTokens or [timestamp_s,]input_tokens,output_tokens, "
        "or a JSON object with timestamp, input_length and output_length",
        first.strip(),
    )


def _parse_csv(
    lines: Iterable[str], columns: Sequence[str], clock: _Clock, source: str, workload_class: str
) -> list[Arrival]:
    """Rows of a CSV whose header holds the three columns, in any order and among others."""
    arrivals = [
        Arrival(
            clock(line, columns[0], time),
            line.tokens(columns[1], prompt),
            line.tokens(columns[2], output),
            workload_class=workload_class,
        )
        for line, (time, prompt, output) in _rows(lines, columns, source)
    ]
    return _from_zero(arrivals, source)


def _rows(lines: Iterable[str], columns: Sequence[str], source: str) -> Iterator[tuple[_Line, Sequence[str]]]:
    """The cells of the named columns, line by line."""
    iterator = _numbered(lines, source)
    number, header = next(iterator, (1, ""))
    positions = _positions(_Line(source, number), header, columns)
    for number, text in iterator:
        line = _Line(source, number)
        yield line, _cells(line, text.rstrip("\n").split(","), positions, columns)


def _parts(line: _Line, cells: Sequence[str]) -> Iterator[int]:
    """Token counts of a row's images, audio and videos."""
    for column, cell in zip(MODALITIES, cells, strict=True):
        for part in cell.split(";"):
            if part:
                yield line.tokens(column, part, least=0)


def _positions(line: _Line, header: str, columns: Sequence[str]) -> list[int]:
    names = [name.strip() for name in header.lstrip("\ufeff").split(",")]
    for column in columns:
        if column not in names:
            raise line.wrong(column, "this name in the header", header.strip())
    return [names.index(column) for column in columns]


def _cells(line: _Line, cells: Sequence[str], positions: Sequence[int], columns: Sequence[str]) -> list[str]:
    for position, column in zip(positions, columns, strict=True):
        if position >= len(cells):
            raise line.wrong(column, f"at least {position + 1} fields", ",".join(cells))
    return [cells[position] for position in positions]


def _mooncake_row(line: _Line, text: str, workload_class: str) -> Arrival:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise line.wrong("1", "a JSON object", text)
    fields = cast("dict[str, Any]", row)
    prompt = line.tokens("input_length", fields.get("input_length"))
    return Arrival(
        line.seconds("timestamp", fields.get("timestamp"), "milliseconds") / 1e3,
        prompt,
        line.tokens("output_length", fields.get("output_length")),
        _prefixes(line, fields.get("hash_ids", []), prompt),
        workload_class,
    )


def _prefixes(line: _Line, ids: object, prompt_tokens: int) -> tuple[int, ...]:
    """Chained hashes of the full blocks; the last id of a prompt usually stands for a partial one."""
    if not isinstance(ids, list):
        raise line.wrong("hash_ids", "a list of whole numbers, zero or more", ids)
    blocks: list[Any] = ids
    if any(type(block) is not int or not 0 <= block < 1 << 63 for block in blocks):
        raise line.wrong("hash_ids", "a list of whole numbers, zero or more", ids)
    return chain_hashes(blocks[: prompt_tokens // MOONCAKE_BLOCK_TOKENS])


def _from_zero(arrivals: list[Arrival], source: str) -> list[Arrival]:
    """In order of time, the first at 0."""
    if not arrivals:
        raise ConfigError(f"{source} holds no requests. Nothing can be replayed; name a trace with rows.")
    arrivals.sort(key=lambda arrival: arrival.at_s)
    start = arrivals[0].at_s
    return [
        Arrival(a.at_s - start, a.prompt_tokens, a.output_tokens, a.prefix_hashes, a.workload_class)
        for a in arrivals
    ]


def _numbered(lines: Iterable[str], source: str) -> Iterator[tuple[int, str]]:
    """Lines that hold something, with their numbers; bounded."""
    for number, text in enumerate(lines, 1):
        if number > MAX_ROWS:
            raise _Line(source, number).wrong("1", f"the end of the file, at most {MAX_ROWS} lines", "more")
        if text and not text.isspace():
            yield number, text


def _with_first(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return cast("TextIO", gzip.open(path, "rt", encoding="utf-8"))
    return path.open(encoding="utf-8")


def _bounded_lines(file: TextIO, source: str) -> Iterator[str]:
    """Lines of a file, none longer than MAX_LINE_CHARS: a file without line breaks is refused early."""
    number = 0
    while text := file.readline(MAX_LINE_CHARS + 1):
        number += 1
        if len(text) > MAX_LINE_CHARS:
            raise _Line(source, number).wrong("1", f"a line of at most {MAX_LINE_CHARS} characters", text)
        yield text
