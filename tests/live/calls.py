"""Reading what a call brings, and what its error says."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from polyphase.v1 import inference_pb2


async def collect(call: Any) -> tuple[list[int], inference_pb2.Finished | None, int]:
    """Tokens, the account, and the number of messages of a call; checks that indices are consecutive."""
    ids: list[int] = []
    finished, messages = None, 0
    async for message in call:
        messages += 1
        if message.HasField("tokens"):
            assert message.tokens.first_index == len(ids)
            ids.extend(message.tokens.ids)
        if message.HasField("finished"):
            finished = message.finished
    return ids, finished, messages


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error a streaming call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value


def detail(error: grpc.aio.AioRpcError, kind: type[Message]) -> Any:
    """One google.rpc detail of an error."""
    status = rpc_status.from_call(error)
    assert status is not None and status.code == error.code().value[0]
    for packed in status.details:
        found = kind()
        if packed.Unpack(found):
            return found
    raise AssertionError(f"no {kind.__name__} in {status}")


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The public reason of an error."""
    info = detail(error, error_details_pb2.ErrorInfo)
    assert info.domain == "polyphase"
    return str(info.reason)


def fields_of(error: grpc.aio.AioRpcError) -> set[str]:
    """The fields that an error blames."""
    return {violation.field for violation in detail(error, error_details_pb2.BadRequest).field_violations}
