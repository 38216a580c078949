"""A prior as the text of a profile, with the origin of every factor and assumption in it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Final

from backends.models.efficiency import ENGINES, Efficiency
from backends.models.profile import Trust
from backends.models.roofline import TYPICAL_BATCH, Prior
from backends.models.room import USABLE
from backends.models.shape import Dtype
from router.model import BackendKind, SchedulerKind

GRIDS: Final = "batch 1-512, context 256-32k, prompt 64-32k tokens"
"""What the grids cover to which the GPU families' factors were fitted."""
_WHOLE: Final = 1e9
"""Below it whole numbers are written without a point or an exponent."""
_NAMED: Final = (
    "jitter_sigma",
    "usd_per_hour",
    "idle_w",
    "cap_w",
    "joule_per_byte",
    "joule_per_flop",
    "scale_out_bytes_per_s",
    "scale_out_latency_s",
    "max_sequences",
)
"""Figures a profile repeats, and whose assumptions it therefore repeats."""


def profile_text(prior: Prior, date: str) -> str:
    """TOML that backends/models/profile.py accepts. `date` is the day on which the prior was worked out."""
    shape, device = prior.shape, prior.device
    title = f"{prior.count} x {device.title}, {shape.name} in {prior.dtype}: worked out, not measured."
    parts = [
        f"# {title}\n",
        _table("provenance", _provenance(prior, date)),
        _table("backend", _backend(prior)),
    ]
    parts += [_table("step", asdict(prior.step)), _table("link", asdict(prior.link))]
    if device.kind in {BackendKind.GPU, BackendKind.TPU}:
        parts.append(_table("connector", {"first_token_from_prefill": True}))
    parts.append(_table("power", asdict(prior.power)))
    return "\n".join(parts)


def _provenance(prior: Prior, date: str) -> Mapping[str, object]:
    anchor = prior.anchor
    return {
        "source": _source(prior),
        "date": date,
        "trust": str(anchor.trust if anchor else Trust.GUESSED),
        "fit_error": _fit_error(prior),
        "valid_range": _valid_range(prior),
        "assumptions": list(_assumptions(prior)),
        "notes": list(_notes(prior)),
    }


def _source(prior: Prior) -> str:
    family = prior.device.efficiency.value
    sizes = f"the sizes of {prior.shape.name} and the peaks of {prior.device.title}"
    law = f"Roofline prior from {sizes}, family {family}"
    if (anchor := prior.anchor) is None:
        return law
    given = ", ".join(sorted(anchor.times))
    return f"{anchor.source.title}, {anchor.source.date}, for {given}; the rest: {law}"


def _fit_error(prior: Prior) -> str:
    if prior.anchor is not None and prior.anchor.why:
        return f"of what was published: {prior.anchor.why}"
    e = prior.efficiency
    if e.decode_error is None or e.prefill_error is None:
        return "unknown: nothing measured stands against it"
    return (
        "unknown for this profile; over the grids of its family the prior's kernels are off by "
        f"{e.decode_error:.1%} in decode and {e.prefill_error:.1%} in prefill (median of the mean absolute "
        "errors)"
    )


def _valid_range(prior: Prior) -> str:
    if prior.anchor is not None:
        return prior.anchor.valid_range or "batch 1; nobody publishes a batch curve"
    if prior.efficiency.decode_error is not None:
        return GRIDS
    return "none: no measurement stands behind this profile"


def _assumptions(prior: Prior) -> Iterator[str]:
    device, engine = prior.device, ENGINES.get(prior.engine)
    e = prior.efficiency
    yield f"factors of the family {device.efficiency.value} ({e.trust}): {e.origin}"
    yield f"engine {prior.engine}: {engine.origin if engine else 'of the device itself; the family holds it'}"
    if prior.kv_dtype is not Dtype.BF16:
        yield f"KV cache in {prior.kv_dtype}; engines keep 16 bits unless told otherwise"
    yield "KV moves to and from like layouts only; name others in kv_accepts"
    if prior.shape.sliding_layers:
        yield "KV room counts sliding layers in full, though they keep a window only"
    figures = dict(device.figures())
    reasons: dict[str, list[str]] = {}
    for name in _NAMED:
        if figures[name].is_assumption:
            reasons.setdefault(figures[name].why, []).append(name)
    for why, names in reasons.items():
        yield f"{', '.join(names)} of {device.name}: {why}"


def _notes(prior: Prior) -> Iterator[str]:
    shape, room = prior.shape, prior.room
    yield (
        f"{shape.parameters / 1e9:,.2f} billion parameters, {shape.active_parameters / 1e9:,.2f} active; "
        f"weights {room.weight_bytes / 1e9:,.2f} GB"
    )
    yield f"FLOPs a token: {shape.flop_per_token:.4g}, at 8k tokens of context {shape.flop_at(8192):.4g}"
    yield (
        f"KV room: ({USABLE:g} x memory - {prior.device.reserve_bytes.value / 1e9:g} GB) x {prior.count} - "
        f"weights, over {room.kv_bytes_per_token:,.0f} bytes a token"
    )
    yield f"factors: {_factors(prior.efficiency)}"
    if shape.experts:
        yield f"power counts the experts that {TYPICAL_BATCH} sequences hit"
    yield from prior.device.notes


def _factors(efficiency: Efficiency) -> str:
    told = {"origin", "trust", "decode_error", "prefill_error"}
    values = ((field.name, getattr(efficiency, field.name)) for field in fields(efficiency))
    return ", ".join(f"{name} {value:g}" for name, value in values if name not in told)


def _backend(prior: Prior) -> Mapping[str, object]:
    device, shape, room = prior.device, prior.shape, prior.room
    batch = min(device.max_sequences.value, max(1, room.capacity_tokens // 16))
    return {
        "kind": str(device.kind),
        "device": device.title,
        "count": prior.count,
        "models": [shape.name],
        "phases": sorted(str(phase) for phase in device.phases.value),
        "binding": str(device.binding.value),
        "kv_bytes_per_token": room.kv_bytes_per_token,
        "kv_capacity_tokens": room.capacity_tokens,
        "kv_layout": f"{shape.name}/{_contents(prior)}/{_layout(prior)}",
        "max_num_seqs": batch,
        "max_num_batched_tokens": device.max_batched_tokens.value,
        "max_context_tokens": min(shape.max_context, room.capacity_tokens),
        "usd_per_hour": prior.usd_per_hour,
        "scheduler": str(device.scheduler.value),
        "load_s": room.weight_bytes / device.load_bytes_per_s.value,
        "compile_s": device.compile_s.value,
    }


def _contents(prior: Prior) -> str:
    """Other weights make another cache, and so does another format of it."""
    weights = str(prior.dtype)
    return weights if prior.kv_dtype is Dtype.BF16 else f"{weights}-kv-{prior.kv_dtype}"


def _layout(prior: Prior) -> str:
    """As the shipped profiles name layouts: paged and split by devices, or the device's own."""
    paged = prior.device.scheduler.value in {SchedulerKind.CONTINUOUS, SchedulerKind.BUCKETED}
    return f"{prior.device.kind}-block16/tp{prior.count}" if paged else prior.device.name


def _table(name: str, values: Mapping[str, object]) -> str:
    lines = [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """TOML of a number, a flag, a text or a list of texts; texts are escaped as JSON's are."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            short = float(f"{value:.6g}")
            return str(int(short)) if short.is_integer() and short < _WHOLE else repr(short)
        case list():
            return "[\n" + "".join(f"  {_value(one)},\n" for one in value) + "]" if value else "[]"
        case _:
            return json.dumps(str(value), ensure_ascii=False)
