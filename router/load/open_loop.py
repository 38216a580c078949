"""Offers requests at their times, whatever becomes of the earlier ones: an open loop.

A closed loop sends less when the service is slow, and so hides the very delays it should show. Here a
request that leaves late still counts from the time it should have left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final, Protocol

from polyphase.v1 import inference_pb2

from router.load.client import Clock, Transport, stopped, timed_out
from router.load.flight import Flight, Outcome
from router.load.requests import Answer
from router.model import Seconds
from router.sim.workload import Arrival

SWEEP_EVERY_S: Final = 0.25


class Maker(Protocol):
    """Makes request number `index` and the answer it should get."""

    def make(self, index: int, arrival: Arrival) -> tuple[inference_pb2.GenerateRequest, Answer]:
        """Build it; must be fast, since it delays the next request."""
        ...


class Observer(Protocol):
    """Sees what happens to requests."""

    def sent(self, flight: Flight) -> None:
        """A request left."""
        ...

    def not_sent(self) -> None:
        """A request was due, but too many are under way."""
        ...

    def ended(self, flight: Flight, outcome: Outcome) -> None:
        """A request ended."""
        ...


class OpenLoop:
    """One run against one router."""

    def __init__(
        self,
        transport: Transport,
        maker: Maker,
        observer: Observer,
        clock: Clock,
        *,
        max_in_flight: int,
        timeout_s: Seconds,
        verify: bool = True,
    ) -> None:
        """`timeout_s` bounds each request from its intended time; `verify` compares token values."""
        self._transport = transport
        self._maker = maker
        self._observer = observer
        self._clock = clock
        self._max_in_flight = max_in_flight
        self._timeout_s = timeout_s
        self._verify = verify
        self._flights: dict[Flight, None] = {}
        self._offering: asyncio.Task[None] | None = None
        self._stopped = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """Requests that were sent and have not ended."""
        return len(self._flights)

    async def run(self, arrivals: Iterator[Arrival]) -> None:
        """Offer all arrivals, then wait for the last answer."""
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(self._transport.run())
            sweeping = group.create_task(self._sweep())
            self._offering = group.create_task(self._offer(arrivals))
            await asyncio.wait([self._offering])
            await self._idle.wait()
            sweeping.cancel()
            serving.cancel()

    def stop(self) -> None:
        """End the run: nothing more is sent, and what is under way is cancelled at the router."""
        self._stopped = True
        if self._offering is not None:
            self._offering.cancel()

    async def _offer(self, arrivals: Iterator[Arrival]) -> None:
        start = self._clock()
        for index, arrival in enumerate(arrivals):
            due = start + arrival.at_s
            request, answer = self._maker.make(index, arrival)
            # Sleeping for 0 when late lets answers in between, so that lateness does not feed itself.
            await asyncio.sleep(max(due - self._clock(), 0.0))
            self._send(request, answer, due)

    def _send(self, request: inference_pb2.GenerateRequest, answer: Answer, due: Seconds) -> None:
        if len(self._flights) >= self._max_in_flight:
            self._observer.not_sent()
            return
        flight = Flight(due, self._clock(), answer if self._verify else None, self._ended)
        self._flights[flight] = None
        self._idle.clear()
        self._observer.sent(flight)
        self._transport.submit(request, flight)

    def _ended(self, flight: Flight, outcome: Outcome) -> None:
        del self._flights[flight]
        self._observer.ended(flight, outcome)
        if not self._flights:
            self._idle.set()

    async def _sweep(self) -> None:
        """Give up on what takes too long; flights are in order of their intended times."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            overdue_before = self._clock() - self._timeout_s
            for flight in list(self._flights):
                if self._stopped:
                    self._transport.abandon(flight, stopped())
                elif flight.intended_s < overdue_before:
                    self._transport.abandon(flight, timed_out(self._timeout_s))
                else:
                    break
