"""A client that keeps what it hears, and knows what it should have heard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from polyphase.v1 import inference_pb2

from tests.live.calls import detail, reason_of
from tests.shell.rig import answer, request

PATIENCE_S = 30.0
"""Generous: two cores may be shared with others. No promise is measured by it."""

__all__ = ["PATIENCE_S", "Heard", "eventually", "request"]


async def eventually(holds: Callable[[], Any], what: str, within_s: float = PATIENCE_S) -> float:
    """Poll until something holds; gives the seconds that it took."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not holds():
        assert loop.time() - start < within_s, what
        await asyncio.sleep(0.002)
    return loop.time() - start


class Heard:
    """One request and what has come of it so far. A token out of place fails the test at once."""

    def __init__(self, stub: Any, made: inference_pb2.GenerateRequest, **options: Any) -> None:
        self.made = made
        self.ids: list[int] = []
        self.epochs: set[int] = set()
        self.finished: inference_pb2.Finished | None = None
        self.error: grpc.aio.AioRpcError | None = None
        self.call = stub.Generate(made, **options)
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for message in self.call:
                self._keep(message)
        except grpc.aio.AioRpcError as error:
            self.error = error
        except asyncio.CancelledError:
            pass  # also what grpc.aio raises for a call that was cancelled on our side
        finally:
            self.call.cancel()

    def _keep(self, message: inference_pb2.GenerateResponse) -> None:
        chunk = message.tokens
        if chunk.ids:
            assert chunk.first_index == len(self.ids), f"{chunk.first_index} where {len(self.ids)} was due"
            self.ids.extend(chunk.ids)
            self.epochs.add(chunk.epoch)
        if message.HasField("finished"):
            self.finished = message.finished

    def check(self) -> None:
        """What came so far is right, token by token."""
        assert self.ids == answer(self.made, len(self.ids))

    async def until(self, count: int) -> None:
        """Wait for so many tokens."""
        done = self.reading.done
        await eventually(lambda: len(self.ids) >= count or done(), f"no {count} tokens came")
        assert len(self.ids) >= count, self.error

    async def end(self) -> None:
        """Wait for the end, whatever it is; what came is right."""
        async with asyncio.timeout(PATIENCE_S):
            await self.reading
        self.check()

    async def answer(self) -> inference_pb2.Finished:
        """Wait for the whole, right answer; gives its account."""
        await self.end()
        assert self.finished is not None, self.error
        assert len(self.ids) == self.made.max_new_tokens
        return self.finished

    async def failure(self) -> tuple[grpc.StatusCode, str]:
        """Wait for a typed failure; gives its code and its public reason."""
        await self.end()
        assert self.error is not None, "the request did not fail"
        assert "Traceback" not in (self.error.details() or "")
        return self.error.code(), reason_of(self.error)

    def next_index(self) -> int:
        """Where the failure says that the answer broke off."""
        assert self.error is not None
        return int(detail(self.error, error_details_pb2.ErrorInfo).metadata["next_index"])

    def attempts(self) -> int:
        """Attempts in the account."""
        assert self.finished is not None
        return self.finished.attempts

    def backends(self) -> list[str]:
        """Where the phases ran, in order."""
        assert self.finished is not None
        return [use.backend for use in self.finished.uses]
