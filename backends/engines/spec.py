"""What an engine is, by the configuration: engines do not say how fast they are, or what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from backends.catalogue import engine_backend
from router.errors import ConfigError
from router.model import BackendSpec, ConnectorFlags

UNKNOWN: Final = """
[provenance]
source = "an assumption, for engines nobody has profiled; online learning corrects it"
date = "2026"
trust = "C"
fit_error = "unknown"
valid_range = "none"

[backend]
kind = "gpu"
device = "unknown"
phases = ["prefill", "decode"]
kv_bytes_per_token = 131072  # Llama-3.1-8B in 16 bits: 2 x 32 layers x 8 heads x 128 x 2 bytes
kv_capacity_tokens = 262144
kv_layout = "unknown"
usd_per_hour = 0.0

[step]
base_s = 0.015
per_sequence_s = 0.0002
per_prefill_token_s = 0.0001

[link]
bandwidth_bytes_per_s = 12.5e9
"""
"""Stands in for a profile. The step times are of the order of an H100 with an 8B model."""


def engine_spec(
    backend: str, profile: str, overrides: Mapping[str, Any], connector: ConnectorFlags, where: str
) -> BackendSpec:
    """The spec of an engine backend. Raises ConfigError.

    Unless told otherwise its KV fits nobody else's: an engine that hands KV over names its `kv_layout`, the
    same at both ends of a pair.
    """
    if not profile and "models" not in overrides:
        raise ConfigError(
            f"{where}: spec.models is missing; name the models the engine serves, or a profile."
        )
    spec = engine_backend(backend, profile, overrides, UNKNOWN, where)
    layout = spec.kv_layout if "kv_layout" in overrides else f"own:{backend}"
    return replace(
        spec, kv_layout=layout, connector=spec.connector if "connector" in overrides else connector
    )
