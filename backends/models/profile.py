"""Hardware profiles: the parameters of one device with one model, and where each came from. Pure.

A profile is a TOML text with the tables [provenance], [backend], [step], [link], [connector] and [power], and
[afd] where decode is split between attention and FFN devices (afd_table.py). All
numbers are in base units (seconds, bytes, watts), as in router/model.py. A fleet may lay another text of the
same tables over it. Reading files is the catalogue's business (backends/catalogue.py).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from backends.models.afd import with_serial_law
from backends.models.afd_table import read_afd
from backends.models.engine import check_engine
from backends.models.fields import Fields, Table, merged
from backends.models.latency import check_step
from backends.models.link import check_link
from router.errors import ConfigError
from router.model import (
    BackendKind,
    BackendSpec,
    ConnectorFlags,
    HandoffMint,
    LinkParameters,
    ModelBinding,
    Phase,
    PowerParameters,
    SchedulerKind,
    StepParameters,
)

_BACKEND_FIELDS = frozenset(
    {
        "kind", "device", "count", "models", "phases", "binding", "kv_bytes_per_token", "kv_capacity_tokens",
        "block_tokens", "kv_layout", "kv_accepts", "max_num_seqs", "max_num_batched_tokens",
        "max_context_tokens", "async_scheduling", "usd_per_hour", "zone", "scheduler", "prompt_buckets",
        "batch_buckets", "load_s", "compile_s", "kv_conversion",
    }
)  # fmt: skip
_TABLES = ("provenance", "backend", "step", "link", "connector", "power", "afd")


class Trust(StrEnum):
    """How far the numbers can be trusted."""

    MEASURED = "A"
    """Measured and published with data by a third party, or a primary specification."""
    MEASURED_OLD = "A-"
    """Measured on old software."""
    COMPOSED = "B+"
    """Composed from measured kernels."""
    REPORTED = "B"
    """A vendor's or the press's figure, or a community measurement."""
    GUESSED = "C"
    """A model's output, a recalled figure, or an assumption."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a profile's numbers come from."""

    source: str
    date: str
    """ISO date or year of the source."""
    trust: Trust
    """Of the step times; the assumptions say what is weaker."""
    fit_error: str
    """How far the model is from its data, and which data; a sentence."""
    valid_range: str
    """Batch sizes, contexts and prompts the data covered; beyond them the profile extrapolates."""
    assumptions: tuple[str, ...] = ()
    """What nobody published."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """A template of backends. Its spec has the profile's name for an id."""

    name: str
    spec: BackendSpec
    provenance: Provenance

    def backend(self, backend_id: str) -> BackendSpec:
        """A backend of this profile."""
        return replace(self.spec, id=backend_id)


def backend_fields() -> frozenset[str]:
    """Keys of the table [backend]."""
    return _BACKEND_FIELDS


Links = Mapping[str, LinkParameters]
NO_LINKS: Links = {}


def parse_profile(text: str, name: str, overlay: Table | None = None, links: Links = NO_LINKS) -> Profile:
    """Parse a profile, with the tables of `overlay` laid over its own; raise ConfigError naming the field.

    `links` are the presets that [link] may name.
    """
    try:
        document: Table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"profile {name} is not TOML: {error}. Correct the file.") from error
    where, above = f"profile {name}", overlay or {}
    if "preset" in above.get("link", ()):
        document = {**document, "link": {}}  # a named link takes the place of the profile's own
    tables = Fields(merged(document, above), where, _TABLES)
    spec = _spec(name, tables, where, links)
    check_engine(spec)
    check_step(spec.step)
    check_link(spec.link)
    return Profile(name, spec, _provenance(tables.table("provenance"), f"{where} [provenance]"))


def _spec(name: str, tables: Fields, where: str, links: Links) -> BackendSpec:
    backend = Fields(tables.table("backend"), f"{where} [backend]", _BACKEND_FIELDS)
    spec = BackendSpec(
        id=name,
        profile=name,
        kind=backend.choice("kind", BackendKind),
        device=backend.text("device"),
        models=backend.texts("models"),
        phases=backend.choices("phases", Phase),
        step=StepParameters(base_s=0.0),
        link=_link(tables.table("link"), f"{where} [link]", links),
        connector=_connector(tables.table("connector"), f"{where} [connector]"),
        power=_power(tables.table("power"), f"{where} [power]"),
    )
    if not spec.models:
        raise ConfigError(f"{where} [backend]: 'models' is empty; the backend would serve nothing.")
    return _with_laws(_sized(spec, backend), tables, where)


def _with_laws(spec: BackendSpec, tables: Fields, where: str) -> BackendSpec:
    """How long its steps take; a split decode also has the memory of its two sides to fit in."""
    step_table = tables.table("step")
    if "afd" not in tables:
        return replace(spec, step=_step(step_table, f"{where} [step]"))
    split = read_afd(tables.table("afd"), f"{where} [afd]")
    split.check_room(spec)
    step = _step({"base_s": 1.0, **step_table}, f"{where} [step]")
    return replace(spec, afd=split.parameters, step=with_serial_law(step, split.parameters))


def _sized(spec: BackendSpec, backend: Fields) -> BackendSpec:
    return replace(
        spec,
        count=backend.whole("count", spec.count),
        binding=backend.choice("binding", ModelBinding, spec.binding),
        kv_bytes_per_token=backend.number("kv_bytes_per_token"),
        kv_capacity_tokens=backend.whole("kv_capacity_tokens"),
        block_tokens=backend.whole("block_tokens", spec.block_tokens, most=4096),
        kv_layout=backend.text("kv_layout"),
        kv_accepts=backend.texts("kv_accepts", spec.kv_accepts),
        max_num_seqs=backend.whole("max_num_seqs", spec.max_num_seqs, most=1 << 16),
        max_num_batched_tokens=backend.whole("max_num_batched_tokens", spec.max_num_batched_tokens),
        max_context_tokens=backend.whole("max_context_tokens", spec.max_context_tokens),
        async_scheduling=backend.flag("async_scheduling", spec.async_scheduling),
        usd_per_hour=backend.number("usd_per_hour"),
        zone=backend.text("zone", spec.zone),
        scheduler=backend.choice("scheduler", SchedulerKind, spec.scheduler),
        prompt_buckets=backend.wholes("prompt_buckets", spec.prompt_buckets),
        batch_buckets=backend.wholes("batch_buckets", spec.batch_buckets),
        load_s=backend.number("load_s", spec.load_s),
        compile_s=backend.number("compile_s", spec.compile_s),
        kv_conversion=backend.number("kv_conversion", spec.kv_conversion, least=1.0),
    )


def _numbers(table: Table, where: str, shape: type[Any], defaults: object) -> dict[str, float]:
    """The fields of a dataclass of floats."""
    names = [field.name for field in fields(shape)]
    reader = Fields(table, where, names)
    return {name: reader.number(name, getattr(defaults, name)) for name in names}


def _step(table: Table, where: str) -> StepParameters:
    numbers = _numbers(table, where, StepParameters, StepParameters(base_s=1.0))
    if "base_s" not in table:
        raise ConfigError(
            f"{where}: 'base_s' is missing; add the seconds of a decode step of an empty batch."
        )
    return StepParameters(**numbers)


def _link(table: Table, where: str, links: Links) -> LinkParameters:
    reader = Fields(table, where, ["preset", *[field.name for field in fields(LinkParameters)]])
    preset = reader.text("preset", "")
    if preset and preset not in links:
        known = ", ".join(links) or "none here; write latency_s and bandwidth_bytes_per_s"
        raise ConfigError(f"{where}: there is no link preset {preset!r}; known are {known}.")
    default = links.get(preset, LinkParameters())
    return LinkParameters(
        latency_s=reader.number("latency_s", default.latency_s),
        bandwidth_bytes_per_s=reader.number("bandwidth_bytes_per_s", default.bandwidth_bytes_per_s),
        ingress_bytes_per_s=reader.number("ingress_bytes_per_s", default.ingress_bytes_per_s),
        overlap_layers=reader.whole("overlap_layers", default.overlap_layers, least=0, most=1000),
    )


def _power(table: Table, where: str) -> PowerParameters:
    return PowerParameters(**_numbers(table, where, PowerParameters, PowerParameters()))


def _connector(table: Table, where: str) -> ConnectorFlags:
    default = ConnectorFlags()
    reader = Fields(table, where, [field.name for field in fields(ConnectorFlags)])
    return ConnectorFlags(
        concurrent_handoff=reader.flag("concurrent_handoff", default.concurrent_handoff),
        requires_peer_binding=reader.flag("requires_peer_binding", default.requires_peer_binding),
        handoff_minted_by=reader.choice("handoff_minted_by", HandoffMint, default.handoff_minted_by),
        first_token_from_prefill=reader.flag("first_token_from_prefill", default.first_token_from_prefill),
    )


def _provenance(table: Table, where: str) -> Provenance:
    reader = Fields(table, where, [field.name for field in fields(Provenance)])
    return Provenance(
        source=reader.text("source"),
        date=reader.text("date"),
        trust=reader.choice("trust", Trust),
        fit_error=reader.text("fit_error"),
        valid_range=reader.text("valid_range"),
        assumptions=reader.texts("assumptions", ()),
        notes=reader.texts("notes", ()),
    )
