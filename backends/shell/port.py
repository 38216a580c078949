"""What runs behind the lanes: the part of a worker that differs from engine to engine.

The shell (host.py) speaks gRPC, keeps the lanes and moves bytes. Whatever computes, a model of hardware
(mock_worker.py) or an engine (backends/reference), takes the commands of backends/models/messages.py and
answers with its events.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Protocol

from polyphase.v1 import worker_pb2

from backends.models.messages import RunDecode, RunPrefill, WorkerCommand, WorkerEvent
from router.model import BackendSnapshot, BackendSpec, Seconds

Deliver = Callable[[Sequence[WorkerEvent]], None]
"""Takes events in the order in which they happened, on the shell's loop. StepTokens carry their tokens."""

Failed = Callable[[Exception], None]
"""Told that the worker cannot go on; the shell then boots another incarnation."""

SendChunk = Callable[[bytes], Awaitable[None]]
"""Puts a part of a KV cache on the wire."""

StoreChunk = Callable[[bytes], Awaitable[None]]
"""Takes a part of a KV cache from the wire; raises RefusedCommandError when it is not what it should be."""


class Worker(Protocol):
    """One incarnation of one worker. Everything is called on the shell's loop."""

    def prefill(self, key: int, command: worker_pb2.StartPrefill) -> RunPrefill:
        """Size up a request under a new key. Raises RefusedCommandError when it can never run here."""
        ...

    def decode(self, key: int, command: worker_pb2.StartDecode, now: Seconds) -> RunDecode:
        """As `prefill`; what either gives goes to `handle` next."""
        ...

    def handle(self, commands: Sequence[WorkerCommand]) -> None:
        """Take commands, all at the same time; their events may be delivered before it returns."""
        ...

    def snapshot(self, now: Seconds) -> BackendSnapshot:
        """The worker's account of itself."""
        ...

    def chunks(self, pull: int) -> AsyncGenerator[bytes, None]:
        """The KV of a pull that ServeKV began, in parts that fit a message; nothing once the pull is over."""
        ...

    async def store(self, key: int, chunk: bytes) -> None:
        """A part of the KV that PullKV asked for. Raises RefusedCommandError as StoreChunk says."""
        ...

    def close(self) -> None:
        """Stop at once; nothing is delivered any more."""
        ...


class Boot(Protocol):
    """Makes an incarnation of a worker; `source` is the address minted into its handles."""

    def __call__(
        self, spec: BackendSpec, incarnation: str, source: str, deliver: Deliver, failed: Failed
    ) -> Worker:
        """Boot. Raises ConfigError for an impossible spec."""
        ...
