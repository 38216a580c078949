"""Tiny Llamas on disk, with random weights large enough that answers wander."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

VOCABULARY = 8192
SIZES: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
SCALE = 0.06


def make_model(folder: Path, dtype: torch.dtype, seed: int = 0, **changes: Any) -> Path:
    """Write config.json and model.safetensors; gives the folder."""
    config = {**SIZES, **changes, "torch_dtype": str(dtype).removeprefix("torch.")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    save_file(
        {name: _draw(name, size, generator).to(dtype) for name, size in shapes(config).items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and size of every tensor."""
    hidden, wide, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    made: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for place in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{place}."
        made |= {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_proj.weight": (heads * size, hidden),
            f"{prefix}self_attn.k_proj.weight": (kv_heads * size, hidden),
            f"{prefix}self_attn.v_proj.weight": (kv_heads * size, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, heads * size),
            f"{prefix}mlp.gate_proj.weight": (wide, hidden),
            f"{prefix}mlp.up_proj.weight": (wide, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, wide),
        }
    made["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        made["lm_head.weight"] = (config["vocab_size"], hidden)
    return made


def _draw(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(size, generator=generator)
    return 1.0 + 0.1 * noise if name.endswith("norm.weight") else SCALE * noise


def rows_alike(dtype: torch.dtype) -> bool:
    """Whether this machine's matrix kernels give a row the same numbers in batches of any size.

    Where they do not, answers in 16 bits may leave those of another batch at near ties.
    """
    generator = torch.Generator().manual_seed(0)
    for inputs, outputs in ((128, 128), (128, 256), (256, 128), (128, VOCABULARY)):
        weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
        rows = torch.randn(300, inputs, generator=generator).to(dtype)
        whole = torch.nn.functional.linear(rows, weight)
        for count in (1, 2, 7, 33):
            if not torch.equal(torch.nn.functional.linear(rows[:count], weight), whole[:count]):
                return False
    return True
