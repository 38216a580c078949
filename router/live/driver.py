"""Runs the router's core on asyncio: facts in, actions out, one timer.

The driver owns the clock of the core and the order of its facts. It knows no gRPC; lanes and sinks do.
It is a supervision point: a bug in the core, a tap or an executor costs one request, never the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol, assert_never

from router.core.messages import (
    Action,
    Fact,
    FailRequest,
    FinishRequest,
    NoteDecision,
    NotePolicyFault,
    NotePreempted,
    NoteRetry,
    PrefillDone,
    ReleaseKV,
    RequestArrived,
    RequestCancelled,
    StartDecode,
    StartPrefill,
    StopPhase,
)
from router.core.ports import Tap
from router.errors import Reason
from router.live.flow import Flow, Flows
from router.model import Phase, PhaseTimes, Reject, Report, Request, RoutePlan, Seconds, Usage, Wait

log = logging.getLogger(__name__)

BACK_OFF_S: Final[Seconds] = 1.0
"""Pause after a deadline that raised: it stays in the past, and would be tried without end."""

INTERNAL_MESSAGE: Final = (
    "the router failed on this request; other requests go on; "
    "report the request id to the operator, whose log has the cause"
)


class Router(Protocol):
    """The core as the driver sees it: a Machine[Fact, Action] that can also decide without executing."""

    def handle(self, message: Fact, /, now: Seconds) -> Sequence[Action]:
        """Take one fact and say what follows from it."""
        ...

    def advance(self, now: Seconds) -> Sequence[Action]:
        """Do what became due up to and including `now`."""
        ...

    def deadline(self) -> Seconds | None:
        """When `advance` is next needed."""
        ...

    def plan(self, request: Request, now: Seconds) -> RoutePlan | Wait | Reject:
        """What would be decided for a request that arrived now. Changes nothing."""
        ...


class Lanes(Protocol):
    """Carries out what concerns workers. Methods queue and return: they never wait and never raise.

    A backend that is not connected, or cannot take a command, is answered with a PhaseFailed fact.
    """

    def start_prefill(self, action: StartPrefill, flow: Flow) -> None:
        """Send the prompt to a backend."""
        ...

    def start_decode(self, action: StartDecode, flow: Flow) -> None:
        """Send the KV handle to a backend; decode starts at flow.next_index."""
        ...

    def stop_phase(self, action: StopPhase) -> None:
        """Stop what a backend does for an epoch; what it still sends is dropped."""
        ...

    def release_kv(self, action: ReleaseKV) -> None:
        """Free KV at its producer."""
        ...


def _ignore_lateness(lateness_s: Seconds) -> None:
    pass


class Driver:
    """Runs one core. Everything happens on the loop's thread."""

    def __init__(
        self,
        core: Router,
        flows: Flows,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        taps: Sequence[Tap] = (),
        on_late: Callable[[Seconds], None] = _ignore_lateness,
    ) -> None:
        """`on_late` is called with the seconds by which each timer fired after its deadline."""
        self.flows = flows
        self._core = core
        self._loop = loop if loop is not None else asyncio.get_running_loop()
        self._taps = tuple(taps)
        self._on_late = on_late
        self._lanes: Lanes | None = None
        self._facts: deque[Fact] = deque()
        self._busy = False
        self._now: Seconds = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._not_before: Seconds = 0.0

    def connect(self, lanes: Lanes) -> None:
        """Name the executor of worker actions; once, before the first request."""
        self._lanes = lanes

    def now(self) -> Seconds:
        """Loop time that never decreases: the clock of the core."""
        self._now = max(self._now, self._loop.time())
        return self._now

    def tell(self, fact: Fact) -> None:
        """Hand a fact to the core and carry out what follows. From within an action it is queued."""
        self._facts.append(fact)
        if not self._busy:
            self._run()

    def open(self, flow: Flow) -> bool:
        """Take a new request in; False when its id is in use. Its sink may be called before this returns."""
        if not self.flows.add(flow):
            return False
        self.tell(RequestArrived(flow.request))
        return True

    def plan(self, request: Request) -> RoutePlan | Wait | Reject:
        """What the core would decide for a request at this time. Changes nothing."""
        return self._core.plan(request, self.now())

    def close(self) -> None:
        """Disarm the timer. Nothing is told to the core any more by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- facts ---

    def _run(self) -> None:
        self._busy = True
        try:
            while self._facts:
                self._handle(self._facts.popleft())
        finally:
            self._busy = False
        self._arm()

    def _handle(self, fact: Fact) -> None:
        now = self.now()
        if isinstance(fact, PrefillDone) and (flow := self.flows.get(fact.request_id)) is not None:
            flow.phase = Phase.DECODE  # with decode_here no action announces it
        try:
            actions = self._core.handle(fact, now)
        except Exception:  # noqa: BLE001 -- supervision point, logged below
            self._survive(fact)
        else:
            self._carry_out(fact, now, actions)

    def _survive(self, fact: Fact) -> None:
        """The core has a bug: give up the request it concerns and keep serving the others."""
        request_id = _request_of(fact)
        log.exception("core failed on %s of request %s", type(fact).__name__, request_id or "-")
        if request_id:
            self._give_up(request_id)
            if not isinstance(fact, RequestCancelled):
                # Lets the core release what it booked; its workers would go on for nobody otherwise.
                self._facts.append(RequestCancelled(request_id, Reason.INTERNAL))

    def _give_up(self, request_id: str) -> None:
        flow = self.flows.remove(request_id)
        if flow is not None:
            report = _empty_report(flow.request, flow.next_index)
            flow.sink.fail(FailRequest(request_id, Reason.INTERNAL, INTERNAL_MESSAGE, 0.0, report))

    # --- actions ---

    def _carry_out(self, fact: Fact | None, now: Seconds, actions: Sequence[Action]) -> None:
        for tap in self._taps:
            try:
                tap.seen(fact, now, actions)
            except Exception:
                log.exception("tap %s failed on %s", type(tap).__name__, type(fact).__name__)
        for action in actions:
            try:
                self._execute(action, now)
            except Exception:  # noqa: BLE001 -- supervision point, logged below
                self._survive_action(action)

    def _survive_action(self, action: Action) -> None:
        log.exception("executing %s failed", type(action).__name__)
        match action:
            case StartPrefill(request_id) | StartDecode(request_id):
                self._give_up(request_id)
                self._facts.append(RequestCancelled(request_id, Reason.INTERNAL))
            case _:
                pass

    def _execute(self, action: Action, now: Seconds) -> None:
        match action:
            case StartPrefill() | StartDecode():
                self._start(action, now)
            case StopPhase():
                self._workers().stop_phase(action)
            case ReleaseKV():
                self._workers().release_kv(action)
            case FinishRequest(request_id, report):
                if (flow := self.flows.remove(request_id)) is not None:
                    flow.sink.finish(report)
            case FailRequest(request_id):
                if (flow := self.flows.remove(request_id)) is not None:
                    flow.sink.fail(action)
            case NoteDecision() | NoteRetry() | NotePreempted() | NotePolicyFault():
                pass  # for the taps
            case _:
                assert_never(action)

    def _start(self, action: StartPrefill | StartDecode, now: Seconds) -> None:
        flow = self.flows.get(action.request_id)
        if flow is None:
            # Its client is gone after a bug; a worker that starts now would work for nobody.
            self._facts.append(RequestCancelled(action.request_id, Reason.INTERNAL))
        elif isinstance(action, StartPrefill):
            flow.begin(action.epoch, action.backend, Phase.PREFILL, now)
            self._workers().start_prefill(action, flow)
        else:
            flow.begin(action.epoch, action.backend, Phase.DECODE, now)
            self._workers().start_decode(action, flow)

    def _workers(self) -> Lanes:
        if self._lanes is None:
            raise RuntimeError("the driver has no lanes: connect() comes before the first request")
        return self._lanes

    # --- time ---

    def _arm(self) -> None:
        deadline = self._core.deadline()
        if deadline is None:
            return  # a timer that is armed fires for nothing, once; cheaper than cancelling it
        when = max(deadline, self._not_before)
        if self._timer is not None:
            if self._timer.when() <= when:
                return  # fires in time, then sees what is due
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._due)

    def _due(self) -> None:
        self._timer = None
        deadline = self._core.deadline()
        now = self.now()
        if deadline is not None and deadline <= now:
            self._on_late(now - max(deadline, self._not_before))
            self._advance(now)
        self._run()

    def _advance(self, now: Seconds) -> None:
        # Busy while actions run: a fact told by one of them waits its turn.
        self._busy = True
        try:
            actions = self._core.advance(now)
        except Exception:
            log.exception("core failed on a deadline; next attempt in %s s", BACK_OFF_S)
            self._not_before = now + BACK_OFF_S
        else:
            self._carry_out(None, now, actions)
        finally:
            self._busy = False


def _request_of(fact: Fact) -> str:
    """The request a fact speaks of; empty when it speaks of none."""
    if isinstance(fact, RequestArrived):
        return fact.request.id
    return str(getattr(fact, "request_id", ""))


def _empty_report(request: Request, output_tokens: int) -> Report:
    """The account of a request whose true account was lost in a bug: zeros, not guesses."""
    return Report(
        request=request,
        times=PhaseTimes(0.0, 0.0, 0.0, 0.0, 0.0, None, None),
        usage=Usage(request.prompt_tokens, 0, output_tokens),
        uses=(),
        attempts=0,
        decision=None,
        finish=None,
        error=Reason.INTERNAL,
    )
