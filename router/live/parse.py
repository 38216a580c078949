"""Bytes from a client to protobuf messages, or a CallerError.

Parsing by hand rather than by gRPC gives a broken message a typed status with a next step; gRPC's own answer
is INTERNAL. Fields we do not know are dropped here: they would cost memory and reach the workers unchecked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError
from polyphase.v1 import inference_pb2

from router.errors import CallerError, Reason, Violation

_TOKENS: Final = inference_pb2.GenerateRequest.TOKENS_FIELD_NUMBER
_TEXT: Final = inference_pb2.GenerateRequest.TEXT_FIELD_NUMBER
_STARTS: Final = inference_pb2.SessionRequest.STARTS_FIELD_NUMBER
_START_REQUEST: Final = inference_pb2.SessionRequest.Start.REQUEST_FIELD_NUMBER
_PLAN_REQUEST: Final = inference_pb2.PlanRequest.REQUEST_FIELD_NUMBER
_LENGTHS: Final = {1: 8, 5: 4}
"""Bytes of the fixed wire types."""
_LENGTH_DELIMITED: Final = 2


def generate_request(raw: bytes) -> inference_pb2.GenerateRequest:
    """The message of Generate. Raises CallerError for bytes that are none, or that hold two prompts."""
    request = inference_pb2.GenerateRequest()
    try:
        request.ParseFromString(raw)
    except DecodeError:
        raise _unreadable("GenerateRequest") from None
    # Only bytes that lost something in parsing can hold a second prompt: the common case is one comparison.
    if request.ByteSize() != len(raw) and _has_two_prompts(raw):
        raise two_prompts()
    request.DiscardUnknownFields()
    return request


def plan_request(raw: bytes) -> inference_pb2.GenerateRequest:
    """The request inside the message of Plan; same errors as generate_request."""
    plan = inference_pb2.PlanRequest()
    try:
        plan.ParseFromString(raw)
    except DecodeError:
        raise _unreadable("PlanRequest") from None
    if plan.ByteSize() != len(raw) and _has_two_prompts(_joined(raw, _PLAN_REQUEST)):
        raise two_prompts()
    plan.DiscardUnknownFields()
    return plan.request


def session_request(raw: bytes) -> tuple[inference_pb2.SessionRequest, frozenset[int]]:
    """One message of a session, and the indices of its starts that hold two prompts.

    Raises CallerError for bytes that are no SessionRequest.
    """
    message = inference_pb2.SessionRequest()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        raise _unreadable("SessionRequest") from None
    conflicts: frozenset[int] = frozenset()
    if message.ByteSize() != len(raw):
        starts = (content for number, content in _fields(raw) if number == _STARTS)
        conflicts = frozenset(
            index for index, start in enumerate(starts) if _has_two_prompts(_joined(start, _START_REQUEST))
        )
    message.DiscardUnknownFields()
    return message, conflicts


def two_prompts() -> CallerError:
    """The error of a request that has both kinds of prompt."""
    rule = "is given as tokens and as text; a request has one prompt"
    return CallerError(
        Reason.INVALID_REQUEST,
        "the request has two prompts and was not accepted; send either tokens or text",
        violations=(Violation("prompt", rule),),
    )


def _unreadable(name: str) -> CallerError:
    rule = f"is not a polyphase.v1.{name}: broken framing, or text that is not UTF-8"
    return CallerError(
        Reason.INVALID_REQUEST,
        f"the message cannot be read as polyphase.v1.{name} and was not accepted; "
        "send it with the stubs of this version",
        violations=(Violation("message", rule),),
    )


# --- a look at the wire format, for what parsing loses: https://protobuf.dev/programming-guides/encoding ---


def _has_two_prompts(request: bytes) -> bool:
    # Parsing keeps the last member of a oneof; answering to half of what was sent would be a guess.
    return {_TOKENS, _TEXT} <= {number for number, _ in _fields(request)}


def _joined(message: bytes, field: int) -> bytes:
    """All occurrences of a submessage; parsers merge them, and merging is concatenation."""
    return b"".join(content for number, content in _fields(message) if number == field)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field at the top level; empty content unless it is length-delimited.

    The bytes have been parsed before, so they are well formed; groups, which proto3 has not, end the walk.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        length = _LENGTHS.get(kind, 0)
        content = b""
        if kind == 0:
            _, position = _varint(message, position)
        elif kind == _LENGTH_DELIMITED:
            length, position = _varint(message, position)
            content = message[position : position + length]
        elif kind not in _LENGTHS:
            return
        position += length
        yield key >> 3, content


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, position
