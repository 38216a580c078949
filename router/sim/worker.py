"""One mock worker in virtual time: wakes its machine at its deadline, turns its events into facts."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, assert_never

from backends.models.messages import (
    DecodeFinished,
    Failed,
    FailReason,
    KVRefused,
    KVServed,
    KVTaken,
    PrefillFinished,
    PullKV,
    RunDecode,
    RunPrefill,
    StepTokens,
    Stop,
    WorkerCommand,
    WorkerEvent,
)
from backends.models.worker import WorkerMachine
from router.core.messages import (
    DecodeDone,
    Fact,
    FirstToken,
    KVMoved,
    PhaseFailed,
    PrefillDone,
    StartDecode,
    StartPrefill,
)
from router.errors import Reason
from router.model import KVHandle, Phase, Request, Seconds
from router.sim.heap import Heap

REASONS: Final[Mapping[FailReason, Reason]] = {
    FailReason.INVALID: Reason.REQUEST_TOO_LARGE,
    FailReason.CAPACITY: Reason.BACKEND_FAILED,
    FailReason.KV_STALE: Reason.KV_STALE,
    FailReason.KV_LAYOUT: Reason.KV_STALE,
    FailReason.KV_TRANSFER: Reason.KV_TRANSFER_FAILED,
    FailReason.DRAINING: Reason.BACKEND_FAILED,
    FailReason.INTERNAL: Reason.BACKEND_FAILED,
}


PhaseEvent = PrefillFinished | KVTaken | DecodeFinished | Failed
OtherEvent = PhaseEvent | PullKV | KVServed | KVRefused
"""All but tokens."""


class Surroundings(Protocol):
    """What a worker sees of the world around it."""

    watched: dict[str, array[float]]
    """Times of the tokens of requests whose jitter matters, by request."""

    def next_key(self) -> int:
        """A key that no worker has seen."""
        ...

    def say(self, request_id: str, fact: Fact) -> None:
        """A message about a request is on its way to the router."""
        ...

    def pull(self, consumer: Worker, key: int, kv: KVHandle) -> None:
        """Ask a prefill worker for KV."""
        ...

    def served(self, event: KVServed | KVRefused) -> None:
        """Answer a decode worker that asked for KV."""
        ...

    def first_index(self, producer: str) -> int:
        """1 if the prefill worker gave the first token away, else 0."""
        ...


class _Job:
    """What a worker's key stands for."""

    __slots__ = ("epoch", "phase", "request_id")

    def __init__(self, request_id: str, epoch: int, phase: Phase) -> None:
        self.request_id = request_id
        self.epoch = epoch
        self.phase = phase


class Worker:
    """Drives one worker machine."""

    def __init__(self, around: Surroundings, heap: Heap, machine: WorkerMachine, incarnation: str) -> None:
        self.machine = machine
        self.incarnation = incarnation
        self.reported_at: Seconds = 0.0
        self._around = around
        self._heap = heap
        self._jobs: dict[int, _Job] = {}
        self._keys: dict[tuple[str, int], int] = {}
        self._armed: Seconds | None = None
        self._dead = False

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._armed is None

    def start(self, action: StartPrefill | StartDecode, request: Request, output_tokens: int) -> None:
        """A command of the router."""
        key = self._around.next_key()
        phase = Phase.PREFILL if isinstance(action, StartPrefill) else Phase.DECODE
        self._jobs[key] = _Job(action.request_id, action.epoch, phase)
        self._keys[action.request_id, action.epoch] = key
        cap, prompt, epoch = request.max_new_tokens, request.prompt_tokens, action.epoch
        length = min(output_tokens, cap)
        capped = length == cap
        if isinstance(action, StartPrefill):
            self.do(
                RunPrefill(
                    key, request.id, epoch, prompt, request.prefix_hashes, length, capped,
                    action.decode_here, key, request.model,
                )
            )  # fmt: skip
        else:
            first = self._around.first_index(action.kv.producer)
            self.do(
                RunDecode(key, request.id, epoch, action.kv, prompt, length, capped, first, request.model)
            )

    def stop(self, request_id: str, epoch: int) -> None:
        """The router gave the work up."""
        if (key := self._keys.pop((request_id, epoch), None)) is not None:
            self._jobs.pop(key, None)
            self.do(Stop(key))

    def die(self) -> None:
        """Do nothing any more: what is on the heap for it must not go on computing."""
        self._dead = True

    def do(self, command: WorkerCommand) -> None:
        """Hand the machine a command."""
        if self._dead:
            return
        self._carry_out(self.machine.handle(command, self._heap.now))

    def _carry_out(self, events: Sequence[WorkerEvent]) -> None:
        for event in events:
            if isinstance(event, StepTokens):
                self._tokens(event)
            else:
                self._emit(event)
        due = self.machine.deadline()
        if due is not None and (self._armed is None or due < self._armed):
            self._armed = due
            self._heap.background(due, self._due, due)

    def _due(self, due: Seconds) -> None:
        # An entry of the heap may have outlived its cause; then time has not to stop here.
        if self._armed == due and not self._dead:
            self._armed = None
            self._carry_out(self.machine.advance(self._heap.now))

    def _emit(self, event: OtherEvent) -> None:
        match event:
            case PullKV():
                self._around.pull(self, event.key, event.kv)
            case KVServed() | KVRefused():
                self._around.served(event)
            case _:
                if (job := self._jobs.get(event.key)) is not None:
                    self._around.say(job.request_id, self._fact(event, job))

    def _fact(self, event: PhaseEvent, job: _Job) -> Fact:
        """What the router is told of a phase."""
        request_id, epoch = job.request_id, job.epoch
        match event:
            case DecodeFinished():
                self._over(event.key, job)
                return DecodeDone(request_id, epoch, event.cost, event.output_tokens, event.reason)
            case PrefillFinished():
                job.phase = Phase.DECODE
                if event.kv is not None:
                    self._over(event.key, job)
                return PrefillDone(request_id, epoch, event.cost, event.cached_tokens, event.kv)
            case KVTaken():
                return KVMoved(request_id, epoch, event.moved_bytes, event.transfer_s)
            case Failed():
                self._over(event.key, job)
                final = event.reason is FailReason.INVALID
                backend, reason = self.machine.spec.id, REASONS[event.reason]
                return PhaseFailed(request_id, epoch, job.phase, backend, reason, event.message, not final)
            case _:
                assert_never(event)

    def _tokens(self, event: StepTokens) -> None:
        jobs, watched = self._jobs, self._around.watched
        for key, index in zip(event.keys, event.indices, strict=True):
            if index == 0:
                if (job := jobs.get(key)) is not None:
                    self._around.say(job.request_id, FirstToken(job.request_id, job.epoch))
                    if job.request_id in watched:
                        watched[job.request_id] = array("d", (event.at,))
            elif watched and (job := jobs.get(key)) is not None and job.request_id in watched:
                watched[job.request_id].append(event.at)

    def _over(self, key: int, job: _Job) -> None:
        del self._jobs[key]
        self._keys.pop((job.request_id, job.epoch), None)
