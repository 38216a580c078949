"""Finds link presets: measured KV links that ship with the project, by name (backends/models/links.toml)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from backends.models.fields import Fields
from backends.models.link import check_link
from backends.models.profile import Trust
from router.model import LinkParameters

LINKS: Final = Path(__file__).parent / "models" / "links.toml"


@dataclass(frozen=True, slots=True)
class LinkPreset:
    """A link and where its figures come from."""

    name: str
    parameters: LinkParameters
    trust: Trust
    source: str


@cache
def link_presets() -> Mapping[str, LinkPreset]:
    """The presets by name; raise ConfigError for a file that is wrong."""
    document = tomllib.loads(LINKS.read_text(encoding="utf-8"))
    return {name: _preset(name, entry) for name, entry in document.items()}


def link_table() -> Mapping[str, LinkParameters]:
    """The parameters alone, as parse_profile takes them."""
    return {name: preset.parameters for name, preset in link_presets().items()}


def _preset(name: str, entry: Mapping[str, Any]) -> LinkPreset:
    reader = Fields(entry, f"link {name}", ("latency_s", "bandwidth_bytes_per_s", "trust", "source"))
    parameters = LinkParameters(reader.number("latency_s"), reader.number("bandwidth_bytes_per_s"))
    check_link(parameters)
    return LinkPreset(name, parameters, reader.choice("trust", Trust), reader.text("source"))
