"""Mock workers that break one rule each: the mock, with one thing done wrong between it and the shell."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from polyphase.v1 import worker_pb2

from backends.models.link import CancelTransfer
from backends.models.messages import (
    AbortServe,
    DecodeFinished,
    FailReason,
    KVArrived,
    KVPullFailed,
    KVRefused,
    KVServed,
    PrefillFinished,
    PullKV,
    RunDecode,
    RunPrefill,
    ServeKV,
    StepTokens,
    Stop,
    WorkerCommand,
    WorkerEvent,
)
from backends.models.worker import LEASE_S, WorkerMachine
from backends.shell import port, wire
from backends.shell.mock_worker import MockWorker
from router.model import BackendSnapshot, BackendSpec, KVHandle, Phase, Seconds


class Sound:
    """Does nothing wrong; the faults below change what goes in or what comes out."""

    lease_s: Seconds = LEASE_S

    def __init__(
        self, spec: BackendSpec, incarnation: str, source: str, deliver: port.Deliver, failed: port.Failed
    ) -> None:
        self.now = asyncio.get_running_loop().time
        self.machine = WorkerMachine(
            self.believed(spec),
            incarnation,
            random.Random(spec.id),
            self.now(),
            lease_s=self.lease_s,
            source=source,
        )
        self.deliver = deliver
        self.inner = MockWorker(self.machine, self._tell, failed)

    def _tell(self, events: Sequence[WorkerEvent]) -> None:
        self.deliver([out for event in events for out in self.event(event)])

    def believed(self, spec: BackendSpec) -> BackendSpec:
        """What the machine takes for its spec."""
        return spec

    def event(self, event: WorkerEvent) -> Sequence[WorkerEvent]:
        """What is told of an event."""
        return (event,)

    def command(self, command: WorkerCommand) -> Sequence[WorkerCommand]:
        """What is done of a command."""
        return (command,)

    def prefill(self, key: int, command: worker_pb2.StartPrefill) -> RunPrefill:
        return self.inner.prefill(key, command)

    def decode(self, key: int, command: worker_pb2.StartDecode, now: Seconds) -> RunDecode:
        return self.inner.decode(key, command, now)

    def handle(self, commands: Sequence[WorkerCommand]) -> None:
        self.inner.handle([out for command in commands for out in self.command(command)])

    def snapshot(self, now: Seconds) -> BackendSnapshot:
        return self.inner.snapshot(now)

    def chunks(self, pull: int) -> AsyncGenerator[bytes, None]:
        return self.inner.chunks(pull)

    async def store(self, key: int, chunk: bytes) -> None:
        await self.inner.store(key, chunk)

    def close(self) -> None:
        self.inner.close()


class ShortLease(Sound):
    """Nothing wrong; a lease that a test can wait for."""

    lease_s = 0.3


class IgnoresStops(Sound):
    """Goes on with what it was told to stop."""

    def command(self, command: WorkerCommand) -> Sequence[WorkerCommand]:
        return () if isinstance(command, Stop) else (command,)


class IgnoresLeavers(Sound):
    """Keeps KV whose consumer went away within its pull."""

    def command(self, command: WorkerCommand) -> Sequence[WorkerCommand]:
        if isinstance(command, AbortServe):
            self.machine._link.handle(CancelTransfer(command.pull), self.now())
            return ()
        return (command,)


class RepeatsTokens(Sound):
    """Sends every token twice."""

    def event(self, event: WorkerEvent) -> Sequence[WorkerEvent]:
        return (event, event) if isinstance(event, StepTokens) else (event,)


class SkipsTokens(Sound):
    """Leaves token 3 out."""

    def event(self, event: WorkerEvent) -> Sequence[WorkerEvent]:
        if not isinstance(event, StepTokens):
            return (event,)
        kept = [place for place, index in enumerate(event.indices) if index != 3]

        def column(values: Sequence[int]) -> tuple[int, ...]:
            return tuple(values[place] for place in kept)

        columns = column(event.keys), column(event.indices), column(event.tokens)
        return (StepTokens(event.at, *columns),)


class PassesLimits(Sound):
    """Answers with more tokens than were asked for."""

    def command(self, command: WorkerCommand) -> Sequence[WorkerCommand]:
        if isinstance(command, RunPrefill | RunDecode) and command.output_tokens < 100:
            return (replace(command, output_tokens=command.output_tokens + 3),)
        return (command,)


class ServesTwice(Sound):
    """Hands KV out that was handed out before."""

    def __init__(self, *given: object) -> None:
        self.asked: dict[int, KVHandle] = {}
        self.served: list[KVHandle] = []
        super().__init__(*given)  # type: ignore[arg-type]

    def command(self, command: WorkerCommand) -> Sequence[WorkerCommand]:
        if isinstance(command, ServeKV):
            self.asked[command.pull] = replace(command.kv, expires_at=0.0)
        return (command,)

    def event(self, event: WorkerEvent) -> Sequence[WorkerEvent]:
        if isinstance(event, KVServed):
            self.served.append(self.asked[event.pull])
        if isinstance(event, KVRefused) and self._known(kv := self.asked[event.pull]):
            return (KVServed(event.pull, kv.tokens * 1000, 0.0, kv.prefix_hash),)
        return (event,)

    def _known(self, kv: KVHandle) -> bool:
        claimed = [held.handle for held in self.machine._custody._pulls.values()]
        return kv in self.served or kv in [replace(one, expires_at=0.0) for one in claimed]


class TrustsHandles(Sound):
    """Finds KV by the producer's mark alone."""

    def __init__(self, *given: object) -> None:
        self.minted: dict[bytes, KVHandle] = {}
        super().__init__(*given)  # type: ignore[arg-type]

    def event(self, event: WorkerEvent) -> Sequence[WorkerEvent]:
        if isinstance(event, PrefillFinished) and event.kv is not None:
            self.minted[event.kv.connector] = event.kv
        return (event,)

    def command(self, command: WorkerCommand) -> Sequence[WorkerCommand]:
        if isinstance(command, ServeKV):
            return (replace(command, kv=self.minted.get(command.kv.connector, command.kv)),)
        return (command,)


class TrustsKV(Sound):
    """Takes whatever KV comes."""

    def __init__(self, *given: object) -> None:
        self.expected: dict[int, int] = {}
        super().__init__(*given)  # type: ignore[arg-type]

    def event(self, event: WorkerEvent) -> Sequence[WorkerEvent]:
        if isinstance(event, PullKV):
            self.expected[event.key] = event.kv.prefix_hash
        return (event,)

    def command(self, command: WorkerCommand) -> Sequence[WorkerCommand]:
        if isinstance(command, KVArrived):
            return (replace(command, fingerprint=self.expected[command.key]),)
        return (command,)


class TakesForeign(Sound):
    """Decodes with the handle of another request."""

    def decode(self, key: int, command: worker_pb2.StartDecode, now: Seconds) -> RunDecode:
        owned = worker_pb2.StartDecode()
        owned.CopyFrom(command)
        owned.kv.request_id = owned.request.request_id
        return replace(self.inner.decode(key, owned, now), kv=wire.handle_in(command.kv, now))


class TakesAnyLayout(Sound):
    """Takes KV over that it cannot read."""

    def believed(self, spec: BackendSpec) -> BackendSpec:
        return replace(spec, kv_accepts=("a-layout-that-nobody-has",))


class InventsReasons(Sound):
    """Does not pass the producer's reason on."""

    def command(self, command: WorkerCommand) -> Sequence[WorkerCommand]:
        if isinstance(command, KVPullFailed):
            return (replace(command, reason=FailReason.INTERNAL),)
        return (command,)


class TakesAnyModel(Sound):
    """Runs another model than was asked for."""

    def prefill(self, key: int, command: worker_pb2.StartPrefill) -> RunPrefill:
        command.request.model = self.machine.spec.models[0]
        return self.inner.prefill(key, command)


class TakesAnyPhase(Sound):
    """Runs phases that it does not offer."""

    def believed(self, spec: BackendSpec) -> BackendSpec:
        return replace(spec, phases=frozenset(Phase))


class KeepsLeases(Sound):
    """Says that a lease is short, and keeps the KV."""

    def event(self, event: WorkerEvent) -> Sequence[WorkerEvent]:
        if isinstance(event, PrefillFinished) and event.kv is not None:
            return (replace(event, kv=replace(event.kv, expires_at=self.now() + ShortLease.lease_s)),)
        return (event,)


class HidesKV(Sound):
    """Reports that nothing is in use."""

    def snapshot(self, now: Seconds) -> BackendSnapshot:
        return replace(self.inner.snapshot(now), kv_used_tokens=0)


class CountsBackwards(Sound):
    """Its counter of steps shrinks."""

    def snapshot(self, now: Seconds) -> BackendSnapshot:
        real = self.inner.snapshot(now)
        return replace(real, steps=10_000_000 - real.steps)


class Overcharges(Sound):
    """Says that a decode took longer than it did."""

    def event(self, event: WorkerEvent) -> Sequence[WorkerEvent]:
        if isinstance(event, DecodeFinished):
            return (replace(event, cost=replace(event.cost, device_s=event.cost.device_s + 0.5)),)
        return (event,)


class AnswersAtRandom(Sound):
    """Gives equal requests answers of their own."""

    def event(self, event: WorkerEvent) -> Sequence[WorkerEvent]:
        if isinstance(event, StepTokens):
            tokens = [token ^ key for key, token in zip(event.keys, event.tokens, strict=True)]
            return (replace(event, tokens=tuple(tokens)),)
        return (event,)
