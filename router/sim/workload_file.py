"""Reads workloads from TOML: those that ship with the project by name, others by path; or makes one of a
trace.

    name = "chat"
    rate = 5.0                      # requests per second, shared among the classes
    duration_s = 600
    [[class]]
    name = "chat"
    share = 1.0
    lengths = { trace = "azure" }   # or { prompt = 500, output = { mean = 200, cv = 1.0 } }
    arrivals = { process = "poisson" }
    slo = { ttft_s = 1.0, tpot_s = 0.05 }

docs/guides/simulate.md lists every key. A mistake is a ConfigError that names file, class and field.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from backends.models.fields import Fields
from router.errors import ConfigError
from router.model import Priority, ServiceLevel
from router.sim.classes import (
    Arrivals,
    AtOnce,
    DrawnLengths,
    InFlight,
    Lengths,
    Renewal,
    SessionShape,
    TraceLengths,
    TraceTimes,
    Workload,
    WorkloadClass,
)
from router.sim.draws import parse_draw
from router.sim.workload import BUNDLED, load_trace

WORKLOADS: Final = Path(__file__).parent / "workloads"
MAX_FILE_BYTES: Final = 1 << 20
MAX_CLASSES: Final = 64
DEFAULT_MODEL: Final = "llama-3.1-8b"

_TOP: Final = ("name", "model", "rate", "duration_s", "requests", "class")
_CLASS: Final = (
    *("name", "share", "model", "lengths", "arrivals", "session", "slo", "deadline_s", "max_new_tokens"),
    *("priority", "tenants"),
)
_ARRIVALS: Final = ("process", "rate", "cv", "speed", "repeat", "count", "at_s", "callers", "over_s")
_SESSION: Final = ("turns", "pause_s", "grows", "shared_prefix_tokens", "max_context_tokens")


class Process(StrEnum):
    """How the requests of a class come."""

    POISSON = "poisson"
    BURSTY = "bursty"
    TRACE = "trace"
    AT_ONCE = "at_once"
    IN_FLIGHT = "in_flight"


def workload_names() -> tuple[str, ...]:
    """Workloads that ship with the project."""
    return tuple(sorted(path.stem for path in WORKLOADS.glob("*.toml")))


def load_workload(name_or_path: str | Path) -> Workload:
    """A workload by name, or by the path of a .toml file. Raises ConfigError."""
    path = Path(name_or_path)
    if str(name_or_path) in workload_names():
        path = WORKLOADS / f"{name_or_path}.toml"
    elif path.suffix != ".toml":
        known = ", ".join(workload_names())
        raise ConfigError(
            f"there is no workload {str(name_or_path)!r}; known are {known}, or give a .toml file. For a"
            " trace use --trace."
        )
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes; it cannot be a workload.")
        return parse_workload(path.read_text(encoding="utf-8"), path.stem, path.parent)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Check the path.") from error


def workload_of_trace(
    name: str | Path,
    *,
    model: str = DEFAULT_MODEL,
    slo: ServiceLevel | None = None,
    max_new_tokens: int = 2048,
    rate: float | None = None,
) -> Workload:
    """A trace as a workload of one class, at its own times; with `rate` at Poisson times instead.

    Raises ConfigError, also for a trace without times and no rate.
    """
    rows = load_trace(name)
    arrivals: Arrivals = TraceTimes()
    if rate is not None:
        arrivals = Renewal(rate)
    elif rows[-1].at_s <= 0.0:
        raise ConfigError(f"{name} has no times; give --rate, or a workload file that says how they arrive.")
    kind = WorkloadClass(
        "trace",
        arrivals,
        TraceLengths(rows, in_order=True),
        model,
        max(max_new_tokens, *(row.output_tokens for row in rows)),
        slo or ServiceLevel(),
    )
    return Workload(Path(name).name, (kind,), requests=None if rate is None else len(rows))


def parse_workload(text: str, name: str, folder: Path) -> Workload:
    """The text of a workload file; paths of traces in it are relative to `folder`. Raises ConfigError."""
    where = f"workload {name}"
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not TOML: {error}. Correct the file.") from error
    top = Fields(document, where, _TOP)
    entries = document.get("class")
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_CLASSES:
        raise ConfigError(f"{where} needs 1 to {MAX_CLASSES} [[class]] entries.")
    context = _Context(top, where, folder, entries)
    classes = tuple(context.read(entry, number) for number, entry in enumerate(entries, 1))
    if len({one.name for one in classes}) < len(classes):
        raise ConfigError(f"{where}: two classes have the same name; give every class its own.")
    duration_s = top.number("duration_s", math.inf)
    requests = top.whole("requests") if "requests" in top else None
    return Workload(top.text("name", name), classes, duration_s, requests)


class _Context:
    """What the entries of one file have in common."""

    def __init__(self, top: Fields, where: str, folder: Path, entries: list[Any]) -> None:
        self._where = where
        self._folder = folder
        self._model = top.text("model", DEFAULT_MODEL)
        self._rate = top.number("rate", 0.0)
        shares = [entry.get("share", 0.0) for entry in entries if isinstance(entry, Mapping)]
        self._shares = math.fsum(share for share in shares if isinstance(share, int | float))

    def read(self, entry: object, number: int) -> WorkloadClass:
        """One [[class]]."""
        where = f"{self._where} [[class]] {number}"
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{where} must be a table; write [[class]].")
        fields = Fields(entry, where, _CLASS)
        name = fields.text("name")
        where = f"{self._where}, class {name!r}"
        lengths = self._lengths(fields.table("lengths"), f"{where}, lengths")
        session = _session(fields.table("session"), f"{where}, session")
        rate = self._rate * fields.number("share", 0.0) / self._shares if self._shares else 0.0
        arrivals = _arrivals(fields.table("arrivals"), f"{where}, arrivals", rate, session, lengths)
        if isinstance(lengths, TraceLengths) and not isinstance(arrivals, TraceTimes):
            lengths = TraceLengths(lengths.rows, in_order=False)  # chance has set the times: let it set these
        return WorkloadClass(
            name,
            arrivals,
            lengths,
            fields.text("model", self._model),
            fields.whole("max_new_tokens", 2048, most=1 << 20),
            _slo(fields.table("slo"), f"{where}, slo"),
            fields.number("deadline_s", 300.0, least=1e-3),
            _priority(fields, where),
            _tenants(entry.get("tenants", [""]), where),
            session,
        )

    def _lengths(self, table: Mapping[str, Any], where: str) -> Lengths:
        if "trace" not in table:
            fields = Fields(table, where, ("prompt", "output"))
            if "prompt" not in fields or "output" not in fields:
                raise ConfigError(f"{where}: give a trace, or prompt and output.")
            drawn = (parse_draw(table[key], f"{where}.{key}", least=1.0) for key in ("prompt", "output"))
            return DrawnLengths(*drawn)
        trace = Fields(table, where, ("trace",)).text("trace")
        return TraceLengths(load_trace(trace if trace in BUNDLED else self._folder / trace))


def _session(table: Mapping[str, Any], where: str) -> SessionShape:
    fields = Fields(table, where, _SESSION)
    return SessionShape(
        parse_draw(table.get("turns", 1), f"{where}.turns", least=1.0),
        parse_draw(table.get("pause_s", 0), f"{where}.pause_s"),
        fields.flag("grows", False),
        fields.whole("shared_prefix_tokens", 0, least=0, most=1 << 20),
        fields.whole("max_context_tokens", 1 << 17, most=1 << 24),
    )


def _arrivals(
    table: Mapping[str, Any], where: str, rate: float, session: SessionShape, lengths: Lengths
) -> Arrivals:
    """`rate` is the class's share of the file's rate, in requests per second; 0 when it has none."""
    fields = Fields(table, where, _ARRIVALS)
    process = fields.choice("process", Process, Process.POISSON)
    rate = fields.number("rate", rate)
    match process:
        case Process.AT_ONCE:
            return AtOnce(fields.whole("count"), fields.number("at_s", 0.0))
        case Process.IN_FLIGHT:
            return InFlight(fields.whole("callers", most=1 << 20), fields.number("over_s", 1.0))
        case Process.TRACE:
            return _trace_times(fields, where, rate, lengths)
        case Process.POISSON | Process.BURSTY:
            if rate <= 0:
                raise ConfigError(f"{where}: give a rate, or the file a rate and the class a share.")
            cv = fields.number("cv", 1.0 if process is Process.POISSON else 5.0, least=0.05)
            return Renewal(rate / session.turns.mean, cv)


def _trace_times(fields: Fields, where: str, rate: float, lengths: Lengths) -> TraceTimes:
    if not isinstance(lengths, TraceLengths) or lengths.rows[-1].at_s <= 0.0:
        raise ConfigError(f"{where}: the process 'trace' needs lengths from a trace that has times.")
    speed = fields.number("speed", 1.0, least=1e-6)
    if rate > 0.0:
        speed = rate * lengths.rows[-1].at_s / len(lengths.rows)
    return TraceTimes(speed, fields.flag("repeat", True))


def _slo(table: Mapping[str, Any], where: str) -> ServiceLevel:
    fields = Fields(table, where, ("ttft_s", "tpot_s", "jitter_ratio"))

    def optional(key: str, least: float) -> float | None:
        return fields.number(key, least=least) if key in fields else None

    return ServiceLevel(optional("ttft_s", 1e-6), optional("tpot_s", 1e-6), optional("jitter_ratio", 1.0))


def _priority(fields: Fields, where: str) -> Priority:
    name = fields.text("priority", "normal")
    if name.upper() not in Priority.__members__:
        known = ", ".join(member.lower() for member in Priority.__members__)
        raise ConfigError(f"{where}: priority is {name!r}; it must be one of {known}.")
    return Priority[name.upper()]


def _tenants(value: object, where: str) -> tuple[tuple[str, float], ...]:
    """A list of names, equally likely, or a table of names and weights."""
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return tuple((name, 1.0) for name in value)
    if isinstance(value, Mapping) and value:
        fields = Fields(value, f"{where}, tenants", tuple(value))
        weights = tuple((name, fields.number(name)) for name in value)
        if math.fsum(weight for _, weight in weights) > 0:
            return weights
    raise ConfigError(
        f"{where}: tenants is {value!r}; give a list of names, or a table of names and weights."
    )
