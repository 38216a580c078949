from polyphase.v1 import common_pb2 as _common_pb2
from polyphase.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LaneRequest(_message.Message):
    __slots__ = ("hello", "commands")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("backend", "router")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    backend: str
    router: str
    def __init__(self, backend: _Optional[str] = ..., router: _Optional[str] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("start_prefill", "start_decode", "stop_phase", "release_kv")
    START_PREFILL_FIELD_NUMBER: _ClassVar[int]
    START_DECODE_FIELD_NUMBER: _ClassVar[int]
    STOP_PHASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_KV_FIELD_NUMBER: _ClassVar[int]
    start_prefill: StartPrefill
    start_decode: StartDecode
    stop_phase: StopPhase
    release_kv: ReleaseKV
    def __init__(self, start_prefill: _Optional[_Union[StartPrefill, _Mapping]] = ..., start_decode: _Optional[_Union[StartDecode, _Mapping]] = ..., stop_phase: _Optional[_Union[StopPhase, _Mapping]] = ..., release_kv: _Optional[_Union[ReleaseKV, _Mapping]] = ...) -> None: ...

class StartPrefill(_message.Message):
    __slots__ = ("seq", "epoch", "request", "decode_here")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    DECODE_HERE_FIELD_NUMBER: _ClassVar[int]
    seq: int
    epoch: int
    request: _inference_pb2.GenerateRequest
    decode_here: bool
    def __init__(self, seq: _Optional[int] = ..., epoch: _Optional[int] = ..., request: _Optional[_Union[_inference_pb2.GenerateRequest, _Mapping]] = ..., decode_here: bool = ...) -> None: ...

class StartDecode(_message.Message):
    __slots__ = ("seq", "epoch", "request", "kv", "first_index")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    seq: int
    epoch: int
    request: _inference_pb2.GenerateRequest
    kv: _common_pb2.KVHandle
    first_index: int
    def __init__(self, seq: _Optional[int] = ..., epoch: _Optional[int] = ..., request: _Optional[_Union[_inference_pb2.GenerateRequest, _Mapping]] = ..., kv: _Optional[_Union[_common_pb2.KVHandle, _Mapping]] = ..., first_index: _Optional[int] = ...) -> None: ...

class StopPhase(_message.Message):
    __slots__ = ("seq",)
    SEQ_FIELD_NUMBER: _ClassVar[int]
    seq: int
    def __init__(self, seq: _Optional[int] = ...) -> None: ...

class ReleaseKV(_message.Message):
    __slots__ = ("kv",)
    KV_FIELD_NUMBER: _ClassVar[int]
    kv: _common_pb2.KVHandle
    def __init__(self, kv: _Optional[_Union[_common_pb2.KVHandle, _Mapping]] = ...) -> None: ...

class LaneResponse(_message.Message):
    __slots__ = ("welcome", "seqs", "tokens", "indices", "events", "load", "kv_blocks")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    SEQS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    seqs: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    indices: _containers.RepeatedScalarFieldContainer[int]
    events: _containers.RepeatedCompositeFieldContainer[PhaseEvent]
    load: _common_pb2.LoadReport
    kv_blocks: KVBlocks
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., seqs: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ..., indices: _Optional[_Iterable[int]] = ..., events: _Optional[_Iterable[_Union[PhaseEvent, _Mapping]]] = ..., load: _Optional[_Union[_common_pb2.LoadReport, _Mapping]] = ..., kv_blocks: _Optional[_Union[KVBlocks, _Mapping]] = ...) -> None: ...

class KVBlocks(_message.Message):
    __slots__ = ("stored", "removed", "cleared")
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    stored: _containers.RepeatedScalarFieldContainer[int]
    removed: _containers.RepeatedScalarFieldContainer[int]
    cleared: bool
    def __init__(self, stored: _Optional[_Iterable[int]] = ..., removed: _Optional[_Iterable[int]] = ..., cleared: bool = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("spec", "incarnation")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    spec: _common_pb2.BackendSpec
    incarnation: str
    def __init__(self, spec: _Optional[_Union[_common_pb2.BackendSpec, _Mapping]] = ..., incarnation: _Optional[str] = ...) -> None: ...

class PhaseEvent(_message.Message):
    __slots__ = ("seq", "prefill_done", "kv_moved", "decode_done", "failed")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PREFILL_DONE_FIELD_NUMBER: _ClassVar[int]
    KV_MOVED_FIELD_NUMBER: _ClassVar[int]
    DECODE_DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    seq: int
    prefill_done: PrefillDone
    kv_moved: KVMoved
    decode_done: DecodeDone
    failed: PhaseFailed
    def __init__(self, seq: _Optional[int] = ..., prefill_done: _Optional[_Union[PrefillDone, _Mapping]] = ..., kv_moved: _Optional[_Union[KVMoved, _Mapping]] = ..., decode_done: _Optional[_Union[DecodeDone, _Mapping]] = ..., failed: _Optional[_Union[PhaseFailed, _Mapping]] = ...) -> None: ...

class PhaseCost(_message.Message):
    __slots__ = ("queued_s", "device_s", "energy_j")
    QUEUED_S_FIELD_NUMBER: _ClassVar[int]
    DEVICE_S_FIELD_NUMBER: _ClassVar[int]
    ENERGY_J_FIELD_NUMBER: _ClassVar[int]
    queued_s: float
    device_s: float
    energy_j: float
    def __init__(self, queued_s: _Optional[float] = ..., device_s: _Optional[float] = ..., energy_j: _Optional[float] = ...) -> None: ...

class PrefillDone(_message.Message):
    __slots__ = ("cost", "cached_tokens", "kv")
    COST_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    cost: PhaseCost
    cached_tokens: int
    kv: _common_pb2.KVHandle
    def __init__(self, cost: _Optional[_Union[PhaseCost, _Mapping]] = ..., cached_tokens: _Optional[int] = ..., kv: _Optional[_Union[_common_pb2.KVHandle, _Mapping]] = ...) -> None: ...

class KVMoved(_message.Message):
    __slots__ = ("bytes", "transfer_s")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    transfer_s: float
    def __init__(self, bytes: _Optional[int] = ..., transfer_s: _Optional[float] = ...) -> None: ...

class DecodeDone(_message.Message):
    __slots__ = ("cost", "output_tokens", "reason")
    COST_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    cost: PhaseCost
    output_tokens: int
    reason: _common_pb2.FinishReason
    def __init__(self, cost: _Optional[_Union[PhaseCost, _Mapping]] = ..., output_tokens: _Optional[int] = ..., reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ...) -> None: ...

class PhaseFailed(_message.Message):
    __slots__ = ("reason", "message")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[PhaseFailed.Reason]
        REASON_INVALID: _ClassVar[PhaseFailed.Reason]
        REASON_CAPACITY: _ClassVar[PhaseFailed.Reason]
        REASON_KV_STALE: _ClassVar[PhaseFailed.Reason]
        REASON_KV_LAYOUT: _ClassVar[PhaseFailed.Reason]
        REASON_KV_TRANSFER: _ClassVar[PhaseFailed.Reason]
        REASON_DRAINING: _ClassVar[PhaseFailed.Reason]
        REASON_INTERNAL: _ClassVar[PhaseFailed.Reason]
    REASON_UNSPECIFIED: PhaseFailed.Reason
    REASON_INVALID: PhaseFailed.Reason
    REASON_CAPACITY: PhaseFailed.Reason
    REASON_KV_STALE: PhaseFailed.Reason
    REASON_KV_LAYOUT: PhaseFailed.Reason
    REASON_KV_TRANSFER: PhaseFailed.Reason
    REASON_DRAINING: PhaseFailed.Reason
    REASON_INTERNAL: PhaseFailed.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: PhaseFailed.Reason
    message: str
    def __init__(self, reason: _Optional[_Union[PhaseFailed.Reason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class PullKVRequest(_message.Message):
    __slots__ = ("kv", "consumer")
    KV_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    kv: _common_pb2.KVHandle
    consumer: str
    def __init__(self, kv: _Optional[_Union[_common_pb2.KVHandle, _Mapping]] = ..., consumer: _Optional[str] = ...) -> None: ...

class PullKVResponse(_message.Message):
    __slots__ = ("chunk", "fingerprint", "bytes")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    fingerprint: int
    bytes: int
    def __init__(self, chunk: _Optional[bytes] = ..., fingerprint: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...
