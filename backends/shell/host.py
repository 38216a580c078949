"""One worker as lanes and peers see it: whatever computes (port.py), its lanes, its pulls.

Commands of all lanes go to the worker, its events go back to the lanes they belong to. Every incarnation
is a new one; nothing of the one before survives, as after a restart of a real worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence as Rows
from contextlib import aclosing
from itertools import count
from typing import Final, assert_never
from uuid import uuid4

from polyphase.v1 import common_pb2, worker_pb2

from backends.models.messages import (
    AbortServe,
    DecodeFinished,
    Failed,
    FailReason,
    KVArrived,
    KVPullFailed,
    KVRefused,
    KVServed,
    KVTaken,
    PrefillFinished,
    PullKV,
    Release,
    ServeKV,
    StepTokens,
    Stop,
    WorkerCommand,
    WorkerEvent,
)
from backends.shell import wire
from backends.shell.lane import Custody, Lane, Sequence, custody_of
from backends.shell.port import Boot, SendChunk
from backends.shell.pull import KVPuller
from backends.shell.status import CallFailedError
from router.errors import Code, Reason
from router.model import BackendSnapshot, BackendSpec, KVHandle, Seconds
from router.wire import load_to_proto, spec_to_proto

log = logging.getLogger(__name__)

MAX_SEQUENCES: Final = 65_536
"""Sequences of one lane that may run, wait, or hold KV at a time; more are refused for want of room."""


class WorkerHost:
    """A worker as lanes and peers see it. Belongs to the loop it was made in.

    `boot` makes its incarnations; `source` is the host:port that its KV is pulled from. Raises ConfigError
    for an impossible spec.
    """

    def __init__(self, spec: BackendSpec, boot: Boot, source: str, puller: KVPuller) -> None:
        self.spec = spec
        self._source = source
        self.incarnation = ""
        self._make = boot
        self._puller = puller
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._lanes: set[Lane] = set()
        # Goes on over incarnations: the answer of a pull that outlived its worker finds no key.
        self._keys = count(1)
        self._boot()

    def _boot(self) -> None:
        self.incarnation = uuid4().hex
        self._worker = self._make(self.spec, self.incarnation, self._source, self._deliver, self._crashed)
        self._sequences: dict[int, Sequence] = {}
        self._held: dict[Custody, Sequence] = {}
        self._pulls: dict[int, asyncio.Task[None]] = {}
        self._serves: dict[int, tuple[KVHandle, asyncio.Future[KVServed]]] = {}

    # --- life ---

    @property
    def idle(self) -> bool:
        """Whether nothing runs, waits, holds KV or hands it over."""
        return not self._sequences and not self._serves

    @property
    def transferring(self) -> int:
        """Pulls that peers have under way here."""
        return len(self._serves)

    def snapshot(self) -> BackendSnapshot:
        """The worker's account of itself at this time."""
        return self._worker.snapshot(self._loop.time())

    def drain(self) -> None:
        """Refuse new work from now on; what runs goes on."""
        self._draining = True

    def restart(self) -> None:
        """Come back as a new incarnation: all work and all KV are lost, and the lanes break."""
        self._shut_down("the worker restarted; what ran there is lost. Open the lane again.")
        self._boot()

    def close(self) -> None:
        """Stop all work, and end the lanes."""
        self._shut_down("the worker was closed. Use another one.")

    def _shut_down(self, message: str) -> None:
        self._worker.close()
        for task in self._pulls.values():
            task.cancel()
        for _, answer in self._serves.values():
            if not answer.done():
                answer.set_exception(_refusal(FailReason.KV_STALE, "the producer restarted"))
        for lane in self._lanes:
            lane.fail(CallFailedError(Code.UNAVAILABLE, Reason.BACKEND_LOST, message))
        self._lanes = set()

    def _crashed(self, error: Exception) -> None:
        log.error("worker %s restarts after %s", self.spec.id, type(error).__name__)
        self.restart()

    def beat(self, now: Seconds) -> None:
        """Several times a second: send loads that are due, forget KV whose lease is over."""
        while self._held:
            sequence = next(iter(self._held.values()))
            if sequence.held_until > now:
                break
            self._forget(sequence)
        for lane in self._lanes:
            if lane.outbox.load_due(now):
                lane.wake()

    # --- lanes ---

    def open_lane(self, write_timeout_s: Seconds) -> Lane:
        """A lane for a router that said hello. Raises CallFailedError while draining."""
        if self._draining:
            raise CallFailedError(
                Code.UNAVAILABLE, Reason.DRAINING, f"{self.spec.id} is draining. Use another one."
            )
        lane = Lane(self._load, write_timeout_s)
        self._lanes.add(lane)
        return lane

    def close_lane(self, lane: Lane) -> None:
        """Stop what the lane started and free its KV, at once."""
        if lane in self._lanes:  # otherwise an incarnation ago
            self._lanes.discard(lane)
            self._stop(list(lane.sequences.values()))

    def finish_lanes(self) -> None:
        """End all lanes once their last frames are out."""
        for lane in self._lanes:
            lane.finish()

    def welcome(self, now: Seconds) -> worker_pb2.LaneResponse:
        """The first frame of a lane."""
        greeting = worker_pb2.Welcome(spec=spec_to_proto(self.spec), incarnation=self.incarnation)
        return worker_pb2.LaneResponse(welcome=greeting, load=self._load(now))

    def _load(self, now: Seconds) -> common_pb2.LoadReport:
        return load_to_proto(self._worker.snapshot(now))

    # --- commands ---

    def take(self, lane: Lane, commands: Rows[worker_pb2.Command]) -> None:
        """Commands of one message, in order. Raises CallFailedError when the router breaks the protocol."""
        if lane not in self._lanes:
            return  # the worker restarted under the lane, which is ending
        self._worker.handle([made for command in commands if (made := self._command(lane, command))])
        lane.wake()  # commands refused here leave events that the worker knows nothing of

    def _command(self, lane: Lane, command: worker_pb2.Command) -> WorkerCommand | None:
        match command.WhichOneof("command"):
            case "start_prefill":
                return self._start(lane, command.start_prefill)
            case "start_decode":
                return self._start(lane, command.start_decode)
            case "stop_phase":
                return self._stop_phase(lane, command.stop_phase.seq)
            case "release_kv":
                return self._release(command.release_kv.kv)
            case _:
                raise _broken("a command is empty or of a kind that this worker does not know")

    def _start(
        self, lane: Lane, command: worker_pb2.StartPrefill | worker_pb2.StartDecode
    ) -> WorkerCommand | None:
        if command.seq in lane.sequences:
            raise _broken(f"seq {command.seq} is in use")
        try:
            self._check_room(lane)
            return self._admit(lane, command)
        except wire.RefusedCommandError as refusal:
            lane.outbox.event(wire.failed(command.seq, refusal.reason, refusal.message))
            return None

    def _check_room(self, lane: Lane) -> None:
        if self._draining:
            raise wire.RefusedCommandError(f"{self.spec.id} is draining", FailReason.DRAINING)
        if len(lane.sequences) >= MAX_SEQUENCES:
            raise wire.RefusedCommandError(f"over {MAX_SEQUENCES} sequences", FailReason.CAPACITY)

    def _admit(self, lane: Lane, command: worker_pb2.StartPrefill | worker_pb2.StartDecode) -> WorkerCommand:
        sequence = Sequence(next(self._keys), lane, command.seq)
        made: WorkerCommand
        if isinstance(command, worker_pb2.StartPrefill):
            made = self._worker.prefill(sequence.key, command)
        else:
            made = self._worker.decode(sequence.key, command, self._loop.time())
        lane.sequences[command.seq] = self._sequences[sequence.key] = sequence
        return made

    def _stop_phase(self, lane: Lane, seq: int) -> Stop | None:
        sequence = lane.sequences.get(seq)
        if sequence is None:
            return None
        self._forget(sequence)
        return Stop(sequence.key)

    def _stop(self, sequences: Rows[Sequence]) -> None:
        for sequence in sequences:
            self._forget(sequence)
        self._worker.handle([Stop(sequence.key) for sequence in sequences])

    def _release(self, kv: common_pb2.KVHandle) -> Release:
        try:
            handle = wire.handle_in(kv, self._loop.time())
        except wire.RefusedCommandError as error:
            raise _broken(str(error)) from error
        self._forget_held(handle)
        return Release(handle)

    def _forget(self, sequence: Sequence) -> None:
        """The shell's side of an end. A pull under way is cancelled, which frees the producer's copy."""
        self._sequences.pop(sequence.key, None)
        sequence.lane.sequences.pop(sequence.seq, None)
        if sequence.held is not None:
            self._held.pop(sequence.held, None)
        if (pull := self._pulls.pop(sequence.key, None)) is not None:
            pull.cancel()

    def _forget_held(self, handle: KVHandle) -> None:
        sequence = self._held.get(custody_of(handle))
        if sequence is not None:
            self._forget(sequence)

    # --- KV for peers ---

    async def serve_kv(self, proto: common_pb2.KVHandle, consumer: str, send: SendChunk) -> KVServed:
        """Hand KV over to a peer. Raises CallFailedError when refused. Cancelling aborts it."""
        try:
            handle = wire.handle_in(proto, self._loop.time())
        except wire.RefusedCommandError as error:
            raise CallFailedError(Code.INVALID_ARGUMENT, FailReason.INVALID.upper(), str(error)) from error
        pull = next(self._keys)
        answer: asyncio.Future[KVServed] = self._loop.create_future()
        serves, worker = self._serves, self._worker  # an incarnation's own
        serves[pull] = handle, answer
        worker.handle([ServeKV(pull, handle, consumer)])
        try:
            async with aclosing(worker.chunks(pull)) as chunks:
                async for chunk in chunks:
                    await send(chunk)
            return await answer
        finally:
            if serves.pop(pull, None) is not None and serves is self._serves:
                self._forget_held(handle)
                self._worker.handle([AbortServe(pull)])

    # --- events ---

    def _deliver(self, events: Rows[WorkerEvent]) -> None:
        for event in events:
            self._event(event)
        if not events:
            return
        for lane in self._lanes:
            if lane.outbox.pending:
                lane.wake()
            if lane.outbox.full:
                lane.fail(_too_slow())

    def _event(self, event: WorkerEvent) -> None:
        match event:
            case StepTokens():
                self._tokens(event)
            case KVServed():
                self._served(event)
            case KVRefused():
                self._refused(event)
            case PullKV():
                self._pull(event)
            case PrefillFinished() | KVTaken() | DecodeFinished() | Failed():
                sequence = self._sequences.get(event.key)
                if sequence is not None:  # otherwise stopped within the same batch of commands
                    self._phase_event(sequence, event)
            case _:
                assert_never(event)

    def _tokens(self, step: StepTokens) -> None:
        sequences = self._sequences
        for key, index, token in zip(step.keys, step.indices, step.tokens, strict=True):
            sequence = sequences.get(key)
            if sequence is not None:
                sequence.lane.outbox.token(sequence.seq, token, index)

    def _phase_event(
        self, sequence: Sequence, event: PrefillFinished | KVTaken | DecodeFinished | Failed
    ) -> None:
        outbox, seq = sequence.lane.outbox, sequence.seq
        match event:
            case PrefillFinished():
                outbox.event(wire.prefill_done(seq, event, self._loop.time()))
                if event.kv is not None:
                    self._hold(sequence, event.kv)
            case KVTaken():
                outbox.event(wire.kv_moved(seq, event))
            case DecodeFinished():
                outbox.event(wire.decode_done(seq, event))
                self._forget(sequence)
            case Failed():
                outbox.event(wire.failed(seq, event.reason, event.message))
                self._forget(sequence)
            case _:
                assert_never(event)

    def _hold(self, sequence: Sequence, kv: KVHandle) -> None:
        sequence.held = custody_of(kv)
        sequence.held_until = kv.expires_at
        self._held[sequence.held] = sequence

    def _served(self, event: KVServed) -> None:
        handle, answer = self._serves.pop(event.pull)
        self._forget_held(handle)
        if not answer.done():
            answer.set_result(event)

    def _refused(self, event: KVRefused) -> None:
        _, answer = self._serves.pop(event.pull)
        if not answer.done():
            answer.set_exception(_refusal(event.reason, event.message))

    def _pull(self, event: PullKV) -> None:
        if event.key not in self._sequences:
            return  # stopped within the same batch of commands: the worker has forgotten it as well
        worker = self._worker

        def answer(result: KVArrived | KVPullFailed) -> None:
            self._pulls.pop(event.key, None)
            worker.handle([result])

        async def store(chunk: bytes) -> None:
            await worker.store(event.key, chunk)

        self._pulls[event.key] = self._puller.start(event.key, event.kv, self.spec.id, answer, store)


def _broken(what: str) -> CallFailedError:
    message = f"The router broke the protocol: {what}. The lane ends and its work stops. Correct the router."
    return CallFailedError(Code.INVALID_ARGUMENT, Reason.INVALID_REQUEST, message)


def _refusal(reason: FailReason, message: str) -> CallFailedError:
    return CallFailedError(Code.FAILED_PRECONDITION, reason.upper(), message)


def _too_slow() -> CallFailedError:
    message = "The router reads too slowly; its frames no longer fit in memory. Open a new lane and read it."
    return CallFailedError(Code.ABORTED, Reason.SLOW_READER, message)
