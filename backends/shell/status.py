"""Failures as gRPC statuses and back: the code, the message, and the reason as google.rpc.ErrorInfo."""

from __future__ import annotations

import asyncio
from typing import Final

import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # pyright: ignore[reportMissingImports]
from grpc_status import rpc_status

from router.errors import Code
from router.model import Seconds

DOMAIN: Final = "polyphase"
"""ErrorInfo.domain of every failure of this project."""

ABORT_TIMEOUT_S: Final[Seconds] = 1.0
"""A peer that does not read gets its status late or never; the handler does not wait for it."""

_DETAILS: Final = "grpc-status-details-bin"


class CallFailedError(Exception):
    """Ends a call of ours with a status. `reason` is the public, stable name of the failure."""

    def __init__(self, code: Code, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message


async def abort(context: grpc.aio.ServicerContext, failure: CallFailedError) -> None:
    """End a call with a status."""
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=failure.reason, domain=DOMAIN))
    status = rpc_status.to_status(
        status_pb2.Status(code=failure.code, message=failure.message, details=[detail])
    )
    try:
        async with asyncio.timeout(ABORT_TIMEOUT_S):
            await context.abort(status.code, status.details, status.trailing_metadata)
    except (TimeoutError, grpc.aio.InternalError):
        return  # the peer does not read, or is gone


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason in a call's failure; empty when the peer gave none that can be read."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS:
            return _reason_in(value if isinstance(value, bytes) else value.encode())
    return ""


def _reason_in(details: bytes) -> str:
    info = error_details_pb2.ErrorInfo()
    try:
        status = status_pb2.Status.FromString(details)
        found = any(detail.Unpack(info) for detail in status.details)
    except DecodeError:
        return ""
    return info.reason if found else ""
