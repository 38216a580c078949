"""Finds places for requests: asks the policy, books what it says, and keeps those who have to wait.

Two things wait for a place: requests in the admission queue, and decodes whose KV is held at its producer.
What becomes of a request that fails is not decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from router.core.admission import AdmissionQueue, Limits
from router.core.choice import Chooser
from router.core.fleet import Fleet, FleetWithout
from router.core.flight import Flight, Stage
from router.core.messages import NoteDecision
from router.core.ports import FleetView
from router.core.relay import Relay
from router.core.timers import Timer
from router.errors import Reason
from router.model import BackendState, Phase, Placement, Reject, Request, RoutePlan, Seconds, Wait


class Placing:
    """The queue, and the policy's answers carried out."""

    def __init__(self, fleet: Fleet, chooser: Chooser, relay: Relay, limits: Limits) -> None:
        self.queue = AdmissionQueue(limits.queue_capacity)
        self._fleet = fleet
        self._chooser = chooser
        self._relay = relay
        self._limits = limits

    def admit(self, flight: Flight, now: Seconds) -> None:
        """Find a newcomer a place, or let it wait its turn."""
        if not self.queue.has_before(flight.request) and self._offer(flight, now):
            return
        if flight.stage is Stage.QUEUED:
            self._wait(flight, now)

    def again(self, flight: Flight, now: Seconds) -> None:
        """Find a place for another attempt; while there is none, the request keeps its turn."""
        if not self._offer(flight, now) and flight.stage is Stage.QUEUED:
            until = now + self._limits.max_queue_s
            self._relay.timers.set(until, Timer.QUEUE, flight.request.id, flight.epoch)
            self.queue.push_front(flight.request)

    def _wait(self, flight: Flight, now: Seconds) -> None:
        """Put a newcomer into the queue; when that is full, somebody is shed."""
        request = flight.request
        self._relay.timers.set(now + self._limits.max_queue_s, Timer.QUEUE, request.id, flight.epoch)
        shed = self.queue.push(request)
        if shed is not None:
            reason = Reason.QUEUE_FULL if shed.id == request.id else Reason.SHED
            message = f"{self._limits.queue_capacity} requests wait already; retry later, or add backends"
            self._relay.fail(self._relay.flights[shed.id], reason, message, 1.0, now)

    def place_waiting(self, now: Seconds) -> Sequence[Flight]:
        """Offer places to what waits: first to decodes whose KV fills a producer, then to the queue.

        Returns the flights whose KV cannot be at a decode backend in time: they have to prefill again.
        """
        too_late = [flight for flight in tuple(self._relay.unbound.values()) if not self._bind(flight, now)]
        if len(self.queue):
            self._place_queued(now)
        return too_late

    def _place_queued(self, now: Seconds) -> None:
        blocked: set[str] = set()  # a model's lower classes do not take what its higher ones wait for
        for model, line in self.queue.lines():
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
                self.queue.remove(request)
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
            return self._fleet
        others = FleetWithout(self._fleet, flight.avoid)
        ready = [v for v in others.for_model(flight.request.model) if v.state is BackendState.READY]
        offered = {phase for view in ready for phase in view.spec.phases}
        return others if offered >= {Phase.PREFILL, Phase.DECODE} else self._fleet

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
