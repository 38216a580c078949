"""What the worker needs of a model's config.json: sizes, rotary embedding, norms, stop tokens. No torch.

Understood are the architectures of Llama: RMSNorm, rotary embeddings (plain or with Llama 3's scaling),
grouped-query attention, SwiGLU, no biases, full attention in every layer. Others are refused: a model that
is computed nearly right gives wrong tokens without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backends.models.hf_config import parse_config
from backends.models.shape import ModelShape
from router.errors import ConfigError

MAX_JSON_BYTES: Final = 64 << 20
"""Of a config or an index of weights; a larger file is taken for something else and not read."""
_KINDS: Final = frozenset({"llama", "mistral"})


@dataclass(frozen=True, slots=True)
class Stretch:
    """Llama 3's scaling of the rotary frequencies, as transformers' rope_type "llama3" defines it."""

    factor: float
    low_factor: float
    high_factor: float
    trained_context: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model."""

    shape: ModelShape
    norm_epsilon: float
    rope_theta: float
    stretch: Stretch | None
    stop_ids: frozenset[int]
    """Tokens that end an answer."""


def read_config(path: Path) -> ModelConfig:
    """Of a model's directory, or of a config.json itself. Raises ConfigError for one that cannot be run."""
    folder, file = (path, path / "config.json") if path.is_dir() else (path.parent, path)
    table = read_json(file)
    generation = folder / "generation_config.json"
    stops = _stop_ids(table) | (_stop_ids(read_json(generation)) if generation.is_file() else frozenset())
    return parse_model(table, folder.name or "model", stops)


def read_json(file: Path) -> Mapping[str, Any]:
    """A JSON object in a file of bounded size. Raises ConfigError."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(
                f"{file} is larger than {MAX_JSON_BYTES} bytes. Nothing was loaded. Is it JSON?"
            )
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Nothing was loaded. Check the path.") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{file} holds no JSON object. Nothing was loaded. Give a model's own file.")
    return table


def parse_model(table: Mapping[str, Any], name: str, stop_ids: frozenset[int]) -> ModelConfig:
    """A config as JSON gives it. Raises ConfigError for an architecture that this worker does not compute."""
    shape = parse_config(table, name)
    _refuse_others(table, shape)
    theta, stretch = _rope(table, name)
    return ModelConfig(shape, _number(table, "rms_norm_eps", 1e-6, name), theta, stretch, stop_ids)


def _refuse_others(table: Mapping[str, Any], shape: ModelShape) -> None:
    kind = str(table.get("model_type", ""))
    odd = [key for key in ("attention_bias", "mlp_bias", "quantization_config") if table.get(key)]
    if kind not in _KINDS:
        odd.append(f"model_type {kind!r}")
    if table.get("hidden_act", "silu") != "silu":
        odd.append(f"hidden_act {table['hidden_act']!r}")
    if shape.window or shape.latent or shape.experts or shape.query_key_norms:
        odd.append("layers other than dense ones with full attention")
    if shape.heads % shape.kv_heads or shape.head_dim % 2:
        odd.append(f"{shape.heads} heads over {shape.kv_heads} KV heads of {shape.head_dim}")
    if odd:
        raise ConfigError(
            f"model {shape.name}: {', '.join(odd)} is not computed here; its answers would be wrong. "
            f"Give a model of the kind {' or '.join(sorted(_KINDS))}, in 16 or 32 bits."
        )


def _rope(table: Mapping[str, Any], name: str) -> tuple[float, Stretch | None]:
    """Theta and scaling: both in rope_parameters, or, in older configs, the latter in rope_scaling."""
    found = table.get("rope_parameters") or table.get("rope_scaling") or {}
    rope: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    theta = _number({**table, **rope}, "rope_theta", 10_000.0, name)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ConfigError(
            f"model {name}: rotary scaling {kind!r} is not computed here; its answers would be wrong. "
            "Give a model with rope_type default or llama3."
        )
    return theta, Stretch(
        factor=_number(rope, "factor", None, name),
        low_factor=_number(rope, "low_freq_factor", None, name),
        high_factor=_number(rope, "high_freq_factor", None, name),
        trained_context=int(_number(rope, "original_max_position_embeddings", None, name)),
    )


def _number(table: Mapping[str, Any], key: str, default: float | None, name: str) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < 1e12:
        raise ConfigError(
            f"model {name}: {key!r} is {value!r}; it must be a number above 0. Correct the config."
        )
    return float(value)


def _stop_ids(table: Mapping[str, Any]) -> frozenset[int]:
    value = table.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(one) is int and one >= 0 for one in ids):
        raise ConfigError(f"eos_token_id is {value!r}; it must be one token id or a list of them.")
    return frozenset(ids)
