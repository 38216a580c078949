"""A router front with a scripted core and scripted lanes: real gRPC on loopback, no workers.

The scripted core is a machine small enough to read: a request starts at once on backend "b0", ends when its
phase ends, and is refused, delayed or broken on request. The test plays the worker through the flow.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from polyphase.v1 import inference_pb2, inference_pb2_grpc

from router.core.messages import (
    Action,
    DecodeDone,
    DrainStarted,
    Fact,
    FailRequest,
    FinishRequest,
    PhaseFailed,
    ReleaseKV,
    RequestArrived,
    RequestCancelled,
    StartDecode,
    StartPrefill,
    StopPhase,
)
from router.errors import PolyphaseError, Reason
from router.grpc_options import server_options
from router.live.driver import Driver
from router.live.flow import Flow, Flows
from router.live.service import InferenceService, ServiceLimits
from router.model import (
    BackendKind,
    Candidate,
    Decision,
    FinishReason,
    Phase,
    PhaseCost,
    PhaseTimes,
    PhaseUse,
    Reject,
    Report,
    Request,
    RoutePlan,
    Usage,
    Wait,
)

BACKEND = "b0"
DECISION = Decision(
    "scripted",
    reason="the only one",
    candidates=(Candidate(BACKEND, BACKEND, 1.0, {"fit": 1.0}), Candidate("b1", "b2", 0.5)),
)


def report(request: Request, output_tokens: int, finish: FinishReason | None, error: str = "") -> Report:
    """An account with recognisable numbers."""
    cost = PhaseCost(device_s=0.5, energy_j=2.0)
    return Report(
        request=request,
        times=PhaseTimes(0.25, 0.5, 0.0, 1.0, 1.75, 0.75, None),
        usage=Usage(request.prompt_tokens, 0, output_tokens),
        uses=(
            PhaseUse(Phase.PREFILL, BACKEND, BackendKind.GPU, cost, 0.125),
            PhaseUse(Phase.DECODE, BACKEND, BackendKind.LPU, cost, 0.25),
        ),
        attempts=1,
        decision=DECISION,
        finish=finish,
        error=error,
    )


class ScriptedCore:
    """A machine of a dozen rules. `refuse`, `answer` and `explode` bend them."""

    def __init__(self) -> None:
        self.live: dict[str, Request] = {}
        self.facts: list[Fact] = []
        self.draining = False
        self.refuse: tuple[Reason, float] | None = None
        self.refusals = 0
        """How many refusals are left; below zero without end."""
        self.answer: RoutePlan | Wait | Reject | PolyphaseError = RoutePlan(BACKEND, BACKEND, DECISION)
        self.explode: type[Any] | None = None
        self.due: list[float] = []
        self.explode_on_advance = False

    def handle(self, message: Fact, now: float) -> Sequence[Action]:
        """Take a fact."""
        self.facts.append(message)
        if self.explode is not None and isinstance(message, self.explode):
            raise ZeroDivisionError("a bug")
        match message:
            case RequestArrived(request):
                return self._arrive(request, now)
            case DecodeDone(request_id, _, _, output_tokens, reason):
                if (known := self.live.pop(request_id, None)) is None:
                    return ()
                return (FinishRequest(request_id, report(known, output_tokens, reason)),)
            case RequestCancelled(request_id, reason):
                stop = StopPhase(request_id, 1, BACKEND)
                return (stop, *self._fail(request_id, reason, "nobody waits", 0.0))
            case PhaseFailed(request_id, _, _, _, reason, text):
                return self._fail(request_id, reason, text, 1.5)
            case DrainStarted():
                self.draining = True
        return ()

    def advance(self, now: float) -> Sequence[Action]:
        """Drop what is due."""
        if self.explode_on_advance:
            raise ZeroDivisionError("a bug")
        self.due = [when for when in self.due if when > now]
        expired = [request for request in self.live.values() if request.deadline <= now]
        return [a for r in expired for a in self._fail(r.id, Reason.DEADLINE_EXPIRED, "too late", 0.0)]

    def deadline(self) -> float | None:
        """The first of the live requests' deadlines and the extra ones."""
        return min([*self.due, *(r.deadline for r in self.live.values())], default=None)

    def plan(self, request: Request, now: float) -> RoutePlan | Wait | Reject:
        """The prepared answer."""
        if isinstance(self.answer, PolyphaseError):
            raise self.answer
        return self.answer

    def _arrive(self, request: Request, now: float) -> Sequence[Action]:
        self.live[request.id] = request
        if self.draining:
            return self._fail(request.id, Reason.DRAINING, "shutting down", 1.0)
        if request.deadline <= now:
            return self._fail(request.id, Reason.DEADLINE_EXPIRED, "too late on arrival", 0.0)
        if request.model == "unknown":
            return self._fail(request.id, Reason.UNKNOWN_MODEL, "no backend serves it", 0.0)
        if self.refuse is not None and self.refusals != 0:
            self.refusals -= 1
            return self._fail(request.id, self.refuse[0], "refused", self.refuse[1])
        return (StartPrefill(request.id, 1, BACKEND, decode_here=True),)

    def _fail(self, request_id: str, reason: Reason, text: str, retry_after_s: float) -> Sequence[Action]:
        request = self.live.pop(request_id, None)
        if request is None:
            return ()
        return (FailRequest(request_id, reason, text, retry_after_s, report(request, 0, None, str(reason))),)


class ScriptedLanes:
    """Notes what workers were asked to do; flows of new requests wait for the test to play them."""

    def __init__(self) -> None:
        self.started: asyncio.Queue[Flow] = asyncio.Queue()
        self.flows: dict[str, Flow] = {}
        self.stopped: list[str] = []
        self.released: list[ReleaseKV] = []
        self.on_start: Callable[[Flow], None] | None = None

    def start_prefill(self, action: StartPrefill, flow: Flow) -> None:
        """Note it."""
        self.flows[flow.id] = flow
        self.started.put_nowait(flow)
        if self.on_start is not None:
            self.on_start(flow)

    def start_decode(self, action: StartDecode, flow: Flow) -> None:
        """Note it."""
        self.started.put_nowait(flow)

    def stop_phase(self, action: StopPhase) -> None:
        """Note it."""
        self.stopped.append(action.request_id)

    def release_kv(self, action: ReleaseKV) -> None:
        """Note it."""
        self.released.append(action)


def play(flow: Flow, ids: Sequence[int], *, done: bool = True, epoch: int = 1) -> None:
    """Be the worker: send tokens one by one, and end the phase."""
    now = asyncio.get_running_loop().time()
    first = flow.next_index
    for offset, token in enumerate(ids):
        flow.accept(epoch, first + offset, token, now)
    if done:
        flow.tell(DecodeDone(flow.id, epoch, PhaseCost(), flow.next_index, FinishReason.STOP))


def answer_at_once(count: int) -> Callable[[Flow], None]:
    """A worker that answers every request with `count` tokens within the same frame."""

    def start(flow: Flow) -> None:
        asyncio.get_running_loop().call_soon(play, flow, range(count))

    return start


def generate_request(**fields: Any) -> inference_pb2.GenerateRequest:
    """A good request, changed by `fields`."""
    good: dict[str, Any] = {"model": "m", "max_new_tokens": 64}
    if not {"tokens", "text"} & fields.keys():
        good["tokens"] = {"ids": [1, 2, 3]}
    return inference_pb2.GenerateRequest(**{**good, **fields})


class Rig:
    """The front, its scripted surroundings, and a client."""

    def __init__(self, core: ScriptedCore, lanes: ScriptedLanes, driver: Driver, service: InferenceService):
        self.core = core
        self.lanes = lanes
        self.driver = driver
        self.service = service
        self.server: grpc.aio.Server
        self.port = 0
        self.channel: grpc.aio.Channel
        self.stub: Any
        self.refused: list[PolyphaseError] = []
        self.late: list[float] = []

    async def flow(self) -> Flow:
        """The next request that reaches a worker."""
        return await asyncio.wait_for(self.lanes.started.get(), 5)

    async def until(self, condition: Callable[[], bool], limit_s: float = 5.0) -> None:
        """Wait for a condition; the test fails when it does not come true."""
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.005)

    def cancelled(self) -> list[RequestCancelled]:
        """The cancellations the core was told."""
        return [fact for fact in self.core.facts if isinstance(fact, RequestCancelled)]

    def assert_nothing_leaks(self) -> None:
        """No request is live anywhere."""
        assert len(self.driver.flows) == 0
        assert self.core.live == {}


@asynccontextmanager
async def serve(
    limits: ServiceLimits | None = None, *, channel_options: Sequence[tuple[str, Any]] = ()
) -> AsyncIterator[Rig]:
    """A rig on a free port of the loopback interface."""
    core, lanes, late = ScriptedCore(), ScriptedLanes(), list[float]()
    refused: list[PolyphaseError] = []
    driver = Driver(core, Flows(), on_late=late.append)
    driver.connect(lanes)
    ids = random.Random(7)
    service = InferenceService(
        driver, limits, mint=lambda: f"minted-{ids.getrandbits(64):016x}", on_refused=refused.append
    )
    rig = Rig(core, lanes, driver, service)
    rig.late, rig.refused = late, refused
    rig.server = grpc.aio.server(options=server_options())
    service.register(rig.server)
    rig.port = rig.server.add_insecure_port("127.0.0.1:0")
    await rig.server.start()
    options = [("grpc.use_local_subchannel_pool", 1), *channel_options]
    rig.channel = grpc.aio.insecure_channel(f"127.0.0.1:{rig.port}", options=options)
    rig.stub = inference_pb2_grpc.InferenceServiceStub(rig.channel)
    try:
        yield rig
    finally:
        await rig.channel.close()
        await rig.server.stop(None)
        driver.close()
