"""Virtual time: the daemon's core and the mock fleet's machines on one heap.

The driver of a simulation. `now` is the time of the event at hand; nothing sleeps and nothing is random but
the machines' own noise. The network is a fixed delay in each direction; load reports are as stale as in
production. A deadline that a machine no longer has never advances time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, assert_never

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
    RunDecode,
    RunPrefill,
    ServeKV,
    StepTokens,
    Stop,
    WorkerCommand,
    WorkerEvent,
)
from backends.models.worker import WorkerMachine
from router.core.core import RouterCore
from router.core.messages import (
    Action,
    BackendJoined,
    BackendLost,
    BackendReported,
    DecodeDone,
    Fact,
    FailRequest,
    FinishRequest,
    FirstToken,
    KVMoved,
    NoteDecision,
    NotePolicyFault,
    NoteRetry,
    PhaseFailed,
    PrefillDone,
    ReleaseKV,
    RequestArrived,
    StartDecode,
    StartPrefill,
    StopPhase,
)
from router.core.ports import Tap
from router.errors import Reason
from router.model import BackendSpec, KVHandle, Phase, Report, Request, Seconds

REASONS: Mapping[FailReason, Reason] = {
    FailReason.INVALID: Reason.REQUEST_TOO_LARGE,
    FailReason.CAPACITY: Reason.BACKEND_FAILED,
    FailReason.KV_STALE: Reason.KV_STALE,
    FailReason.KV_LAYOUT: Reason.KV_STALE,
    FailReason.KV_TRANSFER: Reason.KV_TRANSFER_FAILED,
    FailReason.DRAINING: Reason.BACKEND_FAILED,
    FailReason.INTERNAL: Reason.BACKEND_FAILED,
}


@dataclass(frozen=True, slots=True)
class Network:
    """Delays between router and workers."""

    one_way_s: Seconds = 0.0005
    report_every_s: Seconds = 0.05
    """A load report leaves each worker this often (the live worker's cadence)."""


@dataclass(slots=True)
class _Job:
    """What a worker's key stands for."""

    request_id: str
    epoch: int
    phase: Phase


class World:
    """One core and its workers, until nothing is left to happen."""

    def __init__(
        self,
        core: RouterCore,
        specs: Iterable[BackendSpec],
        output_tokens: Callable[[Request], int],
        seed: int = 0,
        network: Network | None = None,
        taps: Sequence[Tap] = (),
    ) -> None:
        """`output_tokens` is the workload's oracle: the true length of an answer, at least 1."""
        self.core = core
        self.now: Seconds = 0.0
        self.reports: list[Report] = []
        self._network = network or Network()
        self._oracle = output_tokens
        self._taps = taps
        self._heap: list[tuple[Seconds, int, bool, Callable[[], None]]] = []
        self._seq = 0
        self._foreground = 0
        self._core_armed: Seconds | None = None
        self._live: dict[str, Request] = {}
        self._keys = 0
        self._workers: dict[str, _Worker] = {}
        self._pulls: dict[int, tuple[_Worker, int, _Worker]] = {}
        for i, spec in enumerate(specs):
            machine = WorkerMachine(spec, f"boot-{i}", Random(f"{seed}/{spec.id}"), 0.0, emit_tokens=False)
            self._workers[spec.id] = _Worker(self, machine)
            self._tell(BackendJoined(spec, f"boot-{i}"))
            self._report_later(spec.id)

    # --- time ---

    def at(self, time: Seconds, do: Callable[[], None], *, background: bool = False) -> None:
        """Let something happen at a time, after what was set for that time before.

        Background events (load reports, timers that may be dead) are nothing to go on for by themselves.
        """
        self._seq += 1
        self._foreground += not background
        heapq.heappush(self._heap, (max(time, self.now), self._seq, background, do))

    def arrive(self, time: Seconds, request: Request) -> None:
        """Let a request arrive."""
        self.at(time, lambda: self._open(request))

    def run(self, until: Seconds = float("inf")) -> None:
        """Go on until `until`, or until no request is live and nothing is under way."""
        while self._heap and self._heap[0][0] <= until and (self._live or self._foreground):
            self.now, _, background, do = heapq.heappop(self._heap)
            self._foreground -= not background
            do()

    def _later(self, do: Callable[[], None], *, background: bool = False) -> None:
        self.at(self.now + self._network.one_way_s, do, background=background)

    # --- the core ---

    def _open(self, request: Request) -> None:
        self._live[request.id] = request
        self._tell(RequestArrived(request))

    def _tell(self, fact: Fact) -> None:
        self._carry_out(fact, self.core.handle(fact, self.now))

    def _core_due(self, due: Seconds) -> None:
        if self._core_armed == due:
            self._core_armed = None
            self._carry_out(None, self.core.advance(self.now))

    def _carry_out(self, fact: Fact | None, actions: Sequence[Action]) -> None:
        for tap in self._taps:
            tap.seen(fact, self.now, actions)
        for action in actions:
            self._execute(action)
        due = self.core.deadline()
        if due is not None and (self._core_armed is None or due < self._core_armed):
            self._core_armed = due
            self.at(due, lambda: self._core_due(due), background=True)

    def _execute(self, action: Action) -> None:
        match action:
            case StartPrefill() | StartDecode():
                request = self._live[action.request_id]
                self._command(action.backend, lambda to: to.start(action, request, self._oracle(request)))
            case StopPhase():
                self._command(action.backend, lambda to: to.stop(action.request_id, action.epoch))
            case ReleaseKV():
                self._command(action.backend, lambda to: to.do(Release(action.kv)))
            case FinishRequest() | FailRequest():
                del self._live[action.request_id]
                self.reports.append(action.report)
            case NoteDecision() | NoteRetry() | NotePolicyFault():
                pass
            case _:
                assert_never(action)

    # --- workers ---

    def _command(self, backend: str, do: Callable[[_Worker], None]) -> None:
        """A command travels to a worker, which may be gone when it gets there."""

        def arrived() -> None:
            if (worker := self._workers.get(backend)) is not None:
                do(worker)

        self._later(arrived)

    def kill(self, backend: str) -> None:
        """A worker vanishes with everything it has."""
        gone = self._workers.pop(backend)
        for pull, (producer, _, consumer) in list(self._pulls.items()):
            if consumer is gone:
                producer.do(AbortServe(pull))
        self._tell(BackendLost(backend, "killed"))

    def next_key(self) -> int:
        """A key that no worker has seen."""
        self._keys += 1
        return self._keys

    def say(self, fact: Fact, *, background: bool = False) -> None:
        """A worker's message is on its way to the router."""
        self._later(lambda: self._tell(fact), background=background)

    def pull(self, consumer: _Worker, key: int, kv: KVHandle) -> None:
        """A decode worker asks a prefill worker for KV."""
        producer = self._workers.get(kv.producer)
        if producer is None:
            consumer.do(KVPullFailed(key, FailReason.KV_TRANSFER, f"{kv.producer} is gone"))
            return
        pull = self.next_key()
        self._pulls[pull] = (producer, key, consumer)
        producer.do(ServeKV(pull, kv, consumer.machine.spec.id))

    def served(self, event: KVServed | KVRefused) -> None:
        """The answer of a prefill worker."""
        _, key, consumer = self._pulls.pop(event.pull)
        if isinstance(event, KVServed):
            consumer.do(KVArrived(key, event.moved_bytes, event.transfer_s, event.fingerprint))
        else:
            consumer.do(KVPullFailed(key, event.reason, event.message))

    def _report_later(self, backend: str) -> None:
        due = self.now + self._network.report_every_s
        self.at(due, lambda: self._report(backend), background=True)

    def _report(self, backend: str) -> None:
        worker = self._workers.get(backend)
        if worker is not None:
            self.say(BackendReported(backend, worker.machine.snapshot(self.now)), background=True)
            self._report_later(backend)


class _Worker:
    """Drives one worker machine: wakes it at its deadline, turns its events into facts."""

    def __init__(self, world: World, machine: WorkerMachine) -> None:
        self.machine = machine
        self._world = world
        self._jobs: dict[int, _Job] = {}
        self._keys: dict[tuple[str, int], int] = {}
        self._armed: Seconds | None = None

    def start(self, action: StartPrefill | StartDecode, request: Request, output_tokens: int) -> None:
        """A command of the router."""
        key = self._world.next_key()
        phase = Phase.PREFILL if isinstance(action, StartPrefill) else Phase.DECODE
        self._jobs[key] = _Job(action.request_id, action.epoch, phase)
        self._keys[action.request_id, action.epoch] = key
        length = min(output_tokens, request.max_new_tokens)
        common: dict[str, Any] = {
            "key": key,
            "request_id": request.id,
            "epoch": action.epoch,
            "prompt_tokens": request.prompt_tokens,
            "output_tokens": length,
            "length_capped": length == request.max_new_tokens,
        }
        if isinstance(action, StartPrefill):
            here = action.decode_here
            self.do(
                RunPrefill(**common, prefix_hashes=request.prefix_hashes, decode_here=here, fingerprint=key)
            )
        else:
            producer = self._world.core.fleet.find(action.kv.producer)
            first = producer is not None and producer.spec.connector.first_token_from_prefill
            self.do(RunDecode(**common, kv=action.kv, first_index=int(first)))

    def stop(self, request_id: str, epoch: int) -> None:
        """The router gave the work up."""
        if (key := self._keys.pop((request_id, epoch), None)) is not None:
            self._jobs.pop(key, None)
            self.do(Stop(key))

    def do(self, command: WorkerCommand) -> None:
        """Hand the machine a command."""
        self._carry_out(self.machine.handle(command, self._world.now))

    def _carry_out(self, events: Sequence[WorkerEvent]) -> None:
        for event in events:
            self._emit(event)
        due = self.machine.deadline()
        if due is not None and (self._armed is None or due < self._armed):
            self._armed = due
            self._world.at(due, lambda: self._due(due), background=True)

    def _due(self, due: Seconds) -> None:
        # An entry of the heap may have outlived its cause; then time has not to stop here.
        if self._armed == due:
            self._armed = None
            self._carry_out(self.machine.advance(self._world.now))

    def _emit(self, event: WorkerEvent) -> None:
        match event:
            case StepTokens():
                self._first_tokens(event)
            case PullKV():
                self._world.pull(self, event.key, event.kv)
            case KVServed() | KVRefused():
                self._world.served(event)
            case _:
                self._phase_event(event)

    def _phase_event(self, event: PrefillFinished | KVTaken | DecodeFinished | Failed) -> None:
        job = self._jobs.get(event.key)
        if job is None:
            return
        name = (job.request_id, job.epoch)
        match event:
            case PrefillFinished():
                job.phase = Phase.DECODE
                if event.kv is not None:
                    self._over(event.key, job)
                self._world.say(PrefillDone(*name, event.cost, event.cached_tokens, event.kv))
            case KVTaken():
                self._world.say(KVMoved(*name, event.moved_bytes, event.transfer_s))
            case DecodeFinished():
                self._over(event.key, job)
                self._world.say(DecodeDone(*name, event.cost, event.output_tokens, event.reason))
            case Failed():
                self._over(event.key, job)
                final = event.reason is FailReason.INVALID
                backend = self.machine.spec.id
                reason = REASONS[event.reason]
                self._world.say(PhaseFailed(*name, job.phase, backend, reason, event.message, not final))
            case _:
                assert_never(event)

    def _first_tokens(self, event: StepTokens) -> None:
        for key, index in zip(event.keys, event.indices, strict=True):
            job = self._jobs.get(key)
            if job is not None and index == 0:
                self._world.say(FirstToken(job.request_id, job.epoch))

    def _over(self, key: int, job: _Job) -> None:
        del self._jobs[key]
        self._keys.pop((job.request_id, job.epoch), None)
