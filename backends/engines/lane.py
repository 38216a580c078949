"""The link to one engine over its life: probe, join, serve, notice the end, wait, probe again.

Satisfies router.live.southbound.Link. Engines tell no boot id: each time one answers again it counts as
another incarnation, and what ran there before is lost.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from backends.engines.failures import PhaseError
from backends.engines.ports import Engine, OpenEngine
from backends.engines.work import EngineWork, Peer
from router.core.messages import BackendJoined, BackendLost, BackendReported
from router.errors import PolyphaseError
from router.live.lane import LaneContext
from router.model import BackendSnapshot, BackendSpec, Seconds

log = logging.getLogger(__name__)

REPORT_S: Final[Seconds] = 0.1
SWEEP_S: Final[Seconds] = 1.0
_UNFORESEEN: Final = "unforeseen"


@dataclass(frozen=True, slots=True)
class Rules:
    """When an engine counts as gone, and how much is asked of it at a time."""

    interval_s: Seconds = 1.0
    """Between probes, with 20 % jitter."""
    misses: int = 3
    """Probes missed in a row at which an engine is lost; one that refuses connections is lost at once."""
    max_legs: int = 1024


class EngineLostError(Exception):
    """The engine does not serve any more; the message says why."""


class EngineLane:
    """The link to one engine. `work` is None while it is down."""

    def __init__(
        self, spec: BackendSpec, address: str, context: LaneContext, open_engine: OpenEngine, rules: Rules
    ) -> None:
        self.backend = spec.id
        self.address = address
        self.work: EngineWork | None = None
        self.down_since: Seconds | None = asyncio.get_running_loop().time()
        """Loop time since when the engine has not served; None while it does."""
        self.trouble = ""
        """Why it last stopped serving, or does not begin to."""
        self.closing = False
        """Set before the task of `run` is cancelled."""
        self._spec = spec
        self._context = context
        self._open_engine = open_engine
        self._rules = rules
        self._now = asyncio.get_running_loop().time
        self._suspected = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether the engine serves."""
        return self.work is not None

    async def run(self) -> None:
        """Serve until cancelled. Ends in no other way."""
        failures = 0
        while True:
            began = self._now()
            why = await self._serve_once()
            if self.closing:
                # A TaskGroup whose task fails in the moment of a cancellation raises that failure only (in
                # CPython before 3.13): the lane would come back to life with nobody left to end it.
                raise asyncio.CancelledError
            failures = 0 if self._now() - began > self._context.times.backoff_max_s else failures + 1
            level = logging.DEBUG if why == self.trouble else logging.WARNING
            log.log(level, "engine %s at %s is down: %s; trying again", self.backend, self.address, why)
            self.trouble = why
            await asyncio.sleep(self._context.times.backoff_s(failures, self._context.rng))

    async def _serve_once(self) -> str:
        """One connection from first to last. Returns why it ended."""
        try:
            async with self._open_engine() as engine:
                await engine.probe()
                await self._serve(engine)
        except Exception as error:  # supervision point: an engine ends at most its connection
            why = _why(error)
            if why.startswith(_UNFORESEEN):
                log.exception("the link to engine %s failed in an unforeseen way", self.backend)
            return why
        return "its link ended"

    async def _serve(self, engine: Engine) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._join(engine, tasks)
                tasks.create_task(self._report(), name=f"engine-report-{self.backend}")
                tasks.create_task(self._sweep(), name=f"engine-sweep-{self.backend}")
                await self._watch(engine)
        except BaseException as error:
            self._lose(_why(error))
            raise

    def _join(self, engine: Engine, tasks: asyncio.TaskGroup) -> None:
        self._context.vet(self._spec)
        incarnation = f"{self._context.rng.getrandbits(64):016x}"
        peer, tell = Peer(self.backend, incarnation, engine), self._context.tell
        self._suspected.clear()
        self.work = EngineWork(peer, tell, tasks, self._suspected.set, self._rules.max_legs)
        self.down_since, self.trouble = None, ""
        log.info("engine %s at %s serves", self.backend, self.address)
        tell(BackendJoined(self._spec, incarnation, self.address))

    def _lose(self, why: str) -> None:
        """The core hears of the end once, when nothing can be started any more."""
        if self.work is not None:
            self.work = None
            self.down_since = self._now()
            self._context.tell(BackendLost(self.backend, why))

    # --- serving ---

    async def _watch(self, engine: Engine) -> None:
        """Probe the engine, at once after a failure that may be its end. Raises EngineLostError."""
        missed = 0
        while True:
            await self._pause()
            try:
                await engine.probe()
            except PhaseError as error:
                missed += 1
                if error.suspect or missed >= self._rules.misses:
                    # Told before the tasks of the group are cancelled: no request may come to them meanwhile.
                    self._lose(error.message)
                    raise EngineLostError(error.message) from error
            else:
                missed = 0

    async def _pause(self) -> None:
        interval_s = self._rules.interval_s * self._context.rng.uniform(0.8, 1.2)
        try:
            async with asyncio.timeout(interval_s):
                await self._suspected.wait()
        except TimeoutError:
            return
        self._suspected.clear()

    async def _report(self) -> None:
        """Tell the core how the engine fares, whenever that has changed."""
        last: BackendSnapshot | None = None
        while True:
            if self.work is not None:
                snapshot = self.work.snapshot()
                if last is None or not _same(last, snapshot):
                    last = snapshot
                    self._context.tell(BackendReported(self.backend, snapshot))
            await asyncio.sleep(REPORT_S)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            if self.work is not None:
                self.work.sweep()


def _same(one: BackendSnapshot, other: BackendSnapshot) -> bool:
    """Whether two accounts differ in their time only."""
    return one == BackendSnapshot(
        one.observed_at,
        other.running,
        other.waiting,
        kv_used_tokens=other.kv_used_tokens,
        busy_prefill_s=other.busy_prefill_s,
        busy_decode_s=other.busy_decode_s,
    )


def _why(error: BaseException) -> str:
    """The end of a connection in words."""
    match error:
        case BaseExceptionGroup():
            return _why(error.exceptions[0])
        case PhaseError() | EngineLostError() | PolyphaseError():
            return str(error)
        case asyncio.CancelledError():
            return "the router let go of the engine"
        case _:
            return f"{_UNFORESEEN} {type(error).__name__}"
