"""Virtual time: the daemon's core and the mock fleet's machines on one heap.

The driver of a simulation. `now` is the time of the event at hand; nothing sleeps and nothing is random but
the machines' own noise. The network is a fixed delay in each direction; load reports are as stale as in
production. A deadline that a machine no longer has never advances time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Protocol, assert_never

from backends.models.messages import (
    AbortServe,
    FailReason,
    KVArrived,
    KVPullFailed,
    KVRefused,
    KVServed,
    Release,
    ServeKV,
)
from backends.models.worker import WorkerMachine
from router.core.core import RouterCore
from router.core.messages import (
    MAX_BLOCKS_A_FACT,
    Action,
    BackendJoined,
    BackendLost,
    BackendReported,
    Fact,
    FailRequest,
    FinishRequest,
    KVBlocksChanged,
    NoteDecision,
    NotePolicyFault,
    NotePreempted,
    NoteRetry,
    ReleaseKV,
    RequestArrived,
    RequestCancelled,
    StartDecode,
    StartPrefill,
    StopPhase,
)
from router.core.ports import Tap
from router.model import BackendSnapshot, BackendSpec, KVHandle, Report, Request, Seconds
from router.sim.heap import Heap
from router.sim.network import Network, Spread
from router.sim.worker import Worker


class Source(Protocol):
    """Where requests come from: router.sim.traffic.Traffic, or a recording."""

    def next_at(self) -> Seconds | None:
        """When the next request comes, as far as is known; None when none will by itself."""
        ...

    def take(self) -> Request:
        """The request that is due."""
        ...

    def ended(self, request_id: str, now: Seconds, finished: bool) -> None:
        """A request is over; others may follow from that."""
        ...


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
        *,
        done: Callable[[Report, Seconds], None] | None = None,
        fault: Callable[[NotePolicyFault], None] | None = None,
        every_token: bool = False,
    ) -> None:
        """`output_tokens` is the workload's oracle: the true length of an answer, at least 1.

        `done` takes each report as its request ends; without it they are kept in `reports`. `fault` hears of
        answers of the policy that could not be carried out. With every_token
        the workers are woken at every step, and `watched` has the times of the tokens of requests with a
        jitter objective until `done` returns; phases end at the same times.
        """
        self.core = core
        self.reports: list[Report] = []
        self.watched: dict[str, array[float]] = {}
        self.last_arrival: Seconds = 0.0
        self.past: list[tuple[BackendSpec, BackendSnapshot]] = []
        """Last accounts of workers that died."""
        self.stopped = ""
        """Why `stop` was called."""
        self._heap = Heap()
        self._network = network or Network()
        self._oracle = output_tokens
        self._taps = taps
        self._seed = seed
        self._rng = Random(f"{seed}/network")
        self._every_token = every_token
        self._done = done or (lambda report, now: self.reports.append(report))
        self._fault = fault or (lambda note: None)
        self._source: Source | None = None
        self._source_armed: Seconds | None = None
        self._core_armed: Seconds | None = None
        self._live: dict[str, Request] = {}
        self._heard: dict[str, tuple[Seconds, Seconds]] = {}
        """Where delays vary: when the last message about a request was sent, and when it arrives."""
        self._keys = 0
        self._boots = 0
        self._workers: dict[str, Worker] = {}
        self._pulls: dict[int, tuple[Worker, int, Worker]] = {}
        for spec in specs:
            self.join(spec)

    # --- time ---

    @property
    def now(self) -> Seconds:
        """The time of the event at hand."""
        return self._heap.now

    @property
    def events(self) -> int:
        """Events so far, those to come included."""
        return self._heap.events

    @property
    def live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    @property
    def workers(self) -> Iterable[Worker]:
        """Those that are there, in order of joining."""
        return self._workers.values()

    def at(self, time: Seconds, do: Callable[[], None], *, background: bool = False) -> None:
        """Let something happen at a time, after what was set for that time before.

        Background events (load reports, timers that may be dead) are nothing to go on for by themselves.
        """
        (self._heap.background if background else self._heap.at)(time, do)

    def arrive(self, time: Seconds, request: Request) -> None:
        """Let a request arrive."""
        self._heap.at(time, self._open, request)

    def cancel(self, time: Seconds, request_id: str) -> None:
        """Let a caller give up, if its request is live then."""
        self._heap.background(time, self._cancel, request_id)

    def tell(self, fact: Fact) -> None:
        """Let the core know something at this time that no worker says."""
        self._tell(fact)

    def feed(self, source: Source) -> None:
        """Take requests from a source as they come due."""
        self._source = source
        self._arm_source()

    def run(self, until: Seconds = float("inf")) -> None:
        """Go on until `until`, until no request is live and nothing is under way, or until `stop`."""
        self._heap.run(until, self._goes_on)

    def _goes_on(self) -> bool:
        return bool(self._live)

    def stop(self, reason: str) -> None:
        """Let `run` return."""
        self.stopped = reason
        self._heap.halt()

    # --- requests ---

    def _arm_source(self) -> None:
        assert self._source is not None
        due = self._source.next_at()
        if due is not None and (self._source_armed is None or due < self._source_armed):
            self._source_armed = due
            self._heap.at(due, self._source_due, due)

    def _source_due(self, due: Seconds) -> None:
        if self._source_armed != due:
            return
        self._source_armed = None
        source = self._source
        assert source is not None
        while (at := source.next_at()) is not None and at <= self._heap.now:
            self._open(source.take())
        self._arm_source()

    def _open(self, request: Request) -> None:
        self._live[request.id] = request
        self.last_arrival = self._heap.now
        if self._every_token and request.slo.jitter_ratio is not None:
            self.watched[request.id] = array("d")
        self._tell(RequestArrived(request))

    def _cancel(self, request_id: str) -> None:
        if request_id in self._live:
            self._tell(RequestCancelled(request_id))

    def _end(self, report: Report) -> None:
        request_id = report.request.id
        del self._live[request_id]
        self._done(report, self._heap.now)
        self.watched.pop(request_id, None)
        self._heard.pop(request_id, None)
        if self._source is not None:
            self._source.ended(request_id, self._heap.now, report.finish is not None)
            self._arm_source()

    # --- the core ---

    def _tell(self, fact: Fact) -> None:
        self._carry_out(fact, self.core.handle(fact, self._heap.now))

    def _core_due(self, due: Seconds) -> None:
        if self._core_armed == due:
            self._core_armed = None
            self._carry_out(None, self.core.advance(self._heap.now))

    def _carry_out(self, fact: Fact | None, actions: Sequence[Action]) -> None:
        if self._taps:
            for tap in self._taps:
                tap.seen(fact, self._heap.now, actions)
        for action in actions:
            self._execute(action)
        due = self.core.deadline()
        if due is not None and (self._core_armed is None or due < self._core_armed):
            self._core_armed = due
            self._heap.background(due, self._core_due, due)

    def _execute(self, action: Action) -> None:
        match action:
            case StartPrefill() | StartDecode():
                request = self._live[action.request_id]
                self._later(self._start, action, request, self._oracle(request))
            case NoteDecision() | NoteRetry() | NotePreempted():
                pass
            case FinishRequest() | FailRequest():
                self._end(action.report)
            case NotePolicyFault():
                self._fault(action)
            case StopPhase():
                self._later(self._stop, action)
            case ReleaseKV():
                self._later(self._release, action)
            case _:
                assert_never(action)

    # --- the wire: a command travels to a worker, which may be gone when it gets there ---

    def _later(self, do: Callable[..., None], *args: object) -> None:
        self._heap.at(self._heap.now + self._network.one_way_s, do, *args)

    def _start(self, action: StartPrefill | StartDecode, request: Request, output_tokens: int) -> None:
        if (worker := self._workers.get(action.backend)) is not None:
            if worker.idle:
                self._hasten_report(worker)
            worker.start(action, request, output_tokens)

    def _stop(self, action: StopPhase) -> None:
        if (worker := self._workers.get(action.backend)) is not None:
            worker.stop(action.request_id, action.epoch)

    def _release(self, action: ReleaseKV) -> None:
        if (worker := self._workers.get(action.backend)) is not None:
            worker.do(Release(action.kv))

    def say(self, request_id: str, fact: Fact) -> None:
        """A worker's message about a request is on its way to the router."""
        due = self._heap.now + self._network.one_way_s
        if self._network.up is not None:
            due = self._heard_at(request_id, due, self._network.up)
        self._heap.at(due, self._tell, fact)

    def _heard_at(self, request_id: str, due: Seconds, up: Spread) -> Seconds:
        """Messages about one request keep their order, and what is said at one moment travels in one frame.

        Those about different requests may overtake each other. On a lane none does, but there a delay lasts
        for many messages, and delays that are drawn apart would pile up behind the longest.
        """
        said, heard = self._heard.get(request_id, (-1.0, 0.0))
        if said < self._heap.now:
            heard = max(heard, due + up.draw(self._rng))
            self._heard[request_id] = (self._heap.now, heard)
        return heard

    # --- workers ---

    def join(self, spec: BackendSpec) -> None:
        """A worker connects, for the first time or again with nothing of what it had."""
        boot = f"boot-{self._boots}"
        self._boots += 1
        rng = Random(
            f"{self._seed}/{spec.id}/{boot}" if spec.id in self._workers else f"{self._seed}/{spec.id}"
        )
        now = self._heap.now
        machine = WorkerMachine(spec, boot, rng, now, emit_tokens=self._every_token)
        worker = self._workers[spec.id] = Worker(self, self._heap, machine, boot)
        worker.reported_at = now
        self._tell(BackendJoined(spec, boot))
        self._heap.background(now + self._network.report_every_s, self._report, worker, now)

    def kill(self, backend: str) -> None:
        """A worker, if it is there, vanishes with all it has; the router hears of it a moment later."""
        gone = self._workers.pop(backend, None)
        if gone is None:
            return
        gone.die()
        self.past.append((gone.machine.spec, gone.machine.snapshot(self._heap.now)))
        for pull, (producer, key, consumer) in list(self._pulls.items()):
            if consumer is gone:
                del self._pulls[pull]
                producer.do(AbortServe(pull))
            elif producer is gone:
                del self._pulls[pull]
                consumer.do(KVPullFailed(key, FailReason.KV_TRANSFER, f"{backend} is gone"))
        self._heap.at(self._heap.now + self._network.one_way_s, self._tell, BackendLost(backend, "killed"))

    def next_key(self) -> int:
        """A key that no worker has seen."""
        self._keys += 1
        return self._keys

    def first_index(self, producer: str) -> int:
        """1 if the prefill worker gave the first token away, else 0."""
        known = self.core.fleet.find(producer)
        return int(known is not None and known.spec.connector.first_token_from_prefill)

    def pull(self, consumer: Worker, key: int, kv: KVHandle) -> None:
        """A decode worker asks a prefill worker for KV."""
        producer = self._workers.get(kv.producer)
        if producer is None:
            consumer.do(KVPullFailed(key, FailReason.KV_TRANSFER, f"{kv.producer} is gone"))
            return
        pull = self.next_key()
        self._pulls[pull] = (producer, key, consumer)
        command = ServeKV(pull, kv, consumer.machine.spec.id)
        if self._network.pull is None:
            producer.do(command)
        else:
            due = self._heap.now + self._network.pull.draw(self._rng)
            self._heap.at(due, self._serve, producer, command)

    def _serve(self, producer: Worker, command: ServeKV) -> None:
        if command.pull in self._pulls and self._workers.get(command.kv.producer) is producer:
            producer.do(command)

    def served(self, event: KVServed | KVRefused) -> None:
        """The answer of a prefill worker."""
        asked = self._pulls.pop(event.pull, None)
        if asked is None:
            return  # whoever asked is gone
        _, key, consumer = asked
        if isinstance(event, KVServed):
            consumer.do(KVArrived(key, event.moved_bytes, event.transfer_s, event.fingerprint))
        else:
            consumer.do(KVPullFailed(key, event.reason, event.message))

    # --- load reports ---

    def _hasten_report(self, worker: Worker) -> None:
        """An idle worker gets work: its next report comes with it, not with the next heartbeat."""
        worker.reported_at = since = self._heap.now
        self._heap.background(since + self._network.report_every_s, self._report, worker, since)

    def _report_blocks(self, worker: Worker, due: Seconds) -> None:
        backend, boot, most = worker.machine.spec.id, worker.incarnation, MAX_BLOCKS_A_FACT
        stored, removed = worker.machine.take_kv_changes()
        for at in range(0, max(len(stored), len(removed)), most):
            some, gone = tuple(stored[at : at + most]), tuple(removed[at : at + most])
            self._heap.background(due, self._tell, KVBlocksChanged(backend, boot, some, gone))

    def _report(self, worker: Worker, since: Seconds) -> None:
        backend, now = worker.machine.spec.id, self._heap.now
        if worker.reported_at != since or self._workers.get(backend) is not worker:
            return  # hastened, or gone
        worker.reported_at = now
        snapshot = worker.machine.snapshot(now)
        due = now + self._network.one_way_s
        self._heap.background(due, self._tell, BackendReported(backend, snapshot))
        if self._network.kv_events:
            self._report_blocks(worker, due)
        every_s = self._network.heartbeat_s if worker.idle else self._network.report_every_s
        self._heap.background(now + every_s, self._report, worker, now)
