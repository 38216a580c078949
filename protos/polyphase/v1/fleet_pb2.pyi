from polyphase.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BackendState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKEND_STATE_UNSPECIFIED: _ClassVar[BackendState]
    BACKEND_STATE_CONNECTING: _ClassVar[BackendState]
    BACKEND_STATE_READY: _ClassVar[BackendState]
    BACKEND_STATE_CORDONED: _ClassVar[BackendState]
    BACKEND_STATE_DRAINING: _ClassVar[BackendState]
    BACKEND_STATE_LOST: _ClassVar[BackendState]
BACKEND_STATE_UNSPECIFIED: BackendState
BACKEND_STATE_CONNECTING: BackendState
BACKEND_STATE_READY: BackendState
BACKEND_STATE_CORDONED: BackendState
BACKEND_STATE_DRAINING: BackendState
BACKEND_STATE_LOST: BackendState

class RegisterRequest(_message.Message):
    __slots__ = ("backend", "address", "leaving")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    backend: str
    address: str
    leaving: bool
    def __init__(self, backend: _Optional[str] = ..., address: _Optional[str] = ..., leaving: bool = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("heartbeat_s",)
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    heartbeat_s: float
    def __init__(self, heartbeat_s: _Optional[float] = ...) -> None: ...

class ListBackendsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListBackendsResponse(_message.Message):
    __slots__ = ("backends",)
    BACKENDS_FIELD_NUMBER: _ClassVar[int]
    backends: _containers.RepeatedCompositeFieldContainer[Backend]
    def __init__(self, backends: _Optional[_Iterable[_Union[Backend, _Mapping]]] = ...) -> None: ...

class WatchBackendsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchBackendsResponse(_message.Message):
    __slots__ = ("backends",)
    BACKENDS_FIELD_NUMBER: _ClassVar[int]
    backends: _containers.RepeatedCompositeFieldContainer[Backend]
    def __init__(self, backends: _Optional[_Iterable[_Union[Backend, _Mapping]]] = ...) -> None: ...

class Backend(_message.Message):
    __slots__ = ("spec", "state", "address", "load", "load_age_s", "prefills_in_flight", "decodes_in_flight", "kv_tokens_booked", "model_drift")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    LOAD_AGE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILLS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    DECODES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_BOOKED_FIELD_NUMBER: _ClassVar[int]
    MODEL_DRIFT_FIELD_NUMBER: _ClassVar[int]
    spec: _common_pb2.BackendSpec
    state: BackendState
    address: str
    load: _common_pb2.LoadReport
    load_age_s: float
    prefills_in_flight: int
    decodes_in_flight: int
    kv_tokens_booked: int
    model_drift: ModelDrift
    def __init__(self, spec: _Optional[_Union[_common_pb2.BackendSpec, _Mapping]] = ..., state: _Optional[_Union[BackendState, str]] = ..., address: _Optional[str] = ..., load: _Optional[_Union[_common_pb2.LoadReport, _Mapping]] = ..., load_age_s: _Optional[float] = ..., prefills_in_flight: _Optional[int] = ..., decodes_in_flight: _Optional[int] = ..., kv_tokens_booked: _Optional[int] = ..., model_drift: _Optional[_Union[ModelDrift, _Mapping]] = ...) -> None: ...

class ModelDrift(_message.Message):
    __slots__ = ("prefill", "decode")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    prefill: float
    decode: float
    def __init__(self, prefill: _Optional[float] = ..., decode: _Optional[float] = ...) -> None: ...

class CordonBackendRequest(_message.Message):
    __slots__ = ("backend", "undo")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    backend: str
    undo: bool
    def __init__(self, backend: _Optional[str] = ..., undo: bool = ...) -> None: ...

class CordonBackendResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: BackendState
    def __init__(self, state: _Optional[_Union[BackendState, str]] = ...) -> None: ...

class DrainBackendRequest(_message.Message):
    __slots__ = ("backend", "timeout_s")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    backend: str
    timeout_s: float
    def __init__(self, backend: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class DrainBackendResponse(_message.Message):
    __slots__ = ("drained", "in_flight")
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    drained: bool
    in_flight: int
    def __init__(self, drained: bool = ..., in_flight: _Optional[int] = ...) -> None: ...
