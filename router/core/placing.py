"""Finds places for requests: asks the policy, books what it says, and keeps those who have to wait.

Two things wait for a place: requests in the admission queue, and decodes whose KV is held at its producer.
What becomes of a request that fails is not decided here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, assert_never

from router.core.admission import Limits
from router.core.choice import Chooser
from router.core.fleet import Fleet, FleetWithout
from router.core.flight import Flight, Stage
from router.core.messages import NoteDecision
from router.core.ports import FleetView
from router.core.queue import AdmissionQueue, ModelQueue
from router.core.relay import Relay
from router.core.reserve import reserve
from router.core.rounds import Round
from router.core.timers import Timer
from router.errors import Reason
from router.model import BackendState, Phase, Placement, Reject, Request, RoutePlan, Seconds, Wait

NOTHING_LEFT: Final = Wait("reserved", no_room=True)
"""Every backend that could serve makes room for somebody whose turn is earlier."""


class Placing:
    """The queue, and the policy's answers carried out."""

    def __init__(self, fleet: Fleet, chooser: Chooser, relay: Relay, limits: Limits) -> None:
        self.queue = AdmissionQueue(limits)
        self._fleet = fleet
        self._chooser = chooser
        self._relay = relay
        self._limits = limits

    def admit(self, flight: Flight, now: Seconds) -> None:
        """Find a newcomer a place, or let it wait its turn."""
        request = flight.request
        queue, places = self.queue.of(request.model), self._relay.places(request.model)
        if queue.may_ask(request) and places.open_to(request) and self._offer(flight, queue, now):
            self._let_in(queue, request.model)
        elif flight.stage is Stage.QUEUED:
            self._wait(flight, now)

    def again(self, flight: Flight, now: Seconds) -> None:
        """Find a place for another attempt; while there is none, the request keeps its turn."""
        queue = self._refund(flight)
        if self._offer(flight, queue, now):
            self._let_in(queue, flight.request.model)
        elif flight.stage is Stage.QUEUED:
            self._wait_in_front(flight, now)

    def _let_in(self, queue: ModelQueue, model: str) -> None:
        """Somebody holds more than before: who was held back for holding more than others may go now."""
        if queue.held_back:
            self._fleet.offer_again((model,))

    def _refund(self, flight: Flight) -> ModelQueue:
        """An attempt came to nothing: its tenant does not pay for it."""
        queue = self.queue.of(flight.request.model)
        queue.correct(flight.request, -flight.charged)
        flight.charged = 0.0
        return queue

    def _wait_in_front(self, flight: Flight, now: Seconds) -> None:
        until = now + self._limits.max_queue_s
        self._relay.timers.set(until, Timer.QUEUE, flight.request.id, flight.epoch)
        self.queue.push_front(flight.request, flight.timeline.arrived)

    def settle(self, flight: Flight) -> None:
        """A request ended well: its tenant is charged for what it was, not for what was expected."""
        computed = max(0, flight.request.prompt_tokens - flight.cached_tokens)
        queue, was = self.queue.of(flight.request.model), self._limits.cost(computed, flight.output_tokens)
        queue.correct(flight.request, was - flight.charged)
        queue.learn(flight.output_tokens)

    def _wait(self, flight: Flight, now: Seconds) -> None:
        """Put a newcomer into the queue; when that is full, somebody is shed."""
        request = flight.request
        self._relay.timers.set(now + self._limits.max_queue_s, Timer.QUEUE, request.id, flight.epoch)
        shed = self.queue.push(request, now)
        if shed is not None:
            reason = Reason.QUEUE_FULL if shed.id == request.id else Reason.SHED
            message = f"{self._limits.queue_capacity} requests wait already; retry later, or add backends"
            self._relay.fail(self._relay.flights[shed.id], reason, message, 1.0, now)

    def place_waiting(self, models: Collection[str], now: Seconds) -> Sequence[Flight]:
        """Offer places of some models to what waits: first to decodes whose KV fills a producer, then to the
        queue.

        Returns the flights whose KV cannot be at a decode backend in time: they have to prefill again.
        """
        unbound = [flight for flight in self._relay.unbound.values() if flight.request.model in models]
        too_late = [flight for flight in unbound if not self._bind(flight, now)]
        for model in sorted(models):  # a set has no order of its own, and a replay must give the same
            self._place_queued(model, now)
        return too_late

    def _place_queued(self, model: str, now: Seconds) -> None:
        """Offer places to those who wait for one model, each at most once, until nobody is left to ask."""
        queue = self.queue.of(model)
        if not queue.room_came():
            return
        offers = Round(queue, self._limits.scan, self._relay.places(model).open_to)
        while (request := offers.next(now)) is not None:
            flight = self._relay.flights[request.id]
            if self._offer(flight, queue, now) or flight.stage is not Stage.QUEUED:
                self.queue.remove(request)
                offers.placed()
            else:
                offers.refused()

    def _offer(self, flight: Flight, queue: ModelQueue, now: Seconds, *, push: bool = True) -> bool:
        """Ask the policy for a place. False while the request has to wait, and when it was refused.

        With `push` a lower class may have to make way, once.
        """
        kept = queue.reserved(flight.request.priority)
        fleet = self._shown(flight, kept)
        answer = NOTHING_LEFT if fleet is None else self._chooser.plan(flight.request, fleet, now)
        match answer:
            case RoutePlan():
                self._relay.dispatch(flight, answer, now)
                self._charge(flight, queue, answer.expected_output_tokens, now)
                self._relay.out.append(NoteDecision(flight.request.id, answer.decision))
                return True
            case Wait():
                if push and answer.no_room and self._make_way(flight.request, now):
                    return self._offer(flight, queue, now, push=False)
                self._refused(flight, answer, queue, now)
                return False
            case Reject():
                if not kept:  # else it may fit where another has room made
                    self._reject(flight, answer, now)
                return False
            case _:
                assert_never(answer)

    def _refused(self, flight: Flight, answer: Wait, queue: ModelQueue, now: Seconds) -> None:
        """The request waits. What one is told that avoids backends says nothing of others."""
        if answer.no_room and not flight.avoid:
            queue.refuse(flight.request)
            taken = queue.reserved(flight.request.priority)
            if (reservation := reserve(flight.request, self._fleet, taken)) is not None:
                queue.reserve(reservation)
        if now < answer.until != flight.offer_at:  # a time that has passed would come due without end
            flight.offer_at = answer.until
            self._relay.timers.set(answer.until, Timer.OFFER, flight.request.id, flight.epoch)

    def _make_way(self, request: Request, now: Seconds) -> bool:
        """Take back the place of one of a lower class that has no token yet, if there is one."""
        victim = self._victim(request) if self._limits.preempt else None
        if victim is None:
            return False
        self._relay.preempt(victim, request)
        self._refund(victim)
        self._wait_in_front(victim, now)
        return True

    def _victim(self, request: Request) -> Flight | None:
        """The last to come of the lowest class below; each gives way once, so that it does end."""
        able = (
            flight
            for flight in reversed(self._relay.flights.values())
            if flight.stage is Stage.PREFILL
            and flight.request.priority < request.priority
            and flight.request.model == request.model
            and not (flight.token_out or flight.preemptions)
        )
        return min(able, key=lambda flight: flight.request.priority, default=None)

    def _charge(self, flight: Flight, queue: ModelQueue, told: int | None, now: Seconds) -> None:
        output = queue.expect(flight.request, told)
        flight.charged = self._limits.cost(flight.request.prompt_tokens, output)
        queue.charge(flight.request, flight.charged, now)

    def _reject(self, flight: Flight, answer: Reject, now: Seconds) -> None:
        flight.decision = answer.decision or flight.decision
        reason = Reason.DEADLINE_INFEASIBLE if answer.infeasible_deadline else Reason.POLICY_REJECTED
        reason = Reason.SHED if answer.retry_after_s > 0 else reason
        self._relay.fail(flight, reason, answer.reason, answer.retry_after_s, now)

    def _shown(self, flight: Flight, kept: tuple[str, ...]) -> FleetView | None:
        """The fleet for a request, without what is kept for others; None if too little is left to ask."""
        if not kept:
            return self._elsewhere(flight)
        others = FleetWithout(self._fleet, (*flight.avoid, *kept))
        return others if _serves(others, flight.request.model) else None

    def _elsewhere(self, flight: Flight) -> FleetView:
        """The fleet without the backends that failed this request, unless nothing else is left."""
        if not flight.avoid:
            return self._fleet
        others = FleetWithout(self._fleet, flight.avoid)
        return others if _serves(others, flight.request.model) else self._fleet

    def _bind(self, flight: Flight, now: Seconds) -> bool:
        """Send decode where the plan has it, or ask the policy anew. False if the KV lease is too short."""
        if flight.decode is not None and not self._can_receive(flight.decode):
            self._relay.unbind(flight)
        backend = flight.decode if flight.decode is not None else self._late_binding(flight, now)
        if backend is None or flight.stage is not Stage.BINDING:
            return True
        if not self._relay.lease_lasts(flight, backend, now):
            return False
        self._relay.bind(flight, backend, now)
        return True

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
        known = self._fleet.find(backend)
        return known is not None and known.connected


def _serves(fleet: FleetView, model: str) -> bool:
    """Whether both phases can be had."""
    ready = [view for view in fleet.for_model(model) if view.state is BackendState.READY]
    return {phase for view in ready for phase in view.spec.phases} >= {Phase.PREFILL, Phase.DECODE}
