"""Carries requests through their phases: books load, hands KV over, stops work, and closes the account.

It decides nothing: where a phase goes, and whether a failed one is tried again, is the core's business. Every
change keeps three books true: the fleet's ledger, the KV ledger, and one end per request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from router.core.admission import Limits
from router.core.fleet import Booking, Fleet
from router.core.flight import Flight, Stage, Step
from router.core.handoff import KVLedger, outlives
from router.core.messages import (
    Action,
    DecodeDone,
    FailRequest,
    FinishRequest,
    KVMoved,
    NotePreempted,
    PrefillDone,
    ReleaseKV,
    StartDecode,
    StartPrefill,
    StopPhase,
)
from router.core.places import NOTHING, Held, Places
from router.core.ports import ModelSource
from router.core.timeline import Timeline
from router.core.timers import Timer, Timers
from router.errors import Reason
from router.model import (
    BackendState,
    FinishReason,
    InFlight,
    Phase,
    PhaseCost,
    PhaseUse,
    Report,
    Request,
    RoutePlan,
    Seconds,
    Usage,
)

WATCHED: Final[Mapping[Timer, Stage | None]] = {
    Timer.DEADLINE: None,
    Timer.QUEUE: Stage.QUEUED,
    Timer.PREFILL: Stage.PREFILL,
    Timer.LEASE: Stage.BINDING,
    Timer.HANDOFF: Stage.HANDOFF,
    Timer.OFFER: Stage.QUEUED,
}
"""The stage of the attempt in which a timer was set; out of it, it is dead. A deadline outlives attempts."""


class Relay:
    """The live requests and what they hold."""

    def __init__(self, fleet: Fleet, models: ModelSource, limits: Limits) -> None:
        self.flights: dict[str, Flight] = {}
        self.unbound: dict[str, Flight] = {}
        """Those whose KV is held and whose decode has no place yet."""
        self.kv = KVLedger()
        self.timers = Timers(self._alive)
        self.out: list[Action] = []
        """Actions of the present call; the core takes them."""
        self._fleet = fleet
        self._models = models
        self._limits = limits
        self._places: dict[str, Places] = {}

    def current(self, request_id: str, epoch: int) -> Flight | None:
        """The flight a fact speaks of, unless the fact is stale."""
        flight = self.flights.get(request_id)
        return flight if flight is not None and flight.epoch == epoch else None

    def open(self, request: Request, now: Seconds) -> Flight:
        """A request came in; it waits for a place."""
        flight = self.flights[request.id] = Flight(request, Timeline(arrived=now))
        self.timers.set(request.deadline, Timer.DEADLINE, request.id, 0)
        return flight

    def places(self, model: str) -> Places:
        """Who holds what of a model's fleet."""
        known = self._places.get(model)
        if known is None:
            known = self._places[model] = Places(model, self._fleet, self._limits)
        return known

    # --- forward ---

    def dispatch(self, flight: Flight, plan: RoutePlan, now: Seconds) -> None:
        """Send the prefill out, with both phases booked as the plan says."""
        request = flight.request
        flight.step(Step.PLANNED)
        flight.epoch += 1
        flight.prefill, flight.decode, flight.decision = plan.prefill, plan.decode, plan.decision
        flight.expected_output_tokens = min(
            plan.expected_output_tokens or request.max_new_tokens, request.max_new_tokens
        )
        flight.timeline.dispatched = now
        stall_s = self._prefill_stall_s(flight)
        self._book_plan(flight)
        held = Held(1.0, request.prompt_tokens + flight.expected_output_tokens, request.prompt_tokens)
        flight.held = held
        self.places(request.model).take(request, held)
        self._watch(flight, Timer.PREFILL, plan.prefill, now + stall_s)
        self.out.append(StartPrefill(request.id, flight.epoch, plan.prefill, not plan.is_split))

    def prefilled(self, flight: Flight, fact: PrefillDone, now: Seconds) -> None:
        """Prefill is done: its KV is held for a handoff, or decode goes on at its backend.

        A backend may keep a request that the plan has split: when its first token was its last.
        """
        flight.timeline.prefill_done = now
        flight.timeline.prefill_wait_s = fact.cost.queued_s
        flight.cached_tokens = fact.cached_tokens
        self.places(flight.request.model).prefilled(flight.held.prompt_tokens)
        flight.held = Held(flight.held.slots, flight.held.kv_tokens)
        self._account(flight, Phase.PREFILL, flight.prefill, fact.cost)
        if fact.kv is None:
            flight.step(Step.PREFILLED_HERE)
            flight.timeline.bound = flight.timeline.kv_moved = now
            self.unbind(flight)
            flight.decode = flight.prefill
            self._rebook_prefill(flight, InFlight(decodes=1, **_decode_room(flight)))
            return
        flight.step(Step.PREFILLED)
        flight.kv = fact.kv
        self.kv.hold(fact.kv)
        self.unbound[fact.request_id] = flight
        kept = InFlight(kv_tokens=fact.kv.tokens)
        if self.prefill_goes_on(flight):
            kept = InFlight(1, flight.request.prompt_tokens, kv_tokens=fact.kv.tokens)
        self._rebook_prefill(flight, kept)
        lease_s = self._limits.lease_margin_s
        self.timers.set(fact.kv.expires_at - lease_s, Timer.LEASE, fact.kv.request_id, flight.epoch)

    def bind(self, flight: Flight, backend: str, now: Seconds) -> None:
        """Send decode out; its worker pulls the KV."""
        assert flight.kv is not None
        flight.step(Step.BOUND)
        del self.unbound[flight.request.id]
        flight.decode = backend
        flight.timeline.bound = now
        if flight.decode_booking is None:
            flight.decode_booking = self._book(backend, InFlight(decodes=1, **_decode_room(flight)))
        stall_s = self._stall_s(self.transfer_s(flight, backend))
        if self.prefill_goes_on(flight):
            producer = self._fleet[flight.prefill]
            stall_s += self._stall_s(self._models(producer.spec).prefill_s(producer.in_flight.prefill_tokens))
        self._watch(flight, Timer.HANDOFF, backend, now + stall_s)
        self.out.append(StartDecode(flight.request.id, flight.epoch, backend, flight.kv))

    def prefill_goes_on(self, flight: Flight) -> bool:
        """Whether a prefill that has a handle is still at work: its engine waits for decode to come.

        Such an engine hands KV out before it is there, so that both phases start together. Until the KV has
        moved the prefill stays booked and is waited for, and its end ends the attempt.
        """
        known = self._fleet.find(flight.prefill)
        held = flight.stage in (Stage.BINDING, Stage.HANDOFF)
        return held and known is not None and known.spec.connector.concurrent_handoff

    def lease_lasts(self, flight: Flight, backend: str, now: Seconds) -> bool:
        """Whether the KV can be at `backend` before its lease runs out, with room to spare."""
        assert flight.kv is not None
        needed_s = 2.0 * self.transfer_s(flight, backend) + self._limits.lease_margin_s
        return outlives(flight.kv, now, needed_s)

    def transfer_s(self, flight: Flight, backend: str) -> Seconds:
        """Predicted time of the handoff on an idle link."""
        assert flight.kv is not None
        spec = self._fleet[flight.prefill].spec
        link = self._fleet.link(flight.prefill, backend)
        return link.latency_s + flight.kv.tokens * spec.kv_bytes_per_token / link.bandwidth_bytes_per_s

    def moved(self, flight: Flight, fact: KVMoved, now: Seconds) -> None:
        """The decode backend holds the KV; the producer has let go of it."""
        flight.step(Step.KV_MOVED)
        flight.timeline.kv_moved = now
        flight.kv = None
        self.kv.moved(fact.request_id)
        self._unbook(flight.prefill_booking)
        flight.prefill_booking = None

    def decoded(self, flight: Flight, fact: DecodeDone, now: Seconds) -> None:
        """The last token is out."""
        flight.timeline.decode_wait_s = fact.cost.queued_s if flight.timeline.kv_moved is not None else 0.0
        flight.output_tokens, flight.counted = fact.output_tokens, fact.counted
        _, backend = flight.working_at() or (None, flight.prefill)
        self._account(flight, Phase.DECODE, backend, fact.cost)
        if fact.overran:
            self.out.append(StopPhase(fact.request_id, flight.epoch, backend))
        self._let_go(flight)
        self.out.append(FinishRequest(fact.request_id, self._end(flight, now, fact.reason)))

    # --- back ---

    def abandon(self, flight: Flight) -> None:
        """Stop what runs for a request and free what it holds, at every backend that can be reached."""
        if (working := flight.working_at()) is not None and self._reachable(working[1]):
            self.out.append(StopPhase(flight.request.id, flight.epoch, working[1]))
        self._let_go(flight)

    def restart(self, flight: Flight) -> None:
        """Make a flight, abandoned before, wait for another attempt."""
        flight.step(Step.RETRIED)
        flight.timeline.restart()
        flight.prefill, flight.decode, flight.cached_tokens = "", None, 0

    def preempt(self, flight: Flight, by: Request) -> None:
        """Take a prefill back before its first token; its request waits for another attempt."""
        backend = flight.prefill
        self.abandon(flight)
        self.restart(flight)
        flight.preemptions += 1
        self.out.append(NotePreempted(flight.request.id, backend, by.id))

    def unbind(self, flight: Flight) -> None:
        """Give up the decode place of a plan before it is used."""
        flight.decode = None
        self._unbook(flight.decode_booking)
        flight.decode_booking = None

    def forget(self, backend: str) -> None:
        """A backend is gone, and with it the KV that is being pulled from it: the puller will say so."""
        for flight in self.flights.values():
            if flight.prefill_booking is not None and flight.prefill_booking.backend == backend:
                self._unbook(flight.prefill_booking)
                flight.prefill_booking = None

    def forgive(self, backend: str) -> None:
        """A backend has restarted: what failed on it before says nothing of it."""
        for flight in self.flights.values():
            if backend in flight.avoid:
                flight.avoid = tuple(other for other in flight.avoid if other != backend)

    def fail(
        self, flight: Flight, reason: Reason, message: str, retry_after_s: Seconds, now: Seconds
    ) -> None:
        """End a request, abandoned before, without its answer."""
        report = self._end(flight, now, None, reason)
        self.out.append(FailRequest(flight.request.id, reason, message, retry_after_s, report))

    def release_stale(self, fact: PrefillDone) -> None:
        """A prefill ended after its request had gone on or ended: nobody will pull its KV."""
        if fact.kv is not None and self._reachable(fact.kv.producer):
            self.out.append(ReleaseKV(fact.kv.producer, fact.kv))

    def _let_go(self, flight: Flight) -> None:
        self.unbound.pop(flight.request.id, None)
        if flight.held is not NOTHING:
            self.places(flight.request.model).free(flight.request, flight.held)
            flight.held = NOTHING
        if flight.kv is not None:
            handle = self.kv.release(flight.request.id)
            if self._reachable(handle.producer):
                self.out.append(ReleaseKV(handle.producer, handle))
            flight.kv = None
        self._unbook(flight.prefill_booking)
        self._unbook(flight.decode_booking)
        flight.prefill_booking = flight.decode_booking = None

    def _end(
        self, flight: Flight, now: Seconds, finish: FinishReason | None, error: Reason | None = None
    ) -> Report:
        flight.step(Step.ENDED)
        del self.flights[flight.request.id]
        return Report(
            request=flight.request,
            times=flight.timeline.times(now, flight.output_tokens),
            usage=flight.counted
            or Usage(flight.request.prompt_tokens, flight.cached_tokens, flight.output_tokens),
            uses=tuple(flight.uses),
            attempts=flight.attempts,
            decision=flight.decision,
            finish=finish,
            error="" if error is None else error.value,
        )

    # --- books ---

    def _book_plan(self, flight: Flight) -> None:
        prompt = flight.request.prompt_tokens
        prefill = InFlight(prefills=1, prefill_tokens=prompt, kv_tokens=prompt)
        room = _decode_room(flight)
        if flight.decode == flight.prefill:
            prefill = InFlight(1, prompt, 1, room["decode_tokens"], room["kv_tokens"])
        elif flight.decode is not None:
            flight.decode_booking = self._book(flight.decode, InFlight(decodes=1, **room))
        flight.prefill_booking = self._book(flight.prefill, prefill)

    def _book(self, backend: str, load: InFlight) -> Booking:
        booking = Booking(backend, load)
        self._fleet.book(booking)
        return booking

    def _unbook(self, booking: Booking | None) -> None:
        if booking is not None:
            self._fleet.release(booking)

    def _rebook_prefill(self, flight: Flight, load: InFlight) -> None:
        self._unbook(flight.prefill_booking)
        flight.prefill_booking = self._book(flight.prefill, load)

    def _account(self, flight: Flight, phase: Phase, backend: str, cost: PhaseCost) -> None:
        if (known := self._fleet.find(backend)) is not None:
            usd = cost.device_s * known.spec.usd_per_hour / 3600.0
            flight.uses.append(PhaseUse(phase, backend, known.spec.kind, cost, usd))

    # --- time ---

    def _reachable(self, backend: str) -> bool:
        known = self._fleet.find(backend)
        return known is not None and known.state is not BackendState.LOST

    def _prefill_stall_s(self, flight: Flight) -> Seconds:
        """Asked before booking: the prompts ahead of this one are waited for as well."""
        backend = self._fleet[flight.prefill]
        tokens = backend.in_flight.prefill_tokens + flight.request.prompt_tokens
        return self._stall_s(self._models(backend.spec).prefill_s(tokens))

    def _stall_s(self, predicted_s: Seconds) -> Seconds:
        return max(self._limits.stall_s, self._limits.stall_factor * predicted_s)

    def still_queued(self, flight: Flight, timer: Timer, backend: str, now: Seconds) -> bool:
        """Whether a phase that shows no sign of life waits at a worker that gets on with other work.

        Then it goes on being watched: to start it anew elsewhere would double the load of a busy fleet.
        """
        known = self._fleet.find(backend)
        if known is None or known.snapshot is None or not known.snapshot.waiting:
            return False
        if known.busy_s <= flight.busy_mark_s:
            return False
        self._watch(flight, timer, backend, now + self._limits.stall_s)
        return True

    def _watch(self, flight: Flight, timer: Timer, backend: str, until: Seconds) -> None:
        flight.busy_mark_s = self._fleet[backend].busy_s
        self.timers.set(until, timer, flight.request.id, flight.epoch)

    def _alive(self, timer: Timer, request_id: str, epoch: int) -> bool:
        flight = self.flights.get(request_id)
        if flight is None:
            return False
        stage = WATCHED[timer]
        return stage is None or (flight.stage is stage and flight.epoch == epoch)


def _decode_room(flight: Flight) -> dict[str, int]:
    expected = flight.expected_output_tokens
    return {"decode_tokens": expected, "kv_tokens": flight.request.prompt_tokens + expected}
