"""Hardware profiles: the parameters of one device with one model, and where each came from. Pure.

A profile is a TOML text with the tables [provenance], [backend], [step], [link], [connector] and [power]. All
numbers are in base units (seconds, bytes, watts), as in router/model.py. A fleet may lay another text of the
same tables over it. Reading files is the catalogue's business (backends/catalogue.py).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

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
    StepParameters,
)

_BACKEND_FIELDS = frozenset(
    {
        "kind", "device", "count", "models", "phases", "binding", "kv_bytes_per_token", "kv_capacity_tokens",
        "block_tokens", "kv_layout", "kv_accepts", "max_num_seqs", "max_num_batched_tokens",
        "max_context_tokens", "usd_per_hour", "zone",
    }
)  # fmt: skip
_TABLES = ("provenance", "backend", "step", "link", "connector", "power")


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


def parse_profile(text: str, name: str, overlay: Table | None = None) -> Profile:
    """Parse a profile, with the tables of `overlay` laid over its own; raise ConfigError naming the field."""
    try:
        document: Table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"profile {name} is not TOML: {error}. Correct the file.") from error
    where = f"profile {name}"
    tables = Fields(merged(document, overlay or {}), where, _TABLES)
    spec = _spec(name, tables, where)
    check_engine(spec)
    check_step(spec.step)
    check_link(spec.link)
    return Profile(name, spec, _provenance(tables.table("provenance"), f"{where} [provenance]"))


def _spec(name: str, tables: Fields, where: str) -> BackendSpec:
    backend = Fields(tables.table("backend"), f"{where} [backend]", _BACKEND_FIELDS)
    spec = BackendSpec(
        id=name,
        profile=name,
        kind=backend.choice("kind", BackendKind),
        device=backend.text("device"),
        models=backend.texts("models"),
        phases=backend.choices("phases", Phase),
        step=_step(tables.table("step"), f"{where} [step]"),
        link=_link(tables.table("link"), f"{where} [link]"),
        connector=_connector(tables.table("connector"), f"{where} [connector]"),
        power=_power(tables.table("power"), f"{where} [power]"),
    )
    if not spec.models:
        raise ConfigError(f"{where} [backend]: 'models' is empty; the backend would serve nothing.")
    return _sized(spec, backend)


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
        usd_per_hour=backend.number("usd_per_hour"),
        zone=backend.text("zone", spec.zone),
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


def _link(table: Table, where: str) -> LinkParameters:
    return LinkParameters(**_numbers(table, where, LinkParameters, LinkParameters()))


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
