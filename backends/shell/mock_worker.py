"""A modelled worker behind the shell: a WorkerMachine in real time, and the tokens it stands for.

The machine knows sequences and indices only. Tokens are a hash chain of the prompt and of the KV that was
received (backends/models/tokens.py), so that a client can check every one of them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence

from polyphase.v1 import worker_pb2

from backends.models.messages import (
    DecodeFinished,
    Failed,
    KVArrived,
    PrefillFinished,
    RunDecode,
    RunPrefill,
    StepTokens,
    Stop,
    WorkerCommand,
    WorkerEvent,
)
from backends.models.tokens import TokenStream, kv_fingerprint
from backends.models.worker import WorkerMachine
from backends.shell import port, wire
from backends.shell.clock import MachineClock
from backends.shell.wire import Answer
from router.model import BackendSnapshot, BackendSpec, Seconds


class MockBoot:
    """Boots mock workers; the same seed gives the same noise of their steps."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(
        self, spec: BackendSpec, incarnation: str, source: str, deliver: port.Deliver, failed: port.Failed
    ) -> MockWorker:
        """Boot. Raises ConfigError for an impossible spec."""
        rng = random.Random(f"{self._seed}/{spec.id}")
        now = asyncio.get_running_loop().time()
        return MockWorker(WorkerMachine(spec, incarnation, rng, now, source=source), deliver, failed)


class MockWorker:
    """One incarnation. Belongs to the loop it was made in."""

    def __init__(self, machine: WorkerMachine, deliver: port.Deliver, failed: port.Failed) -> None:
        self._machine = machine
        self._deliver = deliver
        self._clock: MachineClock[WorkerCommand, WorkerEvent] = MachineClock(machine, self._tell, failed)
        self._answers: dict[int, Answer] = {}
        """Of decodes whose KV has not arrived."""
        self._streams: dict[int, TokenStream] = {}

    def prefill(self, key: int, command: worker_pb2.StartPrefill) -> RunPrefill:
        """The prefill of a request, whose tokens come from the KV it will compute."""
        answer = wire.answer_to(command.request, self._machine.spec)
        made = wire.run_prefill(key, command, answer)
        self._streams[key] = TokenStream(answer.prompt_fp, kv_fingerprint(answer.prompt_fp), answer.seed)
        return made

    def decode(self, key: int, command: worker_pb2.StartDecode, now: Seconds) -> RunDecode:
        """The decode of a request."""
        answer = wire.answer_to(command.request, self._machine.spec)
        made = wire.run_decode(key, command, answer, now)
        self._answers[key] = answer
        return made

    def handle(self, commands: Sequence[WorkerCommand]) -> None:
        """Hand commands to the machine."""
        for command in commands:
            match command:
                case KVArrived(key=key, fingerprint=fingerprint) if key in self._answers:
                    # Tokens come from the KV that was received, whatever was asked for.
                    answer = self._answers.pop(key)
                    self._streams[key] = TokenStream(answer.prompt_fp, fingerprint, answer.seed)
                case Stop(key=key):
                    self._forget(key)
                case _:
                    pass
        self._clock.handle(commands)

    def snapshot(self, now: Seconds) -> BackendSnapshot:
        """The machine's account of itself."""
        return self._machine.snapshot(now)

    async def chunks(self, pull: int) -> AsyncGenerator[bytes, None]:
        """None: the bytes are a number whose time the link model has taken; a fingerprint stands for them."""
        nothing: tuple[bytes, ...] = ()
        for chunk in nothing:
            yield chunk

    async def store(self, key: int, chunk: bytes) -> None:
        """Drop it: a peer's KV means nothing to a model of hardware."""

    def close(self) -> None:
        """Stop the clock."""
        self._clock.close()

    def _tell(self, events: Sequence[WorkerEvent]) -> None:
        self._deliver([self._with_tokens(e) if isinstance(e, StepTokens) else e for e in events])
        for event in events:
            match event:
                case DecodeFinished(key=key) | Failed(key=key):
                    self._forget(key)
                case PrefillFinished(key=key, kv=kv) if kv is not None:
                    self._forget(key)
                case _:
                    pass

    def _with_tokens(self, step: StepTokens) -> StepTokens:
        streams = self._streams
        # One that was stopped within the same batch of commands has no stream any more.
        kept = [pair for pair in zip(step.keys, step.indices, strict=True) if pair[0] in streams]
        tokens = tuple([streams[key].token(index) for key, index in kept])
        return StepTokens(step.at, tuple([k for k, _ in kept]), tuple([i for _, i in kept]), tokens)

    def _forget(self, key: int) -> None:
        self._streams.pop(key, None)
        self._answers.pop(key, None)
