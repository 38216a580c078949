"""Failures to gRPC statuses: code, message, google.rpc details, and a hint for retrying clients.

Formats: google.rpc.Status with ErrorInfo, BadRequest and RetryInfo (https://google.aip.dev/193), and
`grpc-retry-pushback-ms` of gRPC's retry design (gRFC A6), which a client's own retry policy obeys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # pyright: ignore[reportMissingImports]
from grpc_status import rpc_status
from polyphase.v1 import inference_pb2

from router.core.messages import FailRequest
from router.errors import PolyphaseError
from router.model import Seconds

DOMAIN: Final = "polyphase"
PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
ABORT_LIMIT_S: Final[Seconds] = 1.0
"""A client that does not read gets its status late or never; the handler does not wait for it."""

MAX_MESSAGE: Final = 1024
"""Characters of a message. With the details it stays below the 8 KiB of trailers that gRPC clients accept."""
MAX_VIOLATIONS: Final = 24
_GRPC_CODES: Final[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


class RequestFailedError(PolyphaseError):
    """A request that the core gave up."""

    def __init__(self, action: FailRequest, next_index: int) -> None:
        """`next_index` is how many tokens were handed to the client before."""
        super().__init__(action.reason, action.message, retry_after_s=action.retry_after_s)
        self.request_id = action.request_id
        self.next_index = next_index


def status_of(error: PolyphaseError) -> Any:
    """The grpc.Status of an error: its trailing metadata holds the details."""
    status = status_pb2.Status(code=int(error.code), message=error.message[:MAX_MESSAGE])
    for detail in _details(error):
        status.details.add().Pack(detail)
    return rpc_status.to_status(status)


def trailers_of(error: PolyphaseError, status: Any) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata of an error, with the pause after which a client's library may retry."""
    metadata = tuple(status.trailing_metadata)
    if error.retry_after_s > 0:
        metadata += ((PUSHBACK_KEY, str(round(error.retry_after_s * 1000))),)
    return metadata


async def abort(context: Any, error: PolyphaseError) -> None:
    """End a call with an error. Sends the status before any header if no token was sent."""
    status = status_of(error)
    try:
        async with asyncio.timeout(ABORT_LIMIT_S):
            await context.abort(_GRPC_CODES[int(error.code)], status.details, trailers_of(error, status))
    except (TimeoutError, grpc.aio.InternalError):
        # The client does not read, or is gone; gRPC drops the call with its connection.
        return


def failure_to_proto(error: PolyphaseError) -> inference_pb2.Failure:
    """The same failure inside a session."""
    return inference_pb2.Failure(
        code=int(error.code),
        reason=error.reason.value,
        message=error.message[:MAX_MESSAGE],
        retry_after_s=error.retry_after_s,
        next_index=error.next_index if isinstance(error, RequestFailedError) else 0,
        violations=[
            inference_pb2.FieldViolation(field=violation.field, description=violation.description)
            for violation in error.violations[:MAX_VIOLATIONS]
        ],
    )


def _details(error: PolyphaseError) -> list[Message]:
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN)
    if isinstance(error, RequestFailedError):
        info.metadata["request_id"] = error.request_id
        info.metadata["next_index"] = str(error.next_index)
    details: list[Message] = [info]
    if error.violations:
        details.append(_bad_request(error))
    if error.retry_after_s > 0:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(retry)
    return details


def _bad_request(error: PolyphaseError) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=violation.field, description=violation.description
            )
            for violation in error.violations[:MAX_VIOLATIONS]
        ]
    )
