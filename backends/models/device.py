"""Accelerators as the catalogue knows them: every figure with its source, date and grade. Pure.

A device file is a TOML text of four parts: who it is (name, kind, title, notes), [sources] with a title and a
date each, [figures], and [flops] by format. A figure is a table {value, trust, source} or
{value, assumption, why}; a number that nobody published can only be written the second way. [[anchors]] are
step times that somebody measured or published for one model. Reading files is the shell's business
(backends/hardware.py).
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from backends.models.efficiency import FAMILIES
from backends.models.fields import Fields, Table
from backends.models.profile import Trust
from backends.models.shape import Dtype
from router.errors import ConfigError
from router.model import BackendKind, ModelBinding, Phase, SchedulerKind, StepParameters

T = TypeVar("T")


class Fabric(StrEnum):
    """What joins the devices that share one model."""

    NVLINK = "nvlink"
    XGMI = "xgmi"
    PCIE = "pcie"
    ICI = "ici"
    NEURONLINK = "neuronlink"
    CHIP_TO_CHIP = "chip-to-chip"
    ON_WAFER = "on-wafer"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a figure was read."""

    title: str
    date: str
    """ISO date or year."""


@dataclass(frozen=True, slots=True)
class Figure(Generic[T]):
    """A value, and why to believe it. Either a source, or an assumption with its reason."""

    value: T
    trust: Trust
    source: Source | None = None
    why: str = ""
    """The reasoning of an assumption, or a remark."""

    @property
    def is_assumption(self) -> bool:
        """Whether nobody published it."""
        return self.source is None

    def origin(self) -> str:
        """In words."""
        if self.source is None:
            return f"assumption: {self.why}"
        remark = f" ({self.why})" if self.why else ""
        return f"{self.source.title}, {self.source.date}{remark}"


@dataclass(frozen=True, slots=True)
class Anchor:
    """Step times of one model on the device, published or fitted; they take the place of the law's."""

    model: str
    times: Mapping[str, float]
    """Fields of StepParameters, in seconds."""
    trust: Trust
    source: Source
    dtype: Dtype | None = None
    """None: not said, or no matter."""
    count: int | None = None
    """Devices it was measured on; None where the step does not depend on it."""
    why: str = ""
    valid_range: str = ""
    """As in Provenance; empty: one sequence."""


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator; figures are per device."""

    name: str
    title: str
    kind: BackendKind
    memory_bytes: Figure[float]
    bandwidth_bytes_per_s: Figure[float]
    flops: Mapping[str, Figure[float]]
    """Peak dense operations a second by format; a format that is absent is not supported."""
    reserve_bytes: Figure[float]
    """Memory that neither weights nor KV may use."""
    idle_w: Figure[float]
    cap_w: Figure[float]
    joule_per_byte: Figure[float]
    joule_per_flop: Figure[float]
    usd_per_hour: Figure[float]
    fabric: Figure[Fabric]
    scale_up_devices: Figure[int]
    """Most devices that can hold one model together."""
    scale_up_bytes_per_s: Figure[float]
    """Out of one device, one direction."""
    scale_up_latency_s: Figure[float]
    scale_out_bytes_per_s: Figure[float]
    """KV egress that a transfer achieves."""
    scale_out_latency_s: Figure[float]
    load_bytes_per_s: Figure[float]
    """Rate at which another model's weights come in, for all devices together."""
    compile_s: Figure[float]
    """Time before that to compile or warm up another model."""
    binding: Figure[ModelBinding]
    scheduler: Figure[SchedulerKind]
    phases: Figure[frozenset[Phase]]
    max_sequences: Figure[int]
    max_batched_tokens: Figure[int]
    jitter_sigma: Figure[float]
    """Sigma of the lognormal noise of a step."""
    efficiency: Figure[str]
    """Family of backends/models/efficiency.py that says how near the device comes to its peaks."""
    anchors: tuple[Anchor, ...] = ()
    notes: tuple[str, ...] = ()

    def figures(self) -> Iterator[tuple[str, Figure[Any]]]:
        """All figures by name, the formats as `flops.bf16`."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Figure):
                yield field.name, value
            elif field.name == "flops":
                yield from ((f"flops.{dtype}", figure) for dtype, figure in value.items())


_FIGURE_NAMES: Final = frozenset(
    {field.name for field in fields(Device)}
    - {"name", "title", "kind", "flops", "anchors", "notes"}
)  # fmt: skip
_STEP_FIELDS: Final = frozenset(
    field.name
    for field in fields(StepParameters)
    if field.name.endswith("_s") or field.name == "saturation_tokens"
)
_NUMBERS: Final = (
    *("memory_bytes", "bandwidth_bytes_per_s", "reserve_bytes", "idle_w", "cap_w", "joule_per_byte"),
    *("joule_per_flop", "usd_per_hour", "scale_up_bytes_per_s", "scale_up_latency_s"),
    *("scale_out_bytes_per_s", "scale_out_latency_s", "jitter_sigma", "load_bytes_per_s", "compile_s"),
)
_COUNTS: Final = ("scale_up_devices", "max_sequences", "max_batched_tokens")


def parse_device(text: str, name: str) -> Device:
    """Parse a device file; raise ConfigError naming the figure that lacks a source, a grade or a value."""
    where = f"device {name}"
    try:
        document: Table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not TOML: {error}. Correct the file.") from error
    top = Fields(document, where, ("title", "kind", "notes", "sources", "figures", "flops", "anchors"))
    sources = _sources(top.table("sources"), where)
    table = _FigureTable(top.table("figures"), sources, where)
    numbers: dict[str, Any] = {key: table.figure(key, lambda f: f.number("value")) for key in _NUMBERS}
    counts: dict[str, Any] = {key: table.figure(key, lambda f: f.whole("value")) for key in _COUNTS}
    return Device(
        name=name,
        title=top.text("title"),
        kind=top.choice("kind", BackendKind),
        flops=_flops(top.table("flops"), sources, where),
        fabric=table.figure("fabric", lambda f: f.choice("value", Fabric)),
        binding=table.figure("binding", lambda f: f.choice("value", ModelBinding)),
        scheduler=table.figure("scheduler", lambda f: f.choice("value", SchedulerKind)),
        phases=table.figure("phases", lambda f: f.choices("value", Phase)),
        efficiency=table.figure("efficiency", _family),
        anchors=_anchors(document.get("anchors", []), sources, where),
        notes=top.texts("notes", ()),
        **numbers,
        **counts,
    )


def _family(fields_: Fields) -> str:
    family = fields_.text("value")
    if family not in FAMILIES:
        raise ConfigError(f"there is no efficiency family {family!r}; known are {', '.join(FAMILIES)}.")
    return family


def _sources(table: Table, where: str) -> Mapping[str, Source]:
    result: dict[str, Source] = {}
    for key, entry in table.items():
        reader = _table(entry, f"{where} [sources.{key}]", ("title", "date"))
        result[key] = Source(reader.text("title"), reader.text("date"))
    return result


def _flops(table: Table, sources: Mapping[str, Source], where: str) -> Mapping[str, Figure[float]]:
    reader = _FigureTable(table, sources, where, frozenset(Dtype), "flops")
    return {str(key): reader.figure(str(key), lambda f: f.number("value")) for key in Dtype if key in table}


class _FigureTable:
    """A table of figures, read one by one."""

    def __init__(
        self,
        table: Table,
        sources: Mapping[str, Source],
        where: str,
        known: frozenset[str] = _FIGURE_NAMES,
        title: str = "figures",
    ) -> None:
        self._fields = Fields(table, f"{where} [{title}]", known)
        self._sources = sources
        self._where = f"{where} [{title}]"

    def figure(self, key: str, read: Callable[[Fields], T]) -> Figure[T]:
        """One figure with its provenance."""
        where = f"{self._where} {key}"
        if key not in self._fields:
            raise ConfigError(f"{where} is missing; add it, as an assumption if nobody published it.")
        entry = _table(self._fields.table(key), where, ("value", "trust", "source", "assumption", "why"))
        value = read(entry)
        if entry.flag("assumption", False):
            if "source" in entry or "trust" in entry:
                raise ConfigError(
                    f"{where} is an assumption and has a source or a grade; it is one or the other."
                )
            return Figure(value, Trust.GUESSED, None, entry.text("why"))
        source = _source(entry, self._sources, where)
        return Figure(value, entry.choice("trust", Trust), source, entry.text("why", ""))


def _source(entry: Fields, sources: Mapping[str, Source], where: str) -> Source:
    key = entry.text("source")
    if key not in sources:
        raise ConfigError(f"{where}: there is no source {key!r}; known are {', '.join(sources) or 'none'}.")
    return sources[key]


def _anchors(entries: object, sources: Mapping[str, Source], where: str) -> tuple[Anchor, ...]:
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: anchors must be a list of tables; write [[anchors]].")
    return tuple(_anchor(entry, sources, f"{where} [[anchors]] {i}") for i, entry in enumerate(entries, 1))


def _anchor(entry: object, sources: Mapping[str, Source], where: str) -> Anchor:
    known = ("model", "dtype", "count", "times", "trust", "source", "why", "valid_range")
    reader = _table(entry, where, known)
    times = Fields(reader.table("times"), f"{where} times", _STEP_FIELDS)
    return Anchor(
        model=reader.text("model"),
        times={key: times.number(key) for key in sorted(_STEP_FIELDS) if key in times},
        trust=reader.choice("trust", Trust),
        source=_source(reader, sources, where),
        dtype=reader.choice("dtype", Dtype) if "dtype" in reader else None,
        count=reader.whole("count") if "count" in reader else None,
        why=reader.text("why", ""),
        valid_range=reader.text("valid_range", ""),
    )


def _table(entry: object, where: str, known: tuple[str, ...]) -> Fields:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} must be a table.")
    return Fields(entry, where, known)
