"""Weights of a model: from Hugging Face style safetensors, or random from a seed.

The revision is a fingerprint of what was loaded, before it is converted to the worker's precision: workers
that hold the same model in different precisions have the same revision, and only then may KV pass between
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor  # pyright: ignore[reportMissingImports]

from backends.models.shape import ModelShape
from backends.reference.config import read_json
from router.errors import ConfigError

SAMPLES: Final = 4096
"""Numbers of each tensor that go into the revision, evenly spaced: two trainings of one architecture differ
in nearly all numbers, and hashing 16 GB in full would hold up every start."""
INITIAL_SCALE: Final = 0.02
"""Standard deviation of random weights, transformers' default initializer_range."""

Read = Callable[[str, tuple[int, ...]], Tensor]
"""Gives a tensor by its name; the shape is what it must have."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer; matrices are (out, in)."""

    input_norm: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    ffn_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model on one device, in one precision."""

    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Tensor
    revision: str
    """16 hexadecimal digits."""


def load_weights(folder: Path, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> Weights:
    """From model.safetensors or its shards. Raises ConfigError for files that are missing or do not fit."""
    from safetensors import SafetensorError, safe_open  # pyright: ignore[reportMissingImports]

    with ExitStack() as stack:
        opened: dict[str, Any] = {}

        def read(name: str, size: tuple[int, ...]) -> Tensor:
            file = files.get(name)
            if file is None:
                raise ConfigError(f"{folder} holds no weights {name!r}. Nothing was started. Is it complete?")
            if file not in opened:
                opened[file] = stack.enter_context(
                    safe_open(str(folder / file), framework="pt", device="cpu")
                )
            return _fitting(opened[file].get_tensor(name), name, size)

        try:
            files = _files(folder, safe_open)
            return _assembled(read, shape, device, dtype)
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"the weights in {folder} cannot be read: {error}. Nothing was started. Check the files."
            ) from error


def random_weights(shape: ModelShape, seed: int, device: torch.device, dtype: torch.dtype) -> Weights:
    """The same for the same seed and kind of device; norms are 1."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(name: str, size: tuple[int, ...]) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(size, device=device)
        return torch.randn(size, generator=generator, device=device) * INITIAL_SCALE

    return _assembled(draw, shape, device, dtype)


def _assembled(read: Read, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> Weights:
    digest = hashlib.blake2b(digest_size=8)

    def take(name: str, *size: int) -> Tensor:
        tensor = read(name, size)
        _digest(digest, name, tensor)
        return tensor.to(device=device, dtype=dtype)

    hidden, vocab = shape.hidden, shape.vocab
    embedding = take("model.embed_tokens.weight", vocab, hidden)
    layers = tuple(_layer(take, f"model.layers.{place}.", shape) for place in range(shape.layers))
    norm = take("model.norm.weight", hidden)
    head = embedding if shape.tied else take("lm_head.weight", vocab, hidden)
    return Weights(embedding, layers, norm, head, digest.hexdigest())


def _layer(take: Callable[..., Tensor], prefix: str, shape: ModelShape) -> Layer:
    hidden, wide = shape.hidden, shape.intermediate
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return Layer(
        input_norm=take(f"{prefix}input_layernorm.weight", hidden),
        query=take(f"{prefix}self_attn.q_proj.weight", queries, hidden),
        key=take(f"{prefix}self_attn.k_proj.weight", keys, hidden),
        value=take(f"{prefix}self_attn.v_proj.weight", keys, hidden),
        output=take(f"{prefix}self_attn.o_proj.weight", hidden, queries),
        ffn_norm=take(f"{prefix}post_attention_layernorm.weight", hidden),
        gate=take(f"{prefix}mlp.gate_proj.weight", wide, hidden),
        up=take(f"{prefix}mlp.up_proj.weight", wide, hidden),
        down=take(f"{prefix}mlp.down_proj.weight", hidden, wide),
    )


def _files(folder: Path, safe_open: Any) -> Mapping[str, str]:
    """Which file has which tensor."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return dict(_checked(read_json(index).get("weight_map"), index))
    file = folder / "model.safetensors"
    with safe_open(str(file), framework="pt", device="cpu") as opened:
        return dict.fromkeys(opened.keys(), file.name)


def _checked(table: Any, index: Path) -> Iterator[tuple[str, str]]:
    if not isinstance(table, dict) or not table:
        raise ConfigError(f"{index} has no weight_map. Nothing was started. Give the model's own index.")
    for name, file in table.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ConfigError(f"{index} names the file {file!r}, which is not beside it. Correct the index.")
        yield str(name), file


def _fitting(tensor: Tensor, name: str, size: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != size or not tensor.is_floating_point():
        raise ConfigError(
            f"the weights {name!r} are {tuple(tensor.shape)} of {tensor.dtype}; the config asks for {size}. "
            "Nothing was started. Do config and weights belong together?"
        )
    return tensor


def _digest(digest: Any, name: str, tensor: Tensor) -> None:
    flat = tensor.flatten()
    sample = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].to(device="cpu", dtype=torch.float32)
    digest.update(f"{name}{tuple(tensor.shape)}".encode())
    digest.update(sample.contiguous().numpy().tobytes())
