"""Puts a worker together: model, cache, spec. Loading happens here, before anything listens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch  # pyright: ignore[reportMissingImports]

from backends.models.engine import check_engine
from backends.models.profile import Profile
from backends.models.shape import ModelShape
from backends.reference.cache import FreeBlocks, KVCache
from backends.reference.config import read_config
from backends.reference.device import Device
from backends.reference.engine import Engine
from backends.reference.handover import Inflows, Outflow
from backends.reference.intake import Encode, Intake
from backends.reference.kind import Kind
from backends.reference.measure import Limits, Measure
from backends.reference.model import Llama
from backends.reference.precision import Precision
from backends.reference.runner import Runner
from backends.reference.scheduler import Scheduler
from backends.reference.weights import Weights, load_weights, random_weights
from backends.shell import port
from router.errors import ConfigError
from router.model import BackendKind, BackendSpec, ConnectorFlags, Phase, StepParameters

ROLES: Final[Mapping[str, frozenset[Phase]]] = {
    "prefill": frozenset({Phase.PREFILL}),
    "decode": frozenset({Phase.DECODE}),
    "both": frozenset({Phase.PREFILL, Phase.DECODE}),
}
CPU_CACHE_BYTES: Final = 1 << 30
"""Of KV on a CPU, unless told otherwise."""
CUDA_CACHE_SHARE: Final = 0.8
"""Of the memory that is free after the weights; the rest is for activations."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the operator wants."""

    backend: str
    model: Path
    """A directory with config.json and safetensors, or a config.json alone with random weights."""
    name: str
    """By which requests ask for the model; empty takes the directory's."""
    device: str
    """As torch names it: cpu, cuda, cuda:1."""
    precision: Precision
    role: str
    """One of ROLES."""
    random_seed: int | None = None
    """Random weights instead of those on disk."""
    block_tokens: int = 16
    kv_tokens: int | None = None
    """Room for so many tokens of KV; by default what fits in memory."""
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_context_tokens: int | None = None
    """At most the model's own."""
    zone: str = ""
    usd_per_hour: float = 0.0
    tokenizer: Path | None = None
    """A tokenizer.json, for prompts of text."""
    profile: Profile | None = None
    """Calibrated times; by default they are measured roughly."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker that only lacks a loop."""

    spec: BackendSpec
    kind: Kind
    stop_ids: frozenset[int]
    runner: Runner
    encode: Encode | None

    def boot(self, device: Device) -> port.Boot:
        """Boots incarnations over this model and cache."""
        intake = Intake(self.spec, self.kind, self.stop_ids, self.encode)

        def make(
            spec: BackendSpec, incarnation: str, source: str, deliver: port.Deliver, failed: port.Failed
        ) -> Engine:
            blocks = FreeBlocks(spec.kv_capacity_tokens // spec.block_tokens, spec.block_tokens)
            return Engine(
                spec,
                intake,
                Scheduler(blocks, spec.max_num_seqs, spec.max_num_batched_tokens),
                Outflow(spec, incarnation, source, self.kind, self.runner, device),
                Inflows(self.kind.shape, self.runner, device),
                self.runner,
                device,
                deliver,
                failed,
            )

        return make


def prepare(setting: Setting) -> Ready:
    """Load the model and size it up. Raises ConfigError for what cannot be run; takes seconds to minutes."""
    config = read_config(setting.model)
    encode = None if setting.tokenizer is None else _encoder(setting.tokenizer)
    device = _device(setting.device)
    weights = _weights(setting, config.shape, device)
    name = setting.name or config.shape.name
    kind = Kind(replace(config.shape, name=name), weights.revision, setting.precision)
    blocks = _blocks(setting, kind, device)
    context = min(setting.max_context_tokens or config.shape.max_context, blocks * setting.block_tokens)
    cache = KVCache(config.shape, blocks, setting.block_tokens, device, setting.precision.torch)
    batched = device.type != "cpu"
    runner = Runner(Llama(config, weights, context, batched=batched), cache)
    spec = replace(_spec(setting, kind, device), kv_capacity_tokens=blocks * setting.block_tokens)
    spec = replace(spec, max_context_tokens=context)
    check_engine(spec)
    return Ready(_timed(spec, setting, kind, runner), kind, config.stop_ids, runner, encode)


def _encoder(file: Path) -> Encode:
    try:
        from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]

        tokenizer = Tokenizer.from_file(str(file))
    except ImportError as error:
        raise ConfigError("tokenizers is not installed. Nothing was loaded. Install it with pip.") from error
    except Exception as error:  # the library raises nothing more precise for a file that it cannot read
        raise ConfigError(f"{file} is no tokenizer: {error}. Nothing was loaded. Check the file.") from error
    return lambda text: list(tokenizer.encode(text).ids)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(
            f"device {name!r} cannot be used: {first}. Nothing was loaded. Choose cpu, or fix it."
        ) from error
    return device


def _weights(setting: Setting, shape: ModelShape, device: torch.device) -> Weights:
    if setting.random_seed is not None:
        return random_weights(shape, setting.random_seed, device, setting.precision.torch)
    return load_weights(setting.model, shape, device, setting.precision.torch)


def _blocks(setting: Setting, kind: Kind, device: torch.device) -> int:
    """Pages that fit."""
    tokens = setting.kv_tokens
    if tokens is None:
        room = float(CPU_CACHE_BYTES)
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            room = free * CUDA_CACHE_SHARE
        tokens = int(room / _token_bytes(kind))
    return tokens // setting.block_tokens


def _token_bytes(kind: Kind) -> int:
    shape = kind.shape
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * kind.precision.bytes


def _spec(setting: Setting, kind: Kind, device: torch.device) -> BackendSpec:
    layouts = {one: kind.layout(one, setting.block_tokens) for one in Precision}
    cuda = device.type == "cuda"
    return BackendSpec(
        id=setting.backend,
        kind=BackendKind.GPU if cuda else BackendKind.CPU,
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        models=(kind.shape.name,),
        phases=ROLES[setting.role],
        step=StepParameters(base_s=1e-3),
        kv_bytes_per_token=float(_token_bytes(kind)),
        block_tokens=setting.block_tokens,
        kv_layout=layouts[kind.precision],
        kv_accepts=tuple(text for one, text in layouts.items() if one is not kind.precision),
        max_num_seqs=setting.max_num_seqs,
        max_num_batched_tokens=setting.max_num_batched_tokens,
        connector=ConnectorFlags(first_token_from_prefill=True),
        usd_per_hour=setting.usd_per_hour,
        zone=setting.zone,
    )


def _timed(spec: BackendSpec, setting: Setting, kind: Kind, runner: Runner) -> BackendSpec:
    limits = Limits(
        spec.block_tokens,
        spec.kv_capacity_tokens // spec.block_tokens,
        spec.max_num_seqs,
        spec.max_num_batched_tokens,
    )
    measure = Measure(runner, kind, limits)
    step = measure.step()
    link, conversion = measure.link()
    if (profile := setting.profile) is None:
        return replace(spec, step=step, link=link, kv_conversion=conversion)
    known = profile.spec
    return replace(
        spec,
        step=known.step,
        link=known.link,
        power=known.power,
        profile=profile.name,
        kv_conversion=max(conversion, known.kv_conversion),
    )
