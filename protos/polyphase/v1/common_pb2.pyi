from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_PREFILL: _ClassVar[Phase]
    PHASE_DECODE: _ClassVar[Phase]

class BackendKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKEND_KIND_UNSPECIFIED: _ClassVar[BackendKind]
    BACKEND_KIND_GPU: _ClassVar[BackendKind]
    BACKEND_KIND_LPU: _ClassVar[BackendKind]
    BACKEND_KIND_TPU: _ClassVar[BackendKind]
    BACKEND_KIND_NPU: _ClassVar[BackendKind]
    BACKEND_KIND_ASIC: _ClassVar[BackendKind]
    BACKEND_KIND_CPU: _ClassVar[BackendKind]

class ModelBinding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_BINDING_UNSPECIFIED: _ClassVar[ModelBinding]
    MODEL_BINDING_LOADABLE: _ClassVar[ModelBinding]
    MODEL_BINDING_COMPILED: _ClassVar[ModelBinding]
    MODEL_BINDING_FIXED: _ClassVar[ModelBinding]

class SchedulerKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCHEDULER_KIND_UNSPECIFIED: _ClassVar[SchedulerKind]
    SCHEDULER_KIND_CONTINUOUS: _ClassVar[SchedulerKind]
    SCHEDULER_KIND_BUCKETED: _ClassVar[SchedulerKind]
    SCHEDULER_KIND_SLOTS: _ClassVar[SchedulerKind]
    SCHEDULER_KIND_SINGLE: _ClassVar[SchedulerKind]

class AfdLaw(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AFD_LAW_UNSPECIFIED: _ClassVar[AfdLaw]
    AFD_LAW_SERIAL: _ClassVar[AfdLaw]
    AFD_LAW_CONSERVATIVE: _ClassVar[AfdLaw]
    AFD_LAW_OPTIMISTIC: _ClassVar[AfdLaw]

class HandoffMint(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HANDOFF_MINT_UNSPECIFIED: _ClassVar[HandoffMint]
    HANDOFF_MINT_ENGINE: _ClassVar[HandoffMint]
    HANDOFF_MINT_ROUTER: _ClassVar[HandoffMint]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_BULK: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_SYSTEM: _ClassVar[Priority]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
PHASE_UNSPECIFIED: Phase
PHASE_PREFILL: Phase
PHASE_DECODE: Phase
BACKEND_KIND_UNSPECIFIED: BackendKind
BACKEND_KIND_GPU: BackendKind
BACKEND_KIND_LPU: BackendKind
BACKEND_KIND_TPU: BackendKind
BACKEND_KIND_NPU: BackendKind
BACKEND_KIND_ASIC: BackendKind
BACKEND_KIND_CPU: BackendKind
MODEL_BINDING_UNSPECIFIED: ModelBinding
MODEL_BINDING_LOADABLE: ModelBinding
MODEL_BINDING_COMPILED: ModelBinding
MODEL_BINDING_FIXED: ModelBinding
SCHEDULER_KIND_UNSPECIFIED: SchedulerKind
SCHEDULER_KIND_CONTINUOUS: SchedulerKind
SCHEDULER_KIND_BUCKETED: SchedulerKind
SCHEDULER_KIND_SLOTS: SchedulerKind
SCHEDULER_KIND_SINGLE: SchedulerKind
AFD_LAW_UNSPECIFIED: AfdLaw
AFD_LAW_SERIAL: AfdLaw
AFD_LAW_CONSERVATIVE: AfdLaw
AFD_LAW_OPTIMISTIC: AfdLaw
HANDOFF_MINT_UNSPECIFIED: HandoffMint
HANDOFF_MINT_ENGINE: HandoffMint
HANDOFF_MINT_ROUTER: HandoffMint
PRIORITY_UNSPECIFIED: Priority
PRIORITY_BULK: Priority
PRIORITY_NORMAL: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_SYSTEM: Priority
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "seed", "min_new_tokens", "stop", "ignore_eos")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MIN_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    seed: int
    min_new_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    ignore_eos: bool
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., min_new_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., ignore_eos: bool = ...) -> None: ...

class ServiceLevel(_message.Message):
    __slots__ = ("ttft_s", "tpot_s", "jitter_ratio", "deadline_s")
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    JITTER_RATIO_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    ttft_s: float
    tpot_s: float
    jitter_ratio: float
    deadline_s: float
    def __init__(self, ttft_s: _Optional[float] = ..., tpot_s: _Optional[float] = ..., jitter_ratio: _Optional[float] = ..., deadline_s: _Optional[float] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "cached_prompt_tokens", "output_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    cached_prompt_tokens: int
    output_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ...) -> None: ...

class PhaseTimes(_message.Message):
    __slots__ = ("queue_s", "prefill_s", "handoff_s", "decode_s", "ttft_s", "tpot_s", "e2e_s")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    HANDOFF_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    E2E_S_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    prefill_s: float
    handoff_s: float
    decode_s: float
    ttft_s: float
    tpot_s: float
    e2e_s: float
    def __init__(self, queue_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., handoff_s: _Optional[float] = ..., decode_s: _Optional[float] = ..., ttft_s: _Optional[float] = ..., tpot_s: _Optional[float] = ..., e2e_s: _Optional[float] = ...) -> None: ...

class PhaseUse(_message.Message):
    __slots__ = ("phase", "backend", "kind", "device_s", "energy_j", "cost_usd")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_S_FIELD_NUMBER: _ClassVar[int]
    ENERGY_J_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    phase: Phase
    backend: str
    kind: BackendKind
    device_s: float
    energy_j: float
    cost_usd: float
    def __init__(self, phase: _Optional[_Union[Phase, str]] = ..., backend: _Optional[str] = ..., kind: _Optional[_Union[BackendKind, str]] = ..., device_s: _Optional[float] = ..., energy_j: _Optional[float] = ..., cost_usd: _Optional[float] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("policy", "candidates", "exclusions", "prefill", "decode", "runner_up", "predicted_ttft_s", "predicted_e2e_s", "reason")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIONS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    RUNNER_UP_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_S_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_E2E_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    policy: str
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    exclusions: _containers.RepeatedCompositeFieldContainer[Exclusion]
    prefill: str
    decode: str
    runner_up: str
    predicted_ttft_s: float
    predicted_e2e_s: float
    reason: str
    def __init__(self, policy: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., exclusions: _Optional[_Iterable[_Union[Exclusion, _Mapping]]] = ..., prefill: _Optional[str] = ..., decode: _Optional[str] = ..., runner_up: _Optional[str] = ..., predicted_ttft_s: _Optional[float] = ..., predicted_e2e_s: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("prefill", "decode", "score", "parts")
    class PartsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    prefill: str
    decode: str
    score: float
    parts: _containers.ScalarMap[str, float]
    def __init__(self, prefill: _Optional[str] = ..., decode: _Optional[str] = ..., score: _Optional[float] = ..., parts: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Exclusion(_message.Message):
    __slots__ = ("reason", "count", "backends")
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    BACKENDS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    count: int
    backends: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, reason: _Optional[str] = ..., count: _Optional[int] = ..., backends: _Optional[_Iterable[str]] = ...) -> None: ...

class KVHandle(_message.Message):
    __slots__ = ("producer", "incarnation", "request_id", "epoch", "layout", "tokens", "prefix_hash", "lease_s", "source", "connector")
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HASH_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CONNECTOR_FIELD_NUMBER: _ClassVar[int]
    producer: str
    incarnation: str
    request_id: str
    epoch: int
    layout: str
    tokens: int
    prefix_hash: int
    lease_s: float
    source: str
    connector: bytes
    def __init__(self, producer: _Optional[str] = ..., incarnation: _Optional[str] = ..., request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., layout: _Optional[str] = ..., tokens: _Optional[int] = ..., prefix_hash: _Optional[int] = ..., lease_s: _Optional[float] = ..., source: _Optional[str] = ..., connector: _Optional[bytes] = ...) -> None: ...

class StepParameters(_message.Message):
    __slots__ = ("base_s", "per_sequence_s", "per_context_token_s", "saturating_s", "saturation_tokens", "prefill_base_s", "prefill_floor_s", "per_prefill_token_s", "per_attention_pair_s", "noise_sigma", "stall_probability")
    BASE_S_FIELD_NUMBER: _ClassVar[int]
    PER_SEQUENCE_S_FIELD_NUMBER: _ClassVar[int]
    PER_CONTEXT_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    SATURATING_S_FIELD_NUMBER: _ClassVar[int]
    SATURATION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_BASE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FLOOR_S_FIELD_NUMBER: _ClassVar[int]
    PER_PREFILL_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    PER_ATTENTION_PAIR_S_FIELD_NUMBER: _ClassVar[int]
    NOISE_SIGMA_FIELD_NUMBER: _ClassVar[int]
    STALL_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    base_s: float
    per_sequence_s: float
    per_context_token_s: float
    saturating_s: float
    saturation_tokens: float
    prefill_base_s: float
    prefill_floor_s: float
    per_prefill_token_s: float
    per_attention_pair_s: float
    noise_sigma: float
    stall_probability: float
    def __init__(self, base_s: _Optional[float] = ..., per_sequence_s: _Optional[float] = ..., per_context_token_s: _Optional[float] = ..., saturating_s: _Optional[float] = ..., saturation_tokens: _Optional[float] = ..., prefill_base_s: _Optional[float] = ..., prefill_floor_s: _Optional[float] = ..., per_prefill_token_s: _Optional[float] = ..., per_attention_pair_s: _Optional[float] = ..., noise_sigma: _Optional[float] = ..., stall_probability: _Optional[float] = ...) -> None: ...

class AfdParameters(_message.Message):
    __slots__ = ("layers", "law", "micro_batches", "attention_base_s", "attention_per_sequence_s", "attention_per_context_token_s", "ffn_base_s", "ffn_per_sequence_s", "hop_s", "dispatch_per_sequence_s", "combine_per_sequence_s")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    LAW_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCHES_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_BASE_S_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_PER_SEQUENCE_S_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_PER_CONTEXT_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    FFN_BASE_S_FIELD_NUMBER: _ClassVar[int]
    FFN_PER_SEQUENCE_S_FIELD_NUMBER: _ClassVar[int]
    HOP_S_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_PER_SEQUENCE_S_FIELD_NUMBER: _ClassVar[int]
    COMBINE_PER_SEQUENCE_S_FIELD_NUMBER: _ClassVar[int]
    layers: int
    law: AfdLaw
    micro_batches: int
    attention_base_s: float
    attention_per_sequence_s: float
    attention_per_context_token_s: float
    ffn_base_s: float
    ffn_per_sequence_s: float
    hop_s: float
    dispatch_per_sequence_s: float
    combine_per_sequence_s: float
    def __init__(self, layers: _Optional[int] = ..., law: _Optional[_Union[AfdLaw, str]] = ..., micro_batches: _Optional[int] = ..., attention_base_s: _Optional[float] = ..., attention_per_sequence_s: _Optional[float] = ..., attention_per_context_token_s: _Optional[float] = ..., ffn_base_s: _Optional[float] = ..., ffn_per_sequence_s: _Optional[float] = ..., hop_s: _Optional[float] = ..., dispatch_per_sequence_s: _Optional[float] = ..., combine_per_sequence_s: _Optional[float] = ...) -> None: ...

class PowerParameters(_message.Message):
    __slots__ = ("idle_w", "joule_per_byte", "joule_per_flop", "cap_w", "weight_bytes", "flop_per_token")
    IDLE_W_FIELD_NUMBER: _ClassVar[int]
    JOULE_PER_BYTE_FIELD_NUMBER: _ClassVar[int]
    JOULE_PER_FLOP_FIELD_NUMBER: _ClassVar[int]
    CAP_W_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    FLOP_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    idle_w: float
    joule_per_byte: float
    joule_per_flop: float
    cap_w: float
    weight_bytes: float
    flop_per_token: float
    def __init__(self, idle_w: _Optional[float] = ..., joule_per_byte: _Optional[float] = ..., joule_per_flop: _Optional[float] = ..., cap_w: _Optional[float] = ..., weight_bytes: _Optional[float] = ..., flop_per_token: _Optional[float] = ...) -> None: ...

class LinkParameters(_message.Message):
    __slots__ = ("latency_s", "bandwidth_bytes_per_s", "ingress_bytes_per_s", "overlap_layers")
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    INGRESS_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_LAYERS_FIELD_NUMBER: _ClassVar[int]
    latency_s: float
    bandwidth_bytes_per_s: float
    ingress_bytes_per_s: float
    overlap_layers: int
    def __init__(self, latency_s: _Optional[float] = ..., bandwidth_bytes_per_s: _Optional[float] = ..., ingress_bytes_per_s: _Optional[float] = ..., overlap_layers: _Optional[int] = ...) -> None: ...

class ConnectorFlags(_message.Message):
    __slots__ = ("concurrent_handoff", "requires_peer_binding", "handoff_minted_by", "first_token_from_prefill")
    CONCURRENT_HANDOFF_FIELD_NUMBER: _ClassVar[int]
    REQUIRES_PEER_BINDING_FIELD_NUMBER: _ClassVar[int]
    HANDOFF_MINTED_BY_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FROM_PREFILL_FIELD_NUMBER: _ClassVar[int]
    concurrent_handoff: bool
    requires_peer_binding: bool
    handoff_minted_by: HandoffMint
    first_token_from_prefill: bool
    def __init__(self, concurrent_handoff: bool = ..., requires_peer_binding: bool = ..., handoff_minted_by: _Optional[_Union[HandoffMint, str]] = ..., first_token_from_prefill: bool = ...) -> None: ...

class BackendSpec(_message.Message):
    __slots__ = ("id", "kind", "device", "count", "models", "binding", "phases", "step", "profile", "kv_bytes_per_token", "kv_capacity_tokens", "block_tokens", "kv_layout", "kv_accepts", "max_num_seqs", "max_num_batched_tokens", "max_context_tokens", "link", "connector", "usd_per_hour", "power", "zone", "scheduler", "prompt_buckets", "batch_buckets", "load_s", "compile_s", "kv_conversion", "afd")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    BINDING_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    KV_CAPACITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    KV_ACCEPTS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    CONNECTOR_FIELD_NUMBER: _ClassVar[int]
    USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    POWER_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_BUCKETS_FIELD_NUMBER: _ClassVar[int]
    BATCH_BUCKETS_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    COMPILE_S_FIELD_NUMBER: _ClassVar[int]
    KV_CONVERSION_FIELD_NUMBER: _ClassVar[int]
    AFD_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: BackendKind
    device: str
    count: int
    models: _containers.RepeatedScalarFieldContainer[str]
    binding: ModelBinding
    phases: _containers.RepeatedScalarFieldContainer[Phase]
    step: StepParameters
    profile: str
    kv_bytes_per_token: float
    kv_capacity_tokens: int
    block_tokens: int
    kv_layout: str
    kv_accepts: _containers.RepeatedScalarFieldContainer[str]
    max_num_seqs: int
    max_num_batched_tokens: int
    max_context_tokens: int
    link: LinkParameters
    connector: ConnectorFlags
    usd_per_hour: float
    power: PowerParameters
    zone: str
    scheduler: SchedulerKind
    prompt_buckets: _containers.RepeatedScalarFieldContainer[int]
    batch_buckets: _containers.RepeatedScalarFieldContainer[int]
    load_s: float
    compile_s: float
    kv_conversion: float
    afd: AfdParameters
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[BackendKind, str]] = ..., device: _Optional[str] = ..., count: _Optional[int] = ..., models: _Optional[_Iterable[str]] = ..., binding: _Optional[_Union[ModelBinding, str]] = ..., phases: _Optional[_Iterable[_Union[Phase, str]]] = ..., step: _Optional[_Union[StepParameters, _Mapping]] = ..., profile: _Optional[str] = ..., kv_bytes_per_token: _Optional[float] = ..., kv_capacity_tokens: _Optional[int] = ..., block_tokens: _Optional[int] = ..., kv_layout: _Optional[str] = ..., kv_accepts: _Optional[_Iterable[str]] = ..., max_num_seqs: _Optional[int] = ..., max_num_batched_tokens: _Optional[int] = ..., max_context_tokens: _Optional[int] = ..., link: _Optional[_Union[LinkParameters, _Mapping]] = ..., connector: _Optional[_Union[ConnectorFlags, _Mapping]] = ..., usd_per_hour: _Optional[float] = ..., power: _Optional[_Union[PowerParameters, _Mapping]] = ..., zone: _Optional[str] = ..., scheduler: _Optional[_Union[SchedulerKind, str]] = ..., prompt_buckets: _Optional[_Iterable[int]] = ..., batch_buckets: _Optional[_Iterable[int]] = ..., load_s: _Optional[float] = ..., compile_s: _Optional[float] = ..., kv_conversion: _Optional[float] = ..., afd: _Optional[_Union[AfdParameters, _Mapping]] = ...) -> None: ...

class LoadReport(_message.Message):
    __slots__ = ("running", "waiting", "waiting_prefill_tokens", "kv_used_tokens", "busy_prefill_s", "busy_decode_s", "energy_j", "preemptions", "steps", "decode_sequences", "context_tokens", "prefill_tokens", "attention_pairs", "loading", "busy_loading_s", "busy_attention_s", "busy_ffn_s", "busy_transfer_s")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_USED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BUSY_PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    BUSY_DECODE_S_FIELD_NUMBER: _ClassVar[int]
    ENERGY_J_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_PAIRS_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    BUSY_LOADING_S_FIELD_NUMBER: _ClassVar[int]
    BUSY_ATTENTION_S_FIELD_NUMBER: _ClassVar[int]
    BUSY_FFN_S_FIELD_NUMBER: _ClassVar[int]
    BUSY_TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    waiting_prefill_tokens: int
    kv_used_tokens: int
    busy_prefill_s: float
    busy_decode_s: float
    energy_j: float
    preemptions: int
    steps: int
    decode_sequences: int
    context_tokens: float
    prefill_tokens: int
    attention_pairs: float
    loading: str
    busy_loading_s: float
    busy_attention_s: float
    busy_ffn_s: float
    busy_transfer_s: float
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., waiting_prefill_tokens: _Optional[int] = ..., kv_used_tokens: _Optional[int] = ..., busy_prefill_s: _Optional[float] = ..., busy_decode_s: _Optional[float] = ..., energy_j: _Optional[float] = ..., preemptions: _Optional[int] = ..., steps: _Optional[int] = ..., decode_sequences: _Optional[int] = ..., context_tokens: _Optional[float] = ..., prefill_tokens: _Optional[int] = ..., attention_pairs: _Optional[float] = ..., loading: _Optional[str] = ..., busy_loading_s: _Optional[float] = ..., busy_attention_s: _Optional[float] = ..., busy_ffn_s: _Optional[float] = ..., busy_transfer_s: _Optional[float] = ...) -> None: ...
