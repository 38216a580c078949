"""RouterCore: facts and the present time in, actions out.

It admits requests, asks the policy where their phases go, books the load in the same step, and sees to it
that every request ends exactly once, whatever fails on the way. It knows no clock, no I/O, no tokens and no
engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, assert_never

from router.core import feasible
from router.core.admission import AdmissionQueue, Limits, RetryBudget
from router.core.choice import Chooser, Plan
from router.core.fleet import Fleet, FleetWithout
from router.core.flight import Flight, Stage
from router.core.lessons import Lessons
from router.core.messages import (
    Actions,
    BackendCordoned,
    BackendJoined,
    BackendLost,
    BackendRemoved,
    BackendReported,
    DecodeDone,
    DrainStarted,
    Fact,
    FirstToken,
    KVMoved,
    NoteDecision,
    NoteRetry,
    PhaseFailed,
    PolicyOverran,
    PolicyReplaced,
    PrefillDone,
    RequestArrived,
    RequestCancelled,
)
from router.core.ports import FleetView, ModelSource, Policy
from router.core.relay import Relay
from router.core.timers import Timer
from router.errors import PolyphaseError, Reason
from router.model import (
    BackendSnapshot,
    BackendState,
    Phase,
    Placement,
    Priority,
    Reject,
    Request,
    RoutePlan,
    Seconds,
    Wait,
)

WHY_CANCELLED: Final = {
    Reason.CANCELLED: "the client cancelled it, or is gone",
    Reason.SLOW_READER: "the client did not read its tokens in time",
    Reason.DRAINING: "the router shuts down and its grace is over; send the request to another router",
}


class RouterCore:
    """A Machine of facts and actions. `now` never decreases from call to call."""

    def __init__(
        self, policy: Policy, fallback: Policy, models: ModelSource, limits: Limits | None = None
    ) -> None:
        self._limits = limits or Limits()
        self.fleet = Fleet()
        """For reading: listing backends, waiting for a drain."""
        self._chooser = Chooser(policy, fallback, self._limits)
        self._relay = Relay(self.fleet, models, self._limits)
        self._lessons = Lessons(models, self.fleet, self._relay)
        self._queue = AdmissionQueue(self._limits.queue_capacity)
        self._retries = RetryBudget(self._limits)
        self._draining = False
        self._now: Seconds = float("-inf")

    # --- the machine ---

    def handle(self, fact: Fact, now: Seconds) -> Actions:
        """Take one fact and say what follows from it."""
        self._tick(now)
        self._lessons.take(fact, now)
        freed = self._take(fact, now)
        if freed:
            self._place_waiting(now)
        self._chooser.observe(fact, now)
        return self._actions()

    def advance(self, now: Seconds) -> Actions:
        """Do what became due."""
        self._tick(now)
        while (due := self._relay.timers.due(now)) is not None:
            self._expire(*due, now)
        self._place_waiting(now)
        return self._actions()

    def deadline(self) -> Seconds | None:
        """When `advance` is next needed."""
        return self._relay.timers.next_at()

    def plan(self, request: Request, now: Seconds) -> Plan:
        """What would be decided for a request, without any effect. Raises PolyphaseError when refused."""
        self._refuse_impossible(request, now)
        return self._chooser.dry_run(request, self.fleet, now)

    @property
    def live_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._relay.flights)

    @property
    def relay(self) -> Relay:
        """The books of the live requests; for reading."""
        return self._relay

    def queue_depth(self, priority: Priority) -> int:
        """Requests of one class that wait for a place."""
        return self._queue.depth(priority)

    def _tick(self, now: Seconds) -> None:
        assert now >= self._now, f"time went back from {self._now} to {now}"
        self._now = now

    def _actions(self) -> Actions:
        actions = self._relay.out
        actions.extend(self._chooser.take_notes())
        self._relay.out = []
        return actions

    def _take(self, fact: Fact, now: Seconds) -> bool:
        """Handle a fact; says whether a waiting request may have a place now."""
        match fact:
            case RequestArrived():
                self._arrived(fact.request, now)
                return False
            case FirstToken():
                if (flight := self._relay.current(fact.request_id, fact.epoch)) is not None:
                    flight.timeline.first_token = now
                return False
            case PrefillDone():
                self._prefilled(fact, now)
            case KVMoved():
                self._moved(fact, now)
            case DecodeDone():
                self._decoded(fact, now)
            case PhaseFailed():
                self._failed(fact, now)
            case RequestCancelled():
                self._cancelled(fact, now)
            case _:
                return self._take_fleet(fact, now)
        return True

    def _take_fleet(
        self,
        fact: BackendJoined
        | BackendLost
        | BackendRemoved
        | BackendCordoned
        | BackendReported
        | PolicyReplaced
        | PolicyOverran
        | DrainStarted,
        now: Seconds,
    ) -> bool:
        match fact:
            case BackendReported():
                return self._reported(fact.backend, fact.snapshot)
            case BackendJoined():
                self._joined(fact, now)
            case BackendLost():
                self._lost(fact.backend, fact.message, now)
            case BackendRemoved():
                self._lost(fact.backend, "it was removed", now)
                self.fleet.remove(fact.backend)
            case BackendCordoned():
                self.fleet.cordon(fact.backend, fact.cordoned or fact.draining, fact.draining)
            case PolicyReplaced():
                self._chooser.replace(fact.policy)
            case PolicyOverran():
                self._chooser.fault("slow", f"a decision took {fact.duration_s:.3f} s", now)
                return False
            case DrainStarted():
                self._draining = True
                return False
            case _:
                assert_never(fact)
        return True

    # --- admission ---

    def _arrived(self, request: Request, now: Seconds) -> None:
        flight = self._relay.open(request, now)
        try:
            self._refuse_impossible(request, now)
        except PolyphaseError as error:
            self._relay.fail(flight, error.reason, error.message, error.retry_after_s, now)
            return
        self._retries.deposit(now)
        if not self._queue.has_before(request) and self._offer(flight, now):
            return
        if flight.stage is Stage.QUEUED:
            self._wait(flight, now)

    def _refuse_impossible(self, request: Request, now: Seconds) -> None:
        if self._draining:
            raise PolyphaseError(
                Reason.DRAINING,
                "this router is shutting down; send the request to another",
                retry_after_s=1.0,
            )
        if request.deadline <= now:
            raise PolyphaseError(
                Reason.DEADLINE_EXPIRED, "the deadline had passed on arrival; nothing was started"
            )
        if not self.fleet.for_model(request.model):
            raise PolyphaseError(
                Reason.UNKNOWN_MODEL,
                f"no backend serves model {request.model!r}; `polyphase fleet ls` lists what is served",
            )
        least_s = feasible.least_time_s(request, self.fleet, self._lessons.bounds)
        if now + least_s > request.deadline:
            raise PolyphaseError(
                Reason.DEADLINE_INFEASIBLE,
                f"the deadline is {request.deadline - now:.3f} s away and the fastest backend needs"
                f" {least_s:.3f} s for this prompt alone; nothing was started",
            )

    def _wait(self, flight: Flight, now: Seconds) -> None:
        request = flight.request
        self._relay.timers.set(now + self._limits.max_queue_s, Timer.QUEUE, request.id, flight.epoch)
        shed = self._queue.push(request)
        if shed is not None:
            reason = Reason.QUEUE_FULL if shed.id == request.id else Reason.SHED
            message = f"{self._limits.queue_capacity} requests wait already; retry later, or add backends"
            self._relay.fail(self._relay.flights[shed.id], reason, message, 1.0, now)

    def _place_waiting(self, now: Seconds) -> None:
        """Offer places to what waits: first to decodes whose KV fills a producer, then to the queue."""
        for flight in tuple(self._relay.unbound.values()):
            self._bind(flight, now)
        if not len(self._queue):
            return
        blocked: set[str] = set()  # a model's lower classes do not take what its higher ones wait for
        for model, line in self._queue.lines():
            if model not in blocked and not self._place_line(line, now):
                blocked.add(model)

    def _place_line(self, line: Sequence[Request], now: Seconds) -> bool:
        """Offer places to one line, in turn; False when some have to wait that would go anywhere.

        One that avoids a backend which failed it holds nobody else up who would go there.
        """
        waits, placed = 0, True
        for request in line:
            flight = self._relay.flights[request.id]
            if self._offer(flight, now) or flight.stage is not Stage.QUEUED:
                self._queue.remove(request)
                continue
            placed = placed and bool(flight.avoid)
            waits += 1
            if waits == self._limits.scan:
                break
        return placed

    def _offer(self, flight: Flight, now: Seconds) -> bool:
        """Ask the policy for a place. False while the request has to wait, and when it was refused."""
        answer = self._chooser.plan(flight.request, self._elsewhere(flight), now)
        match answer:
            case RoutePlan():
                self._relay.dispatch(flight, answer, now)
                self._relay.out.append(NoteDecision(flight.request.id, answer.decision))
                return True
            case Wait():
                return False
            case Reject():
                self._reject(flight, answer, now)
                return False
            case _:
                assert_never(answer)

    def _reject(self, flight: Flight, answer: Reject, now: Seconds) -> None:
        flight.decision = answer.decision or flight.decision
        reason = Reason.DEADLINE_INFEASIBLE if answer.infeasible_deadline else Reason.POLICY_REJECTED
        self._relay.fail(flight, reason, answer.reason, 0.0, now)

    def _elsewhere(self, flight: Flight) -> FleetView:
        """The fleet without the backends that failed this request, unless nothing else is left."""
        if not flight.avoid:
            return self.fleet
        others = FleetWithout(self.fleet, flight.avoid)
        ready = [v for v in others.for_model(flight.request.model) if v.state is BackendState.READY]
        offered = {phase for view in ready for phase in view.spec.phases}
        return others if offered >= {Phase.PREFILL, Phase.DECODE} else self.fleet

    # --- phases ---

    def _prefilled(self, fact: PrefillDone, now: Seconds) -> None:
        flight = self._relay.current(fact.request_id, fact.epoch)
        if flight is None or flight.stage is not Stage.PREFILL:
            self._relay.release_stale(fact)
            return
        self._relay.prefilled(flight, fact, now)  # decode is bound with everything else that waits

    def _bind(self, flight: Flight, now: Seconds) -> None:
        """Send decode to where the plan has it, or ask the policy anew."""
        if flight.decode is not None and not self._can_receive(flight.decode):
            self._relay.unbind(flight)
        backend = flight.decode if flight.decode is not None else self._late_binding(flight, now)
        if backend is None or flight.stage is not Stage.BINDING:
            return
        if self._relay.lease_lasts(flight, backend, now):
            self._relay.bind(flight, backend, now)
        else:
            self._retry(flight, Phase.PREFILL, "", Reason.KV_STALE, "the KV lease is too short", now)

    def _late_binding(self, flight: Flight, now: Seconds) -> str | None:
        fleet = self._elsewhere(flight)
        answer = self._chooser.bind_decode(flight.request, flight.prefill, fleet, now)
        match answer:
            case Placement():
                flight.decision = answer.decision
                self._relay.out.append(NoteDecision(flight.request.id, answer.decision))
                return answer.backend
            case Wait():
                return None
            case Reject():
                self._relay.abandon(flight)
                self._reject(flight, answer, now)
                return None
            case _:
                assert_never(answer)

    def _can_receive(self, backend: str) -> bool:
        """Work that was booked before a cordon still goes to the cordoned backend."""
        known = self.fleet.find(backend)
        return known is not None and known.connected

    def _moved(self, fact: KVMoved, now: Seconds) -> None:
        flight = self._relay.current(fact.request_id, fact.epoch)
        if flight is not None and flight.stage is Stage.HANDOFF:
            self._relay.moved(flight, fact, now)

    def _decoded(self, fact: DecodeDone, now: Seconds) -> None:
        flight = self._relay.current(fact.request_id, fact.epoch)
        if flight is not None and flight.stage is not Stage.QUEUED:
            self._relay.decoded(flight, fact, now)

    # --- ends and new attempts ---

    def _failed(self, fact: PhaseFailed, now: Seconds) -> None:
        flight = self._relay.current(fact.request_id, fact.epoch)
        if flight is None or flight.stage is Stage.QUEUED:
            return
        if fact.retryable:
            self._retry(flight, fact.phase, fact.backend, fact.reason, fact.message, now)
        else:
            self._relay.abandon(flight)
            self._relay.fail(flight, fact.reason, f"{fact.backend}: {fact.message}", 0.0, now)

    def _retry(
        self, flight: Flight, phase: Phase, backend: str, reason: Reason, message: str, now: Seconds
    ) -> None:
        """Start a request anew elsewhere, or end it when that cannot be done without harm."""
        self._relay.abandon(flight)
        where = f"{phase} on {backend} failed" if backend else f"{phase} has to be done again"
        obstacle = self._obstacle(flight, now)
        if obstacle is not None:
            end = reason if flight.token_out else Reason.RETRIES_EXHAUSTED
            self._relay.fail(flight, end, f"{where} ({reason}: {message}); {obstacle}", 1.0, now)
            return
        if backend and backend not in flight.avoid:
            flight.avoid = (*flight.avoid, backend)
        self._relay.out.append(NoteRetry(flight.request.id, phase, backend, reason))
        self._relay.restart(flight)
        if not self._offer(flight, now) and flight.stage is Stage.QUEUED:
            self._relay.timers.set(
                now + self._limits.max_queue_s, Timer.QUEUE, flight.request.id, flight.epoch
            )
            self._queue.push_front(flight.request)

    def _obstacle(self, flight: Flight, now: Seconds) -> str | None:
        if flight.token_out:
            return "the client has tokens already, so the request cannot start anew; send it again"
        if flight.epoch >= self._limits.max_attempts:
            return f"{flight.epoch} attempts were made, the most allowed; look at the backends named above"
        if not self._retries.withdraw(now):
            return "the retry budget is spent, which means that many requests fail; look at the fleet"
        return None

    def _cancelled(self, fact: RequestCancelled, now: Seconds) -> None:
        if (flight := self._relay.flights.get(fact.request_id)) is not None:
            message = WHY_CANCELLED.get(fact.reason, "it was given up")
            retry_after_s = 1.0 if fact.reason is Reason.DRAINING else 0.0
            self._drop(flight, fact.reason, message, now, retry_after_s)

    def _drop(
        self, flight: Flight, reason: Reason, message: str, now: Seconds, retry_after_s: Seconds = 0.0
    ) -> None:
        if flight.stage is Stage.QUEUED:
            self._queue.remove(flight.request)
        self._relay.abandon(flight)
        self._relay.fail(flight, reason, message, retry_after_s, now)

    def _expire(self, timer: Timer, request_id: str, now: Seconds) -> None:
        flight = self._relay.flights[request_id]
        match timer:
            case Timer.DEADLINE:
                message = f"the deadline passed in stage {flight.stage}; the work was stopped"
                self._drop(flight, Reason.DEADLINE_EXPIRED, message, now)
            case Timer.QUEUE:
                message = f"no place within {self._limits.max_queue_s:.0f} s; retry later, or add backends"
                self._queue.remove(flight.request)
                self._relay.fail(flight, Reason.SHED, message, 1.0, now)
            case Timer.LEASE:
                self._retry(flight, Phase.PREFILL, "", Reason.KV_STALE, "its KV lease ran out", now)
            case Timer.PREFILL:
                self._stalled(flight, timer, Phase.PREFILL, Reason.BACKEND_STALLED, now)
            case Timer.HANDOFF:
                self._stalled(flight, timer, Phase.DECODE, Reason.KV_TRANSFER_FAILED, now)
            case _:
                assert_never(timer)

    def _stalled(self, flight: Flight, timer: Timer, phase: Phase, reason: Reason, now: Seconds) -> None:
        backend = flight.prefill if phase is Phase.PREFILL else flight.decode
        assert backend is not None
        if not self._relay.still_queued(flight, timer, backend, now):
            message = f"no sign of life for {self._limits.stall_factor:.0f} times the predicted time"
            self._retry(flight, phase, backend, reason, message, now)

    # --- the fleet ---

    def _joined(self, fact: BackendJoined, now: Seconds) -> None:
        known = self.fleet.find(fact.spec.id)
        if known is not None and known.connected:
            self._lost(fact.spec.id, "it restarted", now)
        self.fleet.join(fact.spec, fact.incarnation, fact.address)
        self._relay.forgive(fact.spec.id)

    def _lost(self, backend: str, message: str, now: Seconds) -> None:
        """Everything at a lost backend is gone: start it anew elsewhere where that is possible."""
        self.fleet.lose(backend)
        for flight in list(self._relay.flights.values()):
            working = flight.working_at()
            if working is not None and working[1] == backend:
                self._retry(flight, working[0], backend, Reason.BACKEND_LOST, message, now)
            elif flight.stage is Stage.BINDING and flight.prefill == backend:
                self._retry(flight, Phase.PREFILL, backend, Reason.BACKEND_LOST, message, now)
            elif flight.decode == backend:
                self._relay.unbind(flight)
        self._relay.forget(backend)

    def _reported(self, backend: str, snapshot: BackendSnapshot) -> bool:
        """Says whether the backend has more room than it had by its last report."""
        known = self.fleet.find(backend)
        if known is None:
            return False
        before = known.snapshot
        self.fleet.report(backend, snapshot)
        return before is not None and (
            snapshot.kv_used_tokens < before.kv_used_tokens or snapshot.waiting < before.waiting
        )
