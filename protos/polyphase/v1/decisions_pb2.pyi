from polyphase.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExplainRequest(_message.Message):
    __slots__ = ("request_id", "changes", "snapshot")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    changes: bool
    snapshot: bool
    def __init__(self, request_id: _Optional[str] = ..., changes: bool = ..., snapshot: bool = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("request_id", "model", "prompt_tokens", "max_new_tokens", "workload_class", "age_s", "decisions", "retries", "policy_faults", "ended_at_s", "failure", "times", "verdict", "sentence", "decision", "goal", "changes", "changes_note", "snapshot")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_CLASS_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FAULTS_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_S_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    CHANGES_NOTE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    prompt_tokens: int
    max_new_tokens: int
    workload_class: str
    age_s: float
    decisions: _containers.RepeatedCompositeFieldContainer[DecisionNote]
    retries: _containers.RepeatedCompositeFieldContainer[RetryNote]
    policy_faults: _containers.RepeatedScalarFieldContainer[str]
    ended_at_s: float
    failure: str
    times: _common_pb2.PhaseTimes
    verdict: str
    sentence: str
    decision: _common_pb2.Decision
    goal: str
    changes: _containers.RepeatedCompositeFieldContainer[PlacementChange]
    changes_note: str
    snapshot: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., workload_class: _Optional[str] = ..., age_s: _Optional[float] = ..., decisions: _Optional[_Iterable[_Union[DecisionNote, _Mapping]]] = ..., retries: _Optional[_Iterable[_Union[RetryNote, _Mapping]]] = ..., policy_faults: _Optional[_Iterable[str]] = ..., ended_at_s: _Optional[float] = ..., failure: _Optional[str] = ..., times: _Optional[_Union[_common_pb2.PhaseTimes, _Mapping]] = ..., verdict: _Optional[str] = ..., sentence: _Optional[str] = ..., decision: _Optional[_Union[_common_pb2.Decision, _Mapping]] = ..., goal: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[PlacementChange, _Mapping]]] = ..., changes_note: _Optional[str] = ..., snapshot: _Optional[str] = ...) -> None: ...

class DecisionNote(_message.Message):
    __slots__ = ("decided_at_s", "decision")
    DECIDED_AT_S_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    decided_at_s: float
    decision: _common_pb2.Decision
    def __init__(self, decided_at_s: _Optional[float] = ..., decision: _Optional[_Union[_common_pb2.Decision, _Mapping]] = ...) -> None: ...

class RetryNote(_message.Message):
    __slots__ = ("failed_at_s", "phase", "backend", "reason")
    FAILED_AT_S_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    failed_at_s: float
    phase: _common_pb2.Phase
    backend: str
    reason: str
    def __init__(self, failed_at_s: _Optional[float] = ..., phase: _Optional[_Union[_common_pb2.Phase, str]] = ..., backend: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class PlacementChange(_message.Message):
    __slots__ = ("text", "before", "after", "effort")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    EFFORT_FIELD_NUMBER: _ClassVar[int]
    text: str
    before: float
    after: float
    effort: float
    def __init__(self, text: _Optional[str] = ..., before: _Optional[float] = ..., after: _Optional[float] = ..., effort: _Optional[float] = ...) -> None: ...
