"""One load run from its plan to its tally: schedule, connections, open loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import grpc

from router.errors import CapacityError, Reason
from router.load import arrivals
from router.load.client import GenerateTransport, SessionTransport, Spread, open_channel
from router.load.flight import Flight, Outcome
from router.load.open_loop import Maker, Observer, OpenLoop
from router.load.report import Tally
from router.load.requests import RequestMaker, RequestOptions
from router.model import Seconds
from router.sim.workload import Arrival

CONNECT_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What a run offers, and how."""

    target: str
    """host:port of an InferenceService."""
    requests: RequestOptions
    trace: Sequence[Arrival] = ()
    """Empty means requests of one size."""
    rate: float | None = None
    """Poisson arrivals per second; None keeps the trace's own times."""
    speed: float = 1.0
    duration_s: Seconds | None = 30.0
    """How long requests are offered; None means one pass of the trace."""
    prompt_tokens: int = 512
    output_tokens: int = 128
    workload_class: str = ""
    """Of requests of one size; a trace's arrivals name their own."""
    connections: int = 2
    per_call: bool = False
    """One Generate call a request instead of a few Sessions."""
    max_in_flight: int = 4096
    timeout_s: Seconds = 120.0
    """Of one request, from its intended time."""
    verify: bool = True
    """Compare token values with those a mock worker owes."""
    seed: int = 1
    run: str = "load"
    """Starts every request id."""

    def arrivals(self) -> Iterator[Arrival]:
        """The schedule; the same seed gives the same one. Without a trace it needs a rate and a duration."""
        if self.rate is None:
            return arrivals.replay(self.trace, self.speed, self.duration_s)
        rng = Random(self.seed)
        if self.trace:
            end = self.duration_s if self.duration_s is not None else len(self.trace) / self.rate
            return arrivals.at_rate(self.trace, self.rate, end, rng)
        return arrivals.poisson(
            self.rate,
            self.duration_s or 0.0,
            rng,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            workload_class=self.workload_class,
        )

    @property
    def expected_s(self) -> Seconds:
        """About how long requests are offered."""
        if self.duration_s is not None:
            return self.duration_s
        return len(self.trace) / self.rate if self.rate else self.trace[-1].at_s / self.speed


class LoadRun:
    """Runs a plan once. `tally` may be read at any time."""

    def __init__(
        self, plan: LoadPlan, *, maker: Maker | None = None, observer: Observer | None = None
    ) -> None:
        """Must be called with an event loop running. `observer` sees what the tally sees."""
        self._clock = clock = asyncio.get_running_loop().time
        self.plan = plan
        self._channels = [open_channel(plan.target) for _ in range(plan.connections)]
        if plan.per_call:
            transport = Spread([GenerateTransport(channel, clock) for channel in self._channels])
        else:
            transport = Spread([SessionTransport(channel, clock) for channel in self._channels])
        self.tally = Tally(clock)
        self.loop = OpenLoop(
            transport,
            maker or RequestMaker(plan.requests, plan.seed, plan.run),
            self.tally if observer is None else _Both(self.tally, observer),
            clock,
            max_in_flight=plan.max_in_flight,
            timeout_s=plan.timeout_s,
            verify=plan.verify,
        )

    async def run(self) -> Tally:
        """Connect, offer everything, wait for the answers. Raises CapacityError when nobody listens."""
        try:
            await self._connect()
            self.tally.begin()
            await self.loop.run(self.plan.arrivals())
        finally:
            for channel in self._channels:
                await channel.close()
        return self.tally

    @property
    def elapsed_s(self) -> Seconds:
        """Since the schedule began."""
        return self._clock() - self.tally.started_s

    def stop(self) -> None:
        """End early: cancel what is under way."""
        self.loop.stop()

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                for channel in self._channels:
                    await _ready(channel)
        except (TimeoutError, ConnectionError) as error:
            raise CapacityError(
                Reason.NO_BACKEND,
                f"No router answers at {self.plan.target}. No request was sent. Start one with "
                "`polyphase dev` or `polyphase serve`, or name the address of its data port.",
            ) from error


class _Both:
    """Two observers of one loop."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def sent(self, flight: Flight) -> None:
        for observer in self._observers:
            observer.sent(flight)

    def not_sent(self) -> None:
        for observer in self._observers:
            observer.not_sent()

    def ended(self, flight: Flight, outcome: Outcome) -> None:
        for observer in self._observers:
            observer.ended(flight, outcome)


async def _ready(channel: grpc.aio.Channel) -> None:
    """Wait for a connection; a refused one ends the wait at once."""
    state = channel.get_state(try_to_connect=True)
    while state != grpc.ChannelConnectivity.READY:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            raise ConnectionError
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
