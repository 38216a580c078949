"""Whether a model fits devices, how much room it leaves for KV, and if not, what would do. Pure.

    room = 0.9 x memory x devices - weights - reserve x devices

Origin of the tenth left free: vLLM's default share of memory. A cache is split over the devices by KV heads
and copied where there are more devices than heads; latent attention has one vector a token, on every device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from backends.models.device import Device
from backends.models.shape import BYTES, Dtype, ModelShape
from router.errors import ConfigError
from router.model import SchedulerKind

USABLE: Final = 0.9
LEAST_TOKENS: Final = 1024
"""KV room below which serving makes no sense."""


@dataclass(frozen=True, slots=True)
class KVRoom:
    """Devices that hold a model, and what they have left."""

    count: int
    weight_bytes: float
    """Of the whole model."""
    kv_bytes_per_token: float
    """Of one copy, in all layers: what a handoff moves."""
    capacity_tokens: int


def kv_room(device: Device, shape: ModelShape, count: int | None, dtype: Dtype, kv_dtype: Dtype) -> KVRoom:
    """Room on `count` devices, or on as few as hold the model; raise ConfigError where it does not fit."""
    _check_format(device, shape, dtype, kv_dtype)
    if count is not None:
        _check_count(device, shape, count)
        room = _room(device, shape, count, dtype, kv_dtype)
        if room.capacity_tokens < LEAST_TOKENS:
            raise _too_large(device, shape, count, dtype, kv_dtype)
        return room
    for each in _counts(device, shape):
        room = _room(device, shape, each, dtype, kv_dtype)
        if room.capacity_tokens >= LEAST_TOKENS:
            return room
    raise _too_large(device, shape, device.scale_up_devices.value, dtype, kv_dtype)


def _room(device: Device, shape: ModelShape, count: int, dtype: Dtype, kv_dtype: Dtype) -> KVRoom:
    weights = shape.weight_bytes(dtype)
    each = shape.kv_bytes_per_token(kv_dtype)
    return KVRoom(
        count,
        weights,
        each,
        int(_free_bytes(device, count, weights) / (each * _copies(shape, count, device))),
    )


def _free_bytes(device: Device, count: int, weights: float) -> float:
    return max(0.0, (USABLE * device.memory_bytes.value - device.reserve_bytes.value) * count - weights)


def _copies(shape: ModelShape, count: int, device: Device) -> float:
    """Copies of a token's cache among the devices."""
    if device.scheduler.value is SchedulerKind.SLOTS:
        return 1.0  # a pipeline holds each layer once
    return float(count) if shape.latent else max(1.0, count / shape.kv_heads)


def _counts(device: Device, shape: ModelShape) -> Iterator[int]:
    """Counts to try, smallest first: powers of two that divide the heads, every one in a pipeline."""
    most = device.scale_up_devices.value
    if device.scheduler.value is SchedulerKind.SLOTS:
        yield from range(1, most + 1)
        return
    count = 1
    while count <= most:
        if shape.heads % count == 0:
            yield count
        count *= 2


def _check_format(device: Device, shape: ModelShape, dtype: Dtype, kv_dtype: Dtype) -> None:
    if dtype not in device.flops:
        raise ConfigError(
            f"{device.title} does not compute in {dtype}, so {shape.name} in {dtype} cannot run there. It "
            f"supports {', '.join(device.flops)}; choose one with --dtype."
        )
    if kv_dtype not in {Dtype.BF16, Dtype.FP8, Dtype.INT8}:
        raise ConfigError(
            f"a KV cache in {kv_dtype} is not modelled; choose bf16, fp8 or int8 with --kv-dtype."
        )


def _check_count(device: Device, shape: ModelShape, count: int) -> None:
    most = device.scale_up_devices.value
    if not 1 <= count <= most:
        limit = f"{device.fabric.value} joins at most {most}" if most > 1 else "it works alone"
        raise ConfigError(
            f"{count} x {device.title} cannot hold one model together: {limit}. Take at most {most}, and "
            "replicas for more."
        )
    if device.scheduler.value is not SchedulerKind.SLOTS and shape.heads % count:
        good = ", ".join(str(n) for n in range(1, most + 1) if shape.heads % n == 0)
        raise ConfigError(
            f"{shape.name} has {shape.heads} attention heads, which {count} devices cannot share evenly. "
            f"Take one of {good}."
        )


def _too_large(device: Device, shape: ModelShape, count: int, dtype: Dtype, kv_dtype: Dtype) -> ConfigError:
    weights = shape.weight_bytes(dtype)
    need = weights + LEAST_TOKENS * shape.kv_bytes_per_token(kv_dtype)
    have = _free_bytes(device, count, 0.0)
    return ConfigError(
        f"{shape.name} in {dtype} does not fit {count} x {device.title}: its {shape.parameters / 1e9:,.1f} "
        f"billion parameters take {weights / 1e9:,.1f} GB, with KV for {LEAST_TOKENS:,} tokens "
        f"{need / 1e9:,.1f} GB, of which {have / 1e9:,.1f} GB are there. "
        f"{_advice(device, shape, dtype, kv_dtype)}"
    )


def _advice(device: Device, shape: ModelShape, dtype: Dtype, kv_dtype: Dtype) -> str:
    """The fewest devices for the format, else the first smaller format that fits, else what it would take."""
    formats = [Dtype(name) for name in device.flops]
    smaller = [one for one in formats if BYTES[one] < BYTES[dtype]]
    smaller.sort(key=BYTES.__getitem__, reverse=True)
    for each in (dtype, *smaller):
        for count in _counts(device, shape):
            if _room(device, shape, count, each, kv_dtype).capacity_tokens >= LEAST_TOKENS:
                return f"{count} would hold it in {each}."
    least = min((dtype, *smaller), key=shape.weight_bytes)
    each_bytes = USABLE * device.memory_bytes.value - device.reserve_bytes.value
    need = shape.weight_bytes(least) + LEAST_TOKENS * shape.kv_bytes_per_token(kv_dtype)
    joined, take = device.scale_up_devices.value, -int(-need // each_bytes)
    even = f", {max(_counts(device, shape))} of them sharing its heads evenly" if take <= joined else ""
    return (
        f"No more than {joined} can be joined{even}, and even in {least} it would take {take:,}. Choose a "
        "larger device (`polyphase hardware ls`) or a smaller model."
    )
