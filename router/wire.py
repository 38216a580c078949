"""Nouns on the wire: what both ends of the southbound protocol translate in the same way.

The router's shell and the worker's shell import it; it knows the nouns and the protos, no gRPC and no
asyncio. A number that is out of range came from the peer, so reading raises BackendError
(BACKEND_BROKE_CONTRACT) and never lets a NaN or a negative capacity into the core.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Mapping
from dataclasses import asdict, fields
from enum import StrEnum
from typing import Any, Final, TypeVar

from polyphase.v1 import common_pb2, inference_pb2, worker_pb2

from router.errors import BackendError, Reason
from router.model import (
    AfdLaw,
    AfdParameters,
    BackendKind,
    BackendSnapshot,
    BackendSpec,
    ConnectorFlags,
    FinishReason,
    HandoffMint,
    KVHandle,
    LinkParameters,
    ModelBinding,
    Phase,
    PhaseCost,
    PowerParameters,
    SchedulerKind,
    Seconds,
    StepParameters,
)

MAX_LEASE_S: Final = 3600.0
"""Upper bound of a KV lease; a longer one is cut, so that a wrong clock cannot pin KV for ever."""

MAX_FAILURE_MESSAGE: Final = 500
"""Characters of a worker's failure message that are kept."""

MAX_NAME: Final = 200
"""Characters of a model's name in a load report that are kept."""

BYTES_PER_TOKEN: Final = 4
"""Assumption: the mean of English text under common tokenisers; used where a prompt came as text."""

_KINDS: Final[Mapping[BackendKind, common_pb2.BackendKind]] = {
    BackendKind.GPU: common_pb2.BACKEND_KIND_GPU,
    BackendKind.LPU: common_pb2.BACKEND_KIND_LPU,
    BackendKind.TPU: common_pb2.BACKEND_KIND_TPU,
    BackendKind.NPU: common_pb2.BACKEND_KIND_NPU,
    BackendKind.ASIC: common_pb2.BACKEND_KIND_ASIC,
    BackendKind.CPU: common_pb2.BACKEND_KIND_CPU,
}
_BINDINGS: Final[Mapping[ModelBinding, common_pb2.ModelBinding]] = {
    ModelBinding.LOADABLE: common_pb2.MODEL_BINDING_LOADABLE,
    ModelBinding.COMPILED: common_pb2.MODEL_BINDING_COMPILED,
    ModelBinding.FIXED: common_pb2.MODEL_BINDING_FIXED,
}
_PHASES: Final[Mapping[Phase, common_pb2.Phase]] = {
    Phase.PREFILL: common_pb2.PHASE_PREFILL,
    Phase.DECODE: common_pb2.PHASE_DECODE,
}
_SCHEDULERS: Final[Mapping[SchedulerKind, common_pb2.SchedulerKind]] = {
    SchedulerKind.CONTINUOUS: common_pb2.SCHEDULER_KIND_CONTINUOUS,
    SchedulerKind.BUCKETED: common_pb2.SCHEDULER_KIND_BUCKETED,
    SchedulerKind.SLOTS: common_pb2.SCHEDULER_KIND_SLOTS,
    SchedulerKind.SINGLE: common_pb2.SCHEDULER_KIND_SINGLE,
}
_AFD_LAWS: Final[Mapping[AfdLaw, common_pb2.AfdLaw]] = {
    AfdLaw.SERIAL: common_pb2.AFD_LAW_SERIAL,
    AfdLaw.CONSERVATIVE: common_pb2.AFD_LAW_CONSERVATIVE,
    AfdLaw.OPTIMISTIC: common_pb2.AFD_LAW_OPTIMISTIC,
}
_MINTS: Final[Mapping[HandoffMint, common_pb2.HandoffMint]] = {
    HandoffMint.ENGINE: common_pb2.HANDOFF_MINT_ENGINE,
    HandoffMint.ROUTER: common_pb2.HANDOFF_MINT_ROUTER,
}
_FINISHES: Final[Mapping[FinishReason, common_pb2.FinishReason]] = {
    FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
}
_FAILURES: Final[Mapping[int, Reason]] = {
    worker_pb2.PhaseFailed.REASON_INVALID: Reason.INVALID_REQUEST,
    worker_pb2.PhaseFailed.REASON_CAPACITY: Reason.QUEUE_FULL,
    worker_pb2.PhaseFailed.REASON_KV_STALE: Reason.KV_STALE,
    worker_pb2.PhaseFailed.REASON_KV_LAYOUT: Reason.KV_TRANSFER_FAILED,
    worker_pb2.PhaseFailed.REASON_KV_TRANSFER: Reason.KV_TRANSFER_FAILED,
    worker_pb2.PhaseFailed.REASON_DRAINING: Reason.DRAINING,
}
_UNSET: Final = BackendSpec("", BackendKind.CPU, "", (), frozenset(), StepParameters(0.0))
"""Defaults for numbers that a worker left at 0, which proto3 does not tell from unset."""

_Enum = TypeVar("_Enum", bound=StrEnum)


def prompt_bytes(request: inference_pb2.GenerateRequest) -> bytes:
    """The prompt as the mock's tokens are made from it: little-endian uint32 ids, or b"t" and UTF-8."""
    if request.WhichOneof("prompt") == "text":
        return b"t" + request.text.encode()
    ids = array("I", request.tokens.ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def prompt_length(request: inference_pb2.GenerateRequest) -> int:
    """Tokens of the prompt: counted when it came as ids, estimated when it came as text."""
    if request.WhichOneof("prompt") == "text":
        return -(-len(request.text.encode()) // BYTES_PER_TOKEN)
    return len(request.tokens.ids)


# --- specs -----------------------------------------------------------------------------------------


def spec_to_proto(spec: BackendSpec) -> common_pb2.BackendSpec:
    """A spec for Welcome or Backend."""
    return common_pb2.BackendSpec(
        id=spec.id,
        kind=_KINDS[spec.kind],
        device=spec.device,
        count=spec.count,
        models=spec.models,
        binding=_BINDINGS[spec.binding],
        phases=sorted(_PHASES[phase] for phase in spec.phases),
        step=common_pb2.StepParameters(**asdict(spec.step)),
        profile=spec.profile,
        kv_bytes_per_token=spec.kv_bytes_per_token,
        kv_capacity_tokens=spec.kv_capacity_tokens,
        block_tokens=spec.block_tokens,
        kv_layout=spec.kv_layout,
        kv_accepts=spec.kv_accepts,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        max_context_tokens=spec.max_context_tokens,
        link=common_pb2.LinkParameters(**asdict(spec.link)),
        connector=_connector_to_proto(spec.connector),
        usd_per_hour=spec.usd_per_hour,
        power=common_pb2.PowerParameters(**asdict(spec.power)),
        zone=spec.zone,
        scheduler=_SCHEDULERS[spec.scheduler],
        prompt_buckets=spec.prompt_buckets,
        batch_buckets=spec.batch_buckets,
        load_s=spec.load_s,
        compile_s=spec.compile_s,
        kv_conversion=spec.kv_conversion,
        afd=_afd_to_proto(spec.afd),
    )


def spec_from_proto(proto: common_pb2.BackendSpec) -> BackendSpec:
    """A spec as a worker announced it; numbers left at 0 where 0 makes no sense get the model's defaults.

    Raises BackendError when the id, the kind, the models or the phases are missing or a number is negative
    or not finite.
    """
    if not proto.id or not proto.models:
        raise _broken("the spec names no id or no model")
    return BackendSpec(
        id=proto.id,
        kind=_known(_KINDS, proto.kind, "kind"),
        device=proto.device,
        models=tuple(proto.models),
        phases=_phases_from_proto(proto),
        step=_step_from_proto(proto.step),
        count=proto.count or 1,
        binding=_known(_BINDINGS, proto.binding, "binding", ModelBinding.LOADABLE),
        profile=proto.profile,
        kv_bytes_per_token=_amount(proto.kv_bytes_per_token, "kv_bytes_per_token"),
        kv_capacity_tokens=proto.kv_capacity_tokens or _UNSET.kv_capacity_tokens,
        block_tokens=proto.block_tokens or _UNSET.block_tokens,
        kv_layout=proto.kv_layout,
        kv_accepts=tuple(proto.kv_accepts),
        max_num_seqs=proto.max_num_seqs or _UNSET.max_num_seqs,
        max_num_batched_tokens=proto.max_num_batched_tokens or _UNSET.max_num_batched_tokens,
        max_context_tokens=proto.max_context_tokens or _UNSET.max_context_tokens,
        link=_link_from_proto(proto.link),
        connector=_connector_from_proto(proto.connector),
        usd_per_hour=_amount(proto.usd_per_hour, "usd_per_hour"),
        power=_power_from_proto(proto.power),
        zone=proto.zone,
        scheduler=_known(_SCHEDULERS, proto.scheduler, "scheduler", SchedulerKind.CONTINUOUS),
        prompt_buckets=tuple(proto.prompt_buckets),
        batch_buckets=tuple(proto.batch_buckets),
        load_s=_amount(proto.load_s, "load_s"),
        compile_s=_amount(proto.compile_s, "compile_s"),
        kv_conversion=_amount(proto.kv_conversion, "kv_conversion") or 1.0,
        afd=_afd_from_proto(proto.afd) if proto.HasField("afd") else None,
    )


def _phases_from_proto(proto: common_pb2.BackendSpec) -> frozenset[Phase]:
    if not proto.phases:
        raise _broken("the spec offers no phase")
    return frozenset(_known(_PHASES, phase, "phase") for phase in proto.phases)


def _step_from_proto(proto: common_pb2.StepParameters) -> StepParameters:
    values = _amounts(proto, StepParameters)
    # A saturation of 0 tokens would divide by zero in the step model.
    return StepParameters(**{**values, "saturation_tokens": values["saturation_tokens"] or 1.0})


def _link_from_proto(proto: common_pb2.LinkParameters) -> LinkParameters:
    bandwidth = proto.bandwidth_bytes_per_s or math.inf
    ingress = proto.ingress_bytes_per_s or math.inf
    return LinkParameters(
        latency_s=_amount(proto.latency_s, "latency_s"),
        bandwidth_bytes_per_s=_amount(bandwidth, "bandwidth_bytes_per_s", math.inf),
        ingress_bytes_per_s=_amount(ingress, "ingress_bytes_per_s", math.inf),
        overlap_layers=proto.overlap_layers,
    )


def _afd_to_proto(afd: AfdParameters | None) -> common_pb2.AfdParameters | None:
    if afd is None:
        return None
    return common_pb2.AfdParameters(**{**asdict(afd), "law": _AFD_LAWS[afd.law]})


def _afd_from_proto(proto: common_pb2.AfdParameters) -> AfdParameters:
    numbers = {field.name for field in fields(AfdParameters)} - {"law"}
    values: dict[str, Any] = {name: _amount(getattr(proto, name), name) for name in numbers}
    return AfdParameters(**values, law=_known(_AFD_LAWS, proto.law, "AFD law", AfdLaw.SERIAL))


def _power_from_proto(proto: common_pb2.PowerParameters) -> PowerParameters:
    cap_w = _amount(proto.cap_w or math.inf, "cap_w", math.inf)
    return PowerParameters(**{**_amounts(proto, PowerParameters, but="cap_w"), "cap_w": cap_w})


def _connector_to_proto(flags: ConnectorFlags) -> common_pb2.ConnectorFlags:
    return common_pb2.ConnectorFlags(
        concurrent_handoff=flags.concurrent_handoff,
        requires_peer_binding=flags.requires_peer_binding,
        handoff_minted_by=_MINTS[flags.handoff_minted_by],
        first_token_from_prefill=flags.first_token_from_prefill,
    )


def _connector_from_proto(proto: common_pb2.ConnectorFlags) -> ConnectorFlags:
    return ConnectorFlags(
        concurrent_handoff=proto.concurrent_handoff,
        requires_peer_binding=proto.requires_peer_binding,
        handoff_minted_by=_known(_MINTS, proto.handoff_minted_by, "handoff_minted_by", HandoffMint.ENGINE),
        first_token_from_prefill=proto.first_token_from_prefill,
    )


# --- KV handles, load, phases ----------------------------------------------------------------------


def kv_handle_to_proto(handle: KVHandle, now: Seconds) -> common_pb2.KVHandle:
    """A handle to send at `now`. The lease goes as time left, because clocks differ."""
    return common_pb2.KVHandle(
        producer=handle.producer,
        incarnation=handle.incarnation,
        request_id=handle.request_id,
        epoch=handle.epoch,
        layout=handle.layout,
        tokens=handle.tokens,
        prefix_hash=handle.prefix_hash,
        lease_s=min(max(handle.expires_at - now, 0.0), MAX_LEASE_S),
        source=handle.source,
        connector=handle.connector,
    )


def kv_handle_from_proto(proto: common_pb2.KVHandle, now: Seconds) -> KVHandle:
    """A handle as received at `now`. Raises BackendError when its lease is negative or not a number."""
    lease_s = _amount(proto.lease_s, "lease_s", math.inf)
    return KVHandle(
        producer=proto.producer,
        incarnation=proto.incarnation,
        request_id=proto.request_id,
        epoch=proto.epoch,
        layout=proto.layout,
        tokens=proto.tokens,
        prefix_hash=proto.prefix_hash,
        expires_at=now + min(lease_s, MAX_LEASE_S),
        source=proto.source,
        connector=proto.connector,
    )


def load_to_proto(snapshot: BackendSnapshot) -> common_pb2.LoadReport:
    """A load report; when it was observed stays behind, because clocks differ."""
    return common_pb2.LoadReport(
        running=snapshot.running,
        waiting=snapshot.waiting,
        waiting_prefill_tokens=snapshot.waiting_prefill_tokens,
        kv_used_tokens=snapshot.kv_used_tokens,
        busy_prefill_s=snapshot.busy_prefill_s,
        busy_decode_s=snapshot.busy_decode_s,
        energy_j=snapshot.energy_j,
        preemptions=snapshot.preemptions,
        steps=snapshot.steps,
        decode_sequences=snapshot.decode_sequences,
        context_tokens=snapshot.context_tokens,
        prefill_tokens=snapshot.prefill_tokens,
        attention_pairs=snapshot.attention_pairs,
        loading=snapshot.loading,
        busy_loading_s=snapshot.busy_loading_s,
        busy_attention_s=snapshot.busy_attention_s,
        busy_ffn_s=snapshot.busy_ffn_s,
        busy_transfer_s=snapshot.busy_transfer_s,
    )


def load_from_proto(proto: common_pb2.LoadReport, observed_at: Seconds) -> BackendSnapshot:
    """A load report as received. Raises BackendError when a number is negative or not finite."""
    return BackendSnapshot(
        observed_at=observed_at,
        running=proto.running,
        waiting=proto.waiting,
        waiting_prefill_tokens=proto.waiting_prefill_tokens,
        kv_used_tokens=proto.kv_used_tokens,
        busy_prefill_s=_amount(proto.busy_prefill_s, "busy_prefill_s"),
        busy_decode_s=_amount(proto.busy_decode_s, "busy_decode_s"),
        energy_j=_amount(proto.energy_j, "energy_j"),
        preemptions=proto.preemptions,
        steps=proto.steps,
        decode_sequences=proto.decode_sequences,
        context_tokens=_amount(proto.context_tokens, "context_tokens"),
        prefill_tokens=proto.prefill_tokens,
        attention_pairs=_amount(proto.attention_pairs, "attention_pairs"),
        loading=proto.loading[:MAX_NAME],
        busy_loading_s=_amount(proto.busy_loading_s, "busy_loading_s"),
        busy_attention_s=_amount(proto.busy_attention_s, "busy_attention_s"),
        busy_ffn_s=_amount(proto.busy_ffn_s, "busy_ffn_s"),
        busy_transfer_s=_amount(proto.busy_transfer_s, "busy_transfer_s"),
    )


def cost_to_proto(cost: PhaseCost) -> worker_pb2.PhaseCost:
    """What a phase took."""
    return worker_pb2.PhaseCost(queued_s=cost.queued_s, device_s=cost.device_s, energy_j=cost.energy_j)


def cost_from_proto(proto: worker_pb2.PhaseCost) -> PhaseCost:
    """What a phase took. Raises BackendError when a number is negative or not finite."""
    return PhaseCost(
        queued_s=_amount(proto.queued_s, "queued_s"),
        device_s=_amount(proto.device_s, "device_s"),
        energy_j=_amount(proto.energy_j, "energy_j"),
    )


def finish_to_proto(reason: FinishReason) -> common_pb2.FinishReason:
    """Why an answer ended well."""
    return _FINISHES[reason]


def finish_from_proto(value: common_pb2.FinishReason) -> FinishReason:
    """Why an answer ended well. Raises BackendError for a number that is none of the reasons."""
    return _known(_FINISHES, value, "finish reason")


def failure_from_proto(proto: worker_pb2.PhaseFailed) -> tuple[Reason, str]:
    """Why a worker gave up a phase, and its own words, cut to MAX_FAILURE_MESSAGE characters."""
    return _FAILURES.get(proto.reason, Reason.BACKEND_FAILED), proto.message[:MAX_FAILURE_MESSAGE]


# --- checks ----------------------------------------------------------------------------------------


def _known(table: Mapping[_Enum, int], value: int, field: str, when_unset: _Enum | None = None) -> _Enum:
    if value == 0 and when_unset is not None:
        return when_unset
    for member, number in table.items():
        if number == value:
            return member
    raise _broken(f"{field} has the unknown value {value}")


def _amounts(proto: Any, noun: type[Any], but: str = "") -> dict[str, float]:
    names = [field.name for field in fields(noun) if field.name != but]
    return {name: _amount(getattr(proto, name), name) for name in names}


def _amount(value: float, field: str, limit: float = sys.float_info.max) -> float:
    """A number in [0, limit]; NaN fails both comparisons."""
    if not 0.0 <= value <= limit:
        raise _broken(f"{field} is {value}, which is negative or not finite")
    return value


def _broken(what: str) -> BackendError:
    return BackendError(
        Reason.BACKEND_BROKE_CONTRACT,
        f"A worker's message cannot be used: {what}. It was refused. Correct the worker.",
    )
