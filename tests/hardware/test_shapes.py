"""Sizes of models: against published parameter counts, and bytes and FLOPs worked by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from backends.hardware import SHAPES, load_shape, shape_names
from backends.models.hf_config import parse_config
from backends.models.shape import Dtype
from router.errors import ConfigError

DENSE: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 10,
}


def test_the_shipped_models_are_these() -> None:
    """Their names are public."""
    assert shape_names() == (
        "deepseek-r1", "gpt-oss-120b", "llama-3.1-405b", "llama-3.1-70b", "llama-3.1-8b", "llama-3.2-1b",
        "llama-3.2-3b", "qwen3-235b-a22b", "qwen3-30b-a3b", "qwen3-32b",
    )  # fmt: skip


@pytest.mark.parametrize("name", shape_names())
def test_shipped_configs_say_where_they_come_from(name: str) -> None:
    """And that they were recalled, where they were."""
    origin = json.loads((SHAPES / f"{name}.json").read_text())["polyphase"]
    assert origin["source"] and origin["date"] and origin["trust"] in {"A", "B", "C"}
    assert isinstance(origin["recalled"], bool)


@pytest.mark.parametrize(
    ("name", "total", "active_billions"),
    [
        ("llama-3.1-8b", 8_030_261_248, 7.50),
        ("llama-3.1-70b", 70_553_706_496, 69.50),
        ("llama-3.1-405b", 405_853_388_800, 403.75),
        ("llama-3.2-1b", 1_235_814_400, 1.2357),
        ("llama-3.2-3b", 3_212_749_824, 3.21),
        ("qwen3-32b", 32_762_123_264, 31.98),
        ("qwen3-30b-a3b", 30_532_122_624, 3.04),
        ("qwen3-235b-a22b", 235_093_634_560, 21.6),
    ],
)
def test_parameters_are_those_published(name: str, total: int, active_billions: float) -> None:
    """To the last one, as the checkpoints count them; a token uses no row of the embedding table."""
    shape = load_shape(name)
    assert shape.parameters == total
    assert shape.active_parameters / 1e9 == pytest.approx(active_billions, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "total", "active"), [("deepseek-r1", 671.03e9, 36.6e9), ("gpt-oss-120b", 116.83e9, 5.13e9)]
)
def test_parameters_of_the_mixtures_with_biases(name: str, total: float, active: float) -> None:
    """To 0.1 %: biases are left out, and the heads for multi-token prediction."""
    shape = load_shape(name)
    assert shape.parameters == pytest.approx(total, rel=1e-3)
    assert shape.active_parameters == pytest.approx(active, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("llama-3.1-8b", 2 * 32 * 8 * 128 * 2),
        ("llama-3.1-70b", 327_680),
        ("llama-3.1-405b", 516_096),
        ("llama-3.2-3b", 2 * 28 * 8 * 128 * 2),
        ("qwen3-32b", 262_144),
        ("gpt-oss-120b", 73_728),
        ("deepseek-r1", 61 * (512 + 64) * 2),
    ],
)
def test_kv_bytes_per_token(name: str, each: int) -> None:
    """2 x layers x KV heads x head size x 2 bytes; with MLA, layers x (rank + rope) x 2 bytes."""
    assert load_shape(name).kv_bytes_per_token() == each
    assert load_shape(name).kv_bytes_per_token(Dtype.FP8) == each / 2


def test_half_of_the_layers_of_gpt_oss_read_a_window_only() -> None:
    """18 of 36 layers, 128 tokens of 8 heads of 64, keys and values in 2 bytes."""
    shape = load_shape("gpt-oss-120b")
    assert (shape.sliding_layers, shape.window) == (18, 128)
    assert shape.kv_bytes_read_per_token() == 36_864
    assert shape.window_bytes() == 18 * 128 * 2 * 8 * 64 * 2


@pytest.mark.parametrize(
    ("name", "dtype", "gigabytes"),
    [
        ("llama-3.1-8b", Dtype.BF16, 16.06),
        ("llama-3.1-8b", Dtype.INT4, 4.52),
        ("llama-3.1-70b", Dtype.FP8, 72.66),
        ("llama-3.1-70b", Dtype.NVFP4, 42.71),
        ("gpt-oss-120b", Dtype.MXFP4, 65.2),
        ("deepseek-r1", Dtype.FP8, 672.9),
    ],
)
def test_weight_bytes(name: str, dtype: Dtype, gigabytes: float) -> None:
    """Matrices in the format with its scales, tables in 16 bits; int4 quantises all, mxfp4 experts only."""
    assert load_shape(name).weight_bytes(dtype) / 1e9 == pytest.approx(gigabytes, rel=2e-3)


def test_a_tiny_dense_model_by_hand() -> None:
    """Two layers of 8 wide with 4 heads of 2, 2 of them for KV; every count on one line of paper."""
    shape = parse_config(DENSE, "tiny")
    attention = 2 * (8 * 8 + 2 * (8 * 4) + 8 * 8)
    feed_forward = 2 * 3 * 8 * 16
    assert shape.attention_parameters == attention
    assert shape.dense_parameters == feed_forward
    assert shape.parameters == attention + feed_forward + 2 * 10 * 8 + (2 * 2 + 1) * 8
    assert shape.flop_per_token == 2 * (attention + feed_forward + 80)
    assert shape.flop_per_pair == 2 * (2 * 2 * 4 * 2)
    assert shape.flop_at(100) == shape.flop_per_token + 100 * 64
    assert shape.dense_read_bytes(Dtype.BF16) == 2 * (attention + feed_forward + 80 + 40)


def test_attention_to_a_window_stops_growing() -> None:
    """A sliding layer costs what the window holds, however long the context."""
    shape = parse_config(
        {**DENSE, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}, "m"
    )
    near, far = shape.flop_at(16), shape.flop_at(1016)
    assert far - near == 1000 * shape.flop_per_pair
    assert shape.flop_per_pair == 4 * 4 * 2


@pytest.mark.parametrize(
    ("extra", "layers", "window"),
    [
        ({"sliding_window": 64}, 2, 64),
        ({"sliding_window": 64, "use_sliding_window": False}, 0, 0),
        ({"sliding_window": None}, 0, 0),
        ({"sliding_window": 64, "num_hidden_layers": 12, "sliding_window_pattern": 6}, 10, 64),
        ({"sliding_window": 64, "model_type": "gemma2"}, 1, 64),
        ({"attention_chunk_size": 64, "layer_types": ["chunked_attention", "full_attention"]}, 1, 64),
    ],
)
def test_windows_are_read_in_every_spelling(extra: dict[str, Any], layers: int, window: int) -> None:
    """As Mistral, Qwen, Gemma and Llama 4 write them."""
    shape = parse_config({**DENSE, **extra}, "m")
    assert (shape.sliding_layers, shape.window) == (layers, window)


@pytest.mark.parametrize(
    ("extra", "layers", "shared"),
    [
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, 2, 0),
        ({"num_experts": 8, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 32}, 2, 32),
        (
            {
                "n_routed_experts": 8,
                "num_experts_per_tok": 2,
                "first_k_dense_replace": 1,
                "n_shared_experts": 2,
            },
            1,
            32,
        ),
        ({"num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 2}, 1, 0),
        ({"num_experts": 8, "num_experts_per_tok": 2, "mlp_only_layers": [0]}, 1, 0),
    ],
)
def test_experts_are_read_in_every_spelling(extra: dict[str, Any], layers: int, shared: int) -> None:
    """As Mixtral, Qwen and DeepSeek write them."""
    moe = parse_config({**DENSE, **extra}, "m").experts
    assert moe is not None
    assert (moe.total, moe.active, moe.layers, moe.shared_intermediate) == (8, 2, layers, shared)


@pytest.mark.parametrize(
    ("quantised", "dtype"),
    [
        (None, Dtype.BF16),
        ({"quant_method": "fp8", "fmt": "e4m3"}, Dtype.FP8),
        ({"quant_method": "mxfp4"}, Dtype.MXFP4),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, Dtype.NVFP4),
        ({"quant_method": "awq", "bits": 4}, Dtype.INT4),
        ({"quant_method": "bitsandbytes", "bits": 8}, Dtype.INT8),
    ],
)
def test_the_checkpoints_format_is_read(quantised: dict[str, Any] | None, dtype: Dtype) -> None:
    """From quantization_config; 16 bits without."""
    assert parse_config({**DENSE, "quantization_config": quantised}, "m").native is dtype


def test_a_multimodal_config_gives_its_language_model() -> None:
    """The sizes are in text_config."""
    assert parse_config({"model_type": "vlm", "text_config": DENSE}, "m").layers == 2


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"num_hidden_layers": None}, "no 'num_hidden_layers'.*config.json"),
        ({"hidden_size": 0}, "'hidden_size' is 0.*from 1"),
        ({"hidden_size": 1 << 30}, "'hidden_size' is"),
        ({"vocab_size": "many"}, "'vocab_size' is 'many'"),
        ({"tie_word_embeddings": 1}, "true or false"),
        (
            {"layer_types": ["linear_attention", "full_attention"]},
            "linear_attention are not modelled.*Fit a profile",
        ),
        ({"mamba_d_state": 16}, "mamba_d_state are not modelled"),
        ({"num_experts": 4, "num_experts_per_tok": 9}, "9 of 4 experts"),
        ({"num_experts": 4}, "no 'num_experts_per_tok'"),
        ({"kv_lora_rank": 512}, "no 'qk_nope_head_dim'"),
        ({"quantization_config": {"quant_method": "odd"}}, "odd.*no known format.*--dtype"),
    ],
)
def test_a_config_that_cannot_be_understood_is_explained(extra: dict[str, Any], words: str) -> None:
    """What is missing or odd, and what to do."""
    with pytest.raises(ConfigError) as caught:
        parse_config({**DENSE, **extra}, "m")
    assert re.search(words, caught.value.message, re.DOTALL), caught.value.message


def test_a_config_file_names_its_model_after_itself_or_its_folder(tmp_path: Path) -> None:
    """A config.json is called so in every checkpoint; its folder says more."""
    folder = tmp_path / "My-Model"
    folder.mkdir()
    for name in ("config.json", "other.json"):
        (folder / name).write_text(json.dumps(DENSE))
    assert load_shape(str(folder / "config.json")).name == "my-model"
    assert load_shape(str(folder / "other.json")).name == "other"
    assert load_shape(str(folder / "other.json"), "chosen").name == "chosen"


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not JSON"), ("[1]", "no JSON object"), ("[" * 100_000, "not JSON"), (None, "cannot be read")],
)
def test_a_file_that_is_no_config_is_explained(tmp_path: Path, text: str | None, words: str) -> None:
    """Missing, broken, or something else."""
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_shape(str(path))


def test_an_unknown_model_lists_the_known_ones() -> None:
    """A name that is neither shipped nor a file."""
    with pytest.raises(ConfigError, match=r"no model 'lama'; known are deepseek-r1.*config\.json"):
        load_shape("lama")
