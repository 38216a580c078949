"""A prior for any model on any device: the step model's parameters worked from sizes and peaks. Pure.

Physical reading of the step model (backends/models/latency.py), with L layers, D devices, BW bytes a second,
F FLOPs a second and the factors of backends/models/efficiency.py:

    base         fixed + L x layer + dense weights / (weights BW D) + 2 L all-reduces
    saturating   expert weights / (experts BW D), reached after (spread x experts / experts a token) tokens
    a sequence   FLOPs of a token / (F D) + its all-reduces + window of KV
    context      KV bytes / (kv BW shards)
    prompt       FLOPs of a token / (matmul F D) + its all-reduces
    a pair       attention FLOPs / (attention F16 D)

An all-reduce moves 2 (D - 1) / D of the hidden state in 16 bits. A device's anchor for the model, where there
is one, takes the place of what it gives. Statically scheduled devices have no all-reduce: their layer time
holds the hops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from backends.models.device import Anchor, Device, Fabric
from backends.models.efficiency import ENGINES, FAMILIES, Efficiency, Engine
from backends.models.room import KVRoom, kv_room
from backends.models.shape import BYTES, Dtype, ModelShape
from router.errors import ConfigError
from router.model import LinkParameters, ModelBinding, PowerParameters, SchedulerKind, Seconds, StepParameters

TYPICAL_BATCH = 32
"""Sequences in a step for which a mixture of experts counts the experts read, in the power model."""
_NATIVE = Engine("the device's own software; its family holds what it adds")


@dataclass(frozen=True, slots=True)
class Prior:
    """What a model would do on some devices, worked out and not measured."""

    device: Device
    shape: ModelShape
    count: int
    dtype: Dtype
    kv_dtype: Dtype
    engine: str
    step: StepParameters
    power: PowerParameters
    link: LinkParameters
    room: KVRoom
    usd_per_hour: float
    anchor: Anchor | None = None

    @property
    def efficiency(self) -> Efficiency:
        """The factors used."""
        return FAMILIES[self.device.efficiency.value]


def prior(
    device: Device,
    shape: ModelShape,
    *,
    count: int | None = None,
    dtype: Dtype | None = None,
    kv_dtype: Dtype | None = None,
    engine: str | None = None,
) -> Prior:
    """The prior of `shape` on `count` devices that hold it together; as few as hold it when None.

    Raise ConfigError for a format the device lacks, a model that does not fit, devices that cannot be joined,
    a model that is not wired in; it says what would work.
    """
    chosen = dtype or _default_format(device, shape)
    _check_wired(device, shape, chosen)
    cache = kv_dtype or (Dtype.FP8 if chosen in {Dtype.FP8, Dtype.NVFP4} else Dtype.BF16)
    room = kv_room(device, shape, count, chosen, cache)
    anchor = _anchor(device, shape, chosen, room.count)
    name = engine or ("vllm" if device.scheduler.value is SchedulerKind.CONTINUOUS else "native")
    step = step_law(device, shape, room.count, chosen, cache, name)
    return Prior(
        device=device,
        shape=shape,
        count=room.count,
        dtype=chosen,
        kv_dtype=cache,
        engine=name,
        step=_anchored(step, anchor),
        power=_power(device, shape, room.count, chosen),
        link=LinkParameters(
            device.scale_out_latency_s.value, device.scale_out_bytes_per_s.value * _links(device, room.count)
        ),
        room=room,
        usd_per_hour=device.usd_per_hour.value * room.count,
        anchor=anchor,
    )


def _default_format(device: Device, shape: ModelShape) -> Dtype:
    """The checkpoint's; where the device lacks it, that of its published speeds, or the widest it has."""
    published = (one.dtype for one in device.anchors if one.dtype is not None)
    widest = max(map(Dtype, device.flops), key=BYTES.__getitem__)
    return shape.native if shape.native in device.flops else next(published, widest)


def _check_wired(device: Device, shape: ModelShape, dtype: Dtype) -> None:
    if device.binding.value is not ModelBinding.FIXED:
        return
    wired = [(one.model, one.dtype) for one in device.anchors]
    if (shape.name, dtype) not in wired:
        models = ", ".join(f"{model} in {format_}" for model, format_ in wired)
        raise ConfigError(
            f"{device.title} is wired for {models} and can serve nothing else, so {shape.name} in {dtype} "
            "cannot run there. Choose a loadable or compiled device (`polyphase hardware ls`)."
        )


def step_law(
    device: Device, shape: ModelShape, count: int, dtype: Dtype, cache: Dtype, engine: str
) -> StepParameters:
    """The law alone, without anchors and whether or not the model fits; raise ConfigError for an unknown
    engine."""
    return _Work(device, shape, count, dtype, cache, _engine(device, engine)).step()


def _engine(device: Device, name: str) -> Engine:
    continuous = device.scheduler.value is SchedulerKind.CONTINUOUS
    if name == "native" and not continuous:
        return _NATIVE
    if name not in ENGINES or not continuous:
        known = ", ".join(ENGINES) if continuous else "native"
        raise ConfigError(
            f"no factors are known for the engine {name!r} on {device.name}; known are {known}."
        )
    return ENGINES[name]


def _links(device: Device, count: int) -> int:
    """NICs that send KV at once: one a device where each has its own, else one of the host."""
    own = device.fabric.value in {Fabric.NVLINK, Fabric.XGMI, Fabric.NEURONLINK}
    return count if own else 1


class _Work:
    """The terms of the law, for one model on one set of devices."""

    def __init__(
        self, device: Device, shape: ModelShape, count: int, dtype: Dtype, cache: Dtype, engine: Engine
    ) -> None:
        self._device = device
        self._shape = shape
        self._count = count
        self._dtype = dtype
        self._cache = cache
        self._engine = engine
        self._e = FAMILIES[device.efficiency.value]
        self._bandwidth = device.bandwidth_bytes_per_s.value * count
        self._flops = device.flops[dtype].value * count
        self._reduces = count > 1 and device.scheduler.value is not SchedulerKind.SLOTS
        self._pcie = device.fabric.value is Fabric.PCIE

    def step(self) -> StepParameters:
        """All parameters, the engine's share included."""
        k = self._engine.kernels
        moe = self._shape.experts
        spread = self._e.expert_spread * moe.total / moe.active if moe else 1.0
        return StepParameters(
            base_s=k * self._base() + self._engine.step_s,
            saturating_s=k * self._experts(),
            saturation_tokens=spread,
            per_sequence_s=k * self._sequence() + self._engine.sequence_s,
            per_context_token_s=k * self._context(),
            prefill_base_s=k * self._prefill_base() + self._engine.step_s,
            prefill_floor_s=0.0 if moe else k * self._sweep(),
            per_prefill_token_s=self._prompt_token(),
            per_attention_pair_s=k * self._pair(),
            noise_sigma=self._device.jitter_sigma.value,
        )

    def _sweep(self) -> Seconds:
        """Of all weights but the routed experts."""
        return self._shape.dense_read_bytes(self._dtype) / (self._e.weights * self._bandwidth)

    def _experts(self) -> Seconds:
        return self._shape.expert_bytes(self._dtype) / (self._e.experts * self._bandwidth)

    def _expert_layers(self) -> int:
        return self._shape.experts.layers if self._shape.experts else 0

    def _quantising(self) -> Seconds:
        return self._e.quantised_layer_s if self._dtype.is_quantised_activation else 0.0

    def _all_reduces(self) -> Seconds:
        """Starts of the two all-reduces of every layer."""
        if not self._reduces:
            return 0.0
        start = self._e.all_reduce_s + self._device.scale_up_latency_s.value
        start += self._engine.pcie_all_reduce_s if self._pcie else 0.0
        return 2 * self._shape.layers * start

    def _reduced_token(self) -> Seconds:
        """What a token adds to the all-reduces: its hidden state in 16 bits, twice a layer."""
        if not self._reduces:
            return 0.0
        moved = 2 * self._shape.layers * 2 * (self._count - 1) / self._count * self._shape.hidden * 2
        share = self._e.collective * (self._engine.pcie_collective if self._pcie else 1.0)
        return moved / (share * self._device.scale_up_bytes_per_s.value)

    def _base(self) -> Seconds:
        layers = self._shape.layers * (self._e.layer_s + self._quantising())
        routing = self._expert_layers() * self._e.expert_layer_s
        return self._e.step_s + layers + routing + self._sweep() + self._all_reduces()

    def _sequence(self) -> Seconds:
        factor = self._e.quantised_token_compute if self._dtype.is_quantised_activation else 1.0
        compute = self._e.token_compute * factor * self._shape.flop_per_token / self._flops
        narrow = self._expert_layers() * self._e.expert_sequence_s / self._count
        window = self._shape.window_bytes(self._cache) / self._kv_bandwidth()
        return self._e.sequence_s + compute + narrow + window + self._reduced_token()

    def _kv_bandwidth(self) -> float:
        shards = 1 if self._shape.latent else min(self._count, self._shape.kv_heads)
        factor = self._e.quantised_kv if self._cache is not Dtype.BF16 else 1.0
        return self._e.kv * factor * self._device.bandwidth_bytes_per_s.value * shards

    def _context(self) -> Seconds:
        return self._shape.kv_bytes_read_per_token(self._cache) / self._kv_bandwidth()

    def _prefill_base(self) -> Seconds:
        each = (self._e.prefill_layer_s or self._e.layer_s) + self._quantising()
        fixed = self._e.step_s + self._shape.layers * each + self._all_reduces()
        if not self._shape.experts:
            return fixed
        # A prompt of any length hits nearly all experts, so their sweep is a fixed part and not a floor.
        return fixed + self._sweep() + self._experts() + self._expert_layers() * self._e.expert_layer_s

    def _prompt_token(self) -> Seconds:
        body = 2.0 * (self._shape.active_parameters - self._shape.embedding_parameters)
        routing = self._expert_layers() * self._e.expert_token_s
        return self._engine.prefill * (body / self._matmul_flops() + routing) + self._reduced_token()

    def _matmul_flops(self) -> float:
        if self._shape.experts:
            return self._e.expert_matmul * self._flops
        factor = self._e.quantised_matmul if self._dtype.is_quantised_activation else 1.0
        return self._e.matmul * factor * self._flops

    def _pair(self) -> Seconds:
        peak = self._device.flops.get(Dtype.BF16, self._device.flops[self._dtype]).value
        return self._shape.flop_per_pair / (self._e.attention * peak * self._count)


def _anchor(device: Device, shape: ModelShape, dtype: Dtype, count: int) -> Anchor | None:
    for anchor in device.anchors:
        same = anchor.model == shape.name and anchor.dtype in {None, dtype}
        if same and anchor.count in {None, count}:
            return anchor
    return None


def _anchored(step: StepParameters, anchor: Anchor | None) -> StepParameters:
    return step if anchor is None else replace(step, **anchor.times)


def _power(device: Device, shape: ModelShape, count: int, dtype: Dtype) -> PowerParameters:
    hit = 1.0
    if moe := shape.experts:
        hit -= (1.0 - moe.active / moe.total) ** TYPICAL_BATCH
    return PowerParameters(
        idle_w=device.idle_w.value * count,
        joule_per_byte=device.joule_per_byte.value,
        joule_per_flop=device.joule_per_flop.value,
        cap_w=device.cap_w.value * count,
        weight_bytes=shape.dense_read_bytes(dtype) + hit * shape.expert_bytes(dtype),
        flop_per_token=shape.flop_per_token,
    )
