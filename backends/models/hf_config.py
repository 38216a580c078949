"""Reads the sizes of a model from a Hugging Face style config: a dict in, a ModelShape out. Pure.

Understood are decoder-only transformers: dense, grouped-query, mixtures of experts, latent attention (MLA),
sliding windows. Layers of another kind (state space, linear attention) are refused, not guessed at: their
cost does not grow with context as the step model says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from backends.models.fields import Fields, Table
from backends.models.shape import Dtype, Experts, Latent, ModelShape
from router.errors import ConfigError

_ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head"),
    "intermediate": ("intermediate_size", "ffn_dim", "n_inner"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "active": ("num_experts_per_tok", "experts_per_token", "moe_topk"),
}
_UNGATED: Final = frozenset({"gpt2", "opt", "gpt_neox", "bloom", "falcon", "phi", "starcoder2"})
_TIED: Final = frozenset({"gemma", "gemma2", "gemma3_text", "gpt2", "opt"})
"""Families whose configs leave tie_word_embeddings out and tie all the same."""
_ATTENDING: Final = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
MAX_SIZE: Final = 1 << 24
MAX_LAYERS: Final = 4096


def parse_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape a config describes; raise ConfigError that names what is missing or not understood."""
    inner = config.get("text_config")
    if isinstance(inner, Mapping):  # a multimodal model: only the language model decodes
        config = {**config, **inner}
    reader = _Reader(config, f"model {name}")
    _refuse_other_layers(config, name)
    sliding, window = _sliding(reader)
    mla = _latent(reader)
    heads, hidden = reader.size("heads"), reader.size("hidden")
    return ModelShape(
        name=name,
        layers=reader.layers,
        hidden=hidden,
        vocab=reader.size("vocab_size"),
        heads=heads,
        kv_heads=reader.size("num_key_value_heads", heads),
        head_dim=reader.size("head_dim", max(1, hidden // heads)),
        intermediate=reader.size("intermediate", 4 * hidden),
        native=_native(config, name),
        sliding_layers=sliding,
        window=window,
        latent=mla,
        experts=_experts(reader),
        tied=reader.flag("tie_word_embeddings", reader.kind in _TIED),
        gated=reader.kind not in _UNGATED,
        query_key_norms=reader.kind.startswith("qwen3") and mla is None,
        max_context=reader.size("max_position_embeddings", 1 << 17),
    )


class _Reader:
    """The known keys of a config, whatever it calls them; null counts as absent, as in Hugging Face."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config: Table = {key: value for key, value in config.items() if value is not None}
        self._fields = Fields(self._config, where, self._config.keys())
        self._where = where
        self.kind = str(config.get("model_type", ""))
        self.layers = self.size("layers", most=MAX_LAYERS)

    def size(self, name: str, default: int | None = None, *, least: int = 1, most: int = MAX_SIZE) -> int:
        """A whole number under any of its names."""
        names = _ALIASES.get(name, (name,))
        key = next((one for one in names if one in self._config), None)
        if key is not None:
            return self._fields.whole(key, least=least, most=most)
        if default is None:
            raise ConfigError(
                f"{self._where}: the config has no {names[0]!r}, so its size is unknown. Give the "
                "config.json of a decoder-only transformer."
            )
        return default

    def count(self, name: str) -> int:
        """A whole number that may be 0, which it is when absent."""
        return self.size(name, 0, least=0)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        return self._fields.flag(name, default)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings, empty when absent."""
        return self._fields.texts(name, ())

    def numbers(self, name: str) -> int:
        """How many entries a list has, none when absent."""
        value = self._config.get(name, ())
        return len(value) if isinstance(value, list) else 0


def _refuse_other_layers(config: Mapping[str, Any], name: str) -> None:
    kinds = config.get("layer_types") or ()
    odd = sorted({str(kind) for kind in kinds} - _ATTENDING) if isinstance(kinds, list) else []
    odd += [key for key in ("ssm_state_size", "mamba_d_state", "state_size") if config.get(key)]
    if odd:
        raise ConfigError(
            f"model {name}: layers of the kind {', '.join(odd)} are not modelled; their cost does not grow "
            "with context as attention's does. Fit a profile to measurements of it instead."
        )


def _sliding(reader: _Reader) -> tuple[int, int]:
    """Layers with a window, and the window; (0, 0) without."""
    window = reader.count("sliding_window") or reader.count("attention_chunk_size")
    if not window or not reader.flag("use_sliding_window", True):
        return 0, 0
    if kinds := reader.texts("layer_types"):
        return sum(kind != "full_attention" for kind in kinds[: reader.layers]), window
    if every := reader.count("sliding_window_pattern"):  # one full layer in so many
        return reader.layers - reader.layers // every, window
    if reader.kind == "gemma2":
        return reader.layers // 2, window
    return reader.layers, window


def _latent(reader: _Reader) -> Latent | None:
    rank = reader.count("kv_lora_rank")
    if not rank:
        return None
    return Latent(
        kv_rank=rank,
        query_rank=reader.count("q_lora_rank"),
        nope_dim=reader.size("qk_nope_head_dim"),
        rope_dim=reader.size("qk_rope_head_dim"),
        value_dim=reader.size("v_head_dim"),
    )


def _experts(reader: _Reader) -> Experts | None:
    total = reader.count("experts")
    if total <= 1:
        return None
    width = reader.size("moe_intermediate_size", reader.size("intermediate", 0, least=0), least=1)
    dense = reader.count("first_k_dense_replace") or reader.numbers("mlp_only_layers")
    step = max(1, reader.count("decoder_sparse_step") or reader.count("moe_layer_freq") or 1)
    shared = reader.count("shared_expert_intermediate_size") or reader.count("n_shared_experts") * width
    active = reader.size("active")
    if active > total or dense >= reader.layers:
        raise ConfigError(
            f"the config runs {active} of {total} experts, with {dense} of {reader.layers} layers dense; "
            "that is no mixture of experts. Correct it."
        )
    return Experts(total, active, width, -(-(reader.layers - dense) // step), shared)


def _native(config: Mapping[str, Any], name: str) -> Dtype:
    """Format of the checkpoint: what its quantization_config says, else 16 bits."""
    quantised = config.get("quantization_config")
    if not isinstance(quantised, Mapping):
        return Dtype.BF16
    words = " ".join(str(quantised.get(key, "")) for key in ("quant_method", "quant_algo", "fmt", "bits"))
    for word, dtype in (
        *(("mxfp4", Dtype.MXFP4), ("nvfp4", Dtype.NVFP4), ("fp8", Dtype.FP8), ("e4m3", Dtype.FP8)),
        *(("awq", Dtype.INT4), ("gptq", Dtype.INT4), ("4", Dtype.INT4), ("8", Dtype.INT8)),
    ):
        if word in words.lower():
            return dtype
    raise ConfigError(
        f"model {name}: its quantization_config ({words.strip()}) is of no known format; known are "
        f"{', '.join(Dtype)}. Remove it from the config, and name the format with --dtype."
    )
