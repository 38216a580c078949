"""RouterCore: facts and the present time in, actions out.

It admits requests, asks the policy where their phases go, books the load in the same step, and sees to it
that every request ends exactly once, whatever fails on the way. It knows no clock, no I/O, no tokens and no
engine.
"""

from __future__ import annotations

from typing import Final, assert_never

from router.core import feasible
from router.core.admission import Limits, RetryBudget
from router.core.choice import Chooser, Plan
from router.core.fleet import Fleet
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
    KVBlocksChanged,
    KVMoved,
    NoteRetry,
    PhaseFailed,
    PolicyOverran,
    PolicyReplaced,
    PrefillDone,
    PricesRevised,
    RequestArrived,
    RequestCancelled,
)
from router.core.placing import Placing
from router.core.ports import ModelSource, Policy, PriceTaker
from router.core.relay import Relay
from router.core.timers import Timer
from router.errors import PolyphaseError, Reason
from router.model import (
    Phase,
    Priority,
    Request,
    Seconds,
)
from router.prices import PriceProblem, Unpriced

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
        self._placing = Placing(self.fleet, self._chooser, self._relay, self._limits)
        self._retries = RetryBudget(self._limits)
        self._draining = False
        self._now: Seconds = float("-inf")

    # --- the machine ---

    def handle(self, fact: Fact, now: Seconds) -> Actions:
        """Take one fact and say what follows from it."""
        self._tick(now)
        self._lessons.take(fact, now)
        self._take(fact, now)
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

    def price_problem(self, now: Seconds) -> PriceProblem | Unpriced | None:
        """What the policy wants prices for, without any effect; None for one that takes none."""
        policy = self._chooser.policy
        return policy.price_problem(self.fleet, now) if isinstance(policy, PriceTaker) else None

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
        return self._placing.queue.depth(priority)

    def _tick(self, now: Seconds) -> None:
        assert now >= self._now, f"time went back from {self._now} to {now}"
        self._now = now

    def _actions(self) -> Actions:
        actions = self._relay.out
        actions.extend(self._chooser.take_notes())
        self._relay.out = []
        return actions

    def _take(self, fact: Fact, now: Seconds) -> None:
        match fact:
            case RequestArrived():
                self._arrived(fact.request, now)
            case FirstToken():
                if (flight := self._relay.current(fact.request_id, fact.epoch)) is not None:
                    flight.timeline.first_token = now
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
                self._take_fleet(fact, now)

    def _take_fleet(
        self,
        fact: BackendJoined
        | BackendLost
        | BackendRemoved
        | BackendCordoned
        | BackendReported
        | KVBlocksChanged
        | PolicyReplaced
        | PolicyOverran
        | PricesRevised
        | DrainStarted,
        now: Seconds,
    ) -> None:
        match fact:
            case BackendReported():
                self.fleet.report(fact.backend, fact.snapshot)
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
                self.fleet.offer_again(self._placing.queue.models())
            case PolicyOverran():
                self._chooser.fault("slow", f"a decision took {fact.duration_s:.3f} s", now)
            case PricesRevised() | KVBlocksChanged():
                pass  # for the policy, which sees every fact
            case DrainStarted():
                self._draining = True
            case _:
                assert_never(fact)

    # --- admission ---

    def _arrived(self, request: Request, now: Seconds) -> None:
        flight = self._relay.open(request, now)
        try:
            self._refuse_impossible(request, now)
        except PolyphaseError as error:
            self._relay.fail(flight, error.reason, error.message, error.retry_after_s, now)
            return
        self._retries.deposit(now)
        self._placing.admit(flight, now)

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

    def _place_waiting(self, now: Seconds) -> None:
        """Offer places where room came free, until no more does: a decode that is given up frees some."""
        while models := self.fleet.take_roomier():
            for flight in self._placing.place_waiting(models, now):
                self._retry(flight, Phase.PREFILL, "", Reason.KV_STALE, "the KV lease is too short", now)

    # --- phases ---

    def _prefilled(self, fact: PrefillDone, now: Seconds) -> None:
        flight = self._relay.current(fact.request_id, fact.epoch)
        if flight is None or flight.stage is not Stage.PREFILL:
            self._relay.release_stale(fact)
            return
        self._relay.prefilled(flight, fact, now)  # decode is bound with everything else that waits

    def _moved(self, fact: KVMoved, now: Seconds) -> None:
        flight = self._relay.current(fact.request_id, fact.epoch)
        if flight is not None and flight.stage is Stage.HANDOFF:
            self._relay.moved(flight, fact, now)

    def _decoded(self, fact: DecodeDone, now: Seconds) -> None:
        flight = self._relay.current(fact.request_id, fact.epoch)
        if flight is not None and flight.stage is not Stage.QUEUED:
            self._relay.decoded(flight, fact, now)
            self._placing.settle(flight)

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
        self._placing.again(flight, now)

    def _obstacle(self, flight: Flight, now: Seconds) -> str | None:
        if flight.token_out:
            return "the client has tokens already, so the request cannot start anew; send it again"
        if flight.attempts >= self._limits.max_attempts:
            return f"{flight.attempts} attempts were made, the most allowed; look at the backends named above"
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
            self._leave_queue(flight)
        self._relay.abandon(flight)
        self._relay.fail(flight, reason, message, retry_after_s, now)

    def _leave_queue(self, flight: Flight) -> None:
        """A request gives up waiting: what was kept for it is free for those behind it."""
        self._placing.queue.remove(flight.request)
        self.fleet.offer_again((flight.request.model,))

    def _expire(self, timer: Timer, request_id: str, now: Seconds) -> None:
        flight = self._relay.flights[request_id]
        match timer:
            case Timer.DEADLINE:
                message = f"the deadline passed in stage {flight.stage}; the work was stopped"
                self._drop(flight, Reason.DEADLINE_EXPIRED, message, now)
            case Timer.QUEUE:
                message = f"no place within {self._limits.max_queue_s:.0f} s; retry later, or add backends"
                self._leave_queue(flight)
                self._relay.fail(flight, Reason.SHED, message, 1.0, now)
            case Timer.LEASE:
                self._retry(flight, Phase.PREFILL, "", Reason.KV_STALE, "its KV lease ran out", now)
            case Timer.PREFILL:
                self._stalled(flight, timer, Phase.PREFILL, Reason.BACKEND_STALLED, now)
            case Timer.HANDOFF:
                self._stalled(flight, timer, Phase.DECODE, Reason.KV_TRANSFER_FAILED, now)
            case Timer.OFFER:
                self.fleet.offer_again((flight.request.model,))
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
            elif flight.prefill == backend and (
                flight.stage is Stage.BINDING or self._relay.prefill_goes_on(flight)
            ):
                self._retry(flight, Phase.PREFILL, backend, Reason.BACKEND_LOST, message, now)
            elif flight.decode == backend:
                self._relay.unbind(flight)
        self._relay.forget(backend)
