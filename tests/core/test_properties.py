"""Drives the core through arrivals, failures, cancels and departures, and holds every numbered invariant.

The numbers are those of docs/architecture.md.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.core.admission import Limits
from router.core.core import RouterCore
from router.core.messages import (
    Actions,
    BackendCordoned,
    BackendJoined,
    BackendLost,
    BackendRemoved,
    DecodeDone,
    Fact,
    FailRequest,
    FinishRequest,
    FirstToken,
    KVMoved,
    PhaseFailed,
    PrefillDone,
    ReleaseKV,
    RequestArrived,
    RequestCancelled,
    StartDecode,
    StartPrefill,
    StopPhase,
)
from router.core.places import NOTHING
from router.core.ports import FleetView
from router.errors import Reason
from router.model import (
    IDLE,
    BackendState,
    BackendView,
    ConnectorFlags,
    Decision,
    FinishReason,
    KVHandle,
    Phase,
    PhaseCost,
    Placement,
    Priority,
    Request,
    RoutePlan,
    Seconds,
    Wait,
)
from tests.core.fakes import BOTH, FunctionPolicy, flat_models, spec

NAMES = ("gpu1", "gpu2", "lpu", "tpu")
PHASES = {"gpu1": BOTH, "gpu2": BOTH, "lpu": frozenset({Phase.DECODE}), "tpu": frozenset({Phase.PREFILL})}
SLOTS = 3
DONE = Decision("random")


@dataclass
class Job:
    """What a pretended worker does for one attempt of a request."""

    backend: str
    phase: Phase
    here: bool = False
    token_sent: bool = False


class RandomPolicy:
    """Places anywhere it may, sometimes lies or raises; waits only when nothing has a slot."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait:
        """As Policy."""
        self._maybe_misbehave()
        views = fleet.for_model(request.model)
        prefills = [v.spec.id for v in views if _free(v, Phase.PREFILL)]
        decodes = [v.spec.id for v in views if _free(v, Phase.DECODE)]
        if not prefills or not decodes:
            until = now + 3.0 if self._rng.random() < 0.2 else math.inf
            return Wait("full", no_room=self._rng.random() < 0.8, until=until)
        prefill = self._rng.choice(prefills)
        both = [prefill] if prefill in decodes else []
        decode = self._rng.choice([*decodes, *both, None])
        if decode is None and prefill not in decodes:
            decode = self._rng.choice(decodes)
        expected = self._rng.choice([None, 5, 10_000])
        return RoutePlan(prefill, decode, DONE, expected)

    def bind(self, request: Request, prefill: str, fleet: FleetView, now: Seconds) -> Placement | Wait:
        """As Policy.bind_decode."""
        self._maybe_misbehave()
        views = [v.spec.id for v in fleet.for_model(request.model) if _free(v, Phase.DECODE)]
        return Placement(self._rng.choice(views), DONE) if views else Wait("full")

    def _maybe_misbehave(self) -> None:
        if self._rng.random() < 0.05:
            raise RuntimeError("a policy's bug")


def first_free(request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait:
    """A fallback that finds a place whenever there is one."""
    views = fleet.for_model(request.model)
    prefill = next((v.spec.id for v in views if _free(v, Phase.PREFILL)), None)
    decode = next((v.spec.id for v in views if _free(v, Phase.DECODE)), None)
    return RoutePlan(prefill, decode, DONE) if prefill and decode else Wait("full")


def _free(view: BackendView, phase: Phase) -> bool:
    used = view.in_flight.prefills if phase is Phase.PREFILL else view.in_flight.decodes
    return view.state is BackendState.READY and phase in view.spec.phases and used < SLOTS


class CoreMachine(RuleBasedStateMachine):
    """The core beside a model of workers that do what the actions say, fail, and vanish."""

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        """An empty fleet and a seeded policy."""
        rng = random.Random(seed)
        self.rng = rng
        chooser = RandomPolicy(rng)
        policy = FunctionPolicy(chooser.plan, chooser.bind, "random")
        limits = Limits(
            queue_capacity=4,
            max_queue_s=20.0,
            preempt=rng.random() < 0.5,
            tenant_reserve=rng.choice([0.0, 0.5, 0.9]),
            class_reserve=rng.choice([0.0, 0.3]),
            starvation_s=5.0,
        )
        self.core = RouterCore(policy, FunctionPolicy(first_free, name="fallback"), flat_models, limits)
        self.now = 0.0
        self.sent = 0
        self.live: set[str] = set()
        self.ended: set[str] = set()
        self.jobs: dict[tuple[str, int], Job] = {}
        self.held: dict[tuple[str, int], KVHandle] = {}
        self.boots: dict[str, int] = {}
        self.up: set[str] = set()

    def tell(self, fact: Fact) -> None:
        """A fact, and what its actions do to the pretended workers."""
        self.obey(self.core.handle(fact, self.now))

    def obey(self, actions: Actions) -> None:
        """Check every action against what there is, and carry it out."""
        for action in actions:
            match action:
                case StartPrefill():
                    assert action.backend in self.up, "I5: work for a backend that is not there"
                    self.jobs[action.request_id, action.epoch] = Job(
                        action.backend, Phase.PREFILL, action.decode_here
                    )
                case StartDecode():
                    assert action.backend in self.up, "I5: work for a backend that is not there"
                    assert action.kv.expires_at > self.now, "I8: decode was sent out with a stale handle"
                    self.jobs[action.request_id, action.epoch] = Job(action.backend, Phase.DECODE)
                case StopPhase():
                    assert action.backend in self.up, "I5: a stop for a backend that is not there"
                    self.jobs.pop((action.request_id, action.epoch), None)
                case ReleaseKV():
                    assert action.backend in self.up, "I5: a release for a backend that is not there"
                    self.held.pop((action.kv.request_id, action.kv.epoch), None)
                case FinishRequest() | FailRequest():
                    assert action.request_id in self.live, "I1: a request ended that was not live"
                    self.live.remove(action.request_id)
                    self.ended.add(action.request_id)
                    times = action.report.times
                    parts = times.queue_s + times.prefill_s + times.handoff_s + times.decode_s
                    assert abs(parts - times.e2e_s) < 1e-9, "I9: the phases add up to the whole"
                    assert min(times.queue_s, times.prefill_s, times.handoff_s, times.decode_s) >= -1e-12
                case _:
                    pass

    # --- what may happen ---

    @rule(name=st.sampled_from(NAMES))
    def join(self, name: str) -> None:
        """A backend appears, or restarts."""
        self.boots[name] = self.boots.get(name, 0) + 1
        self.forget(name)
        self.up.add(name)
        # The TPU hands KV out before it is there, so that its prefills go on beside their decodes.
        connector = ConnectorFlags(concurrent_handoff=name == "tpu")
        what = spec(name, PHASES[name], connector=connector)
        self.tell(BackendJoined(what, f"boot{self.boots[name]}"))

    @rule(name=st.sampled_from(NAMES), gone=st.booleans())
    def leave(self, name: str, gone: bool) -> None:
        """A backend breaks down or leaves for good."""
        self.forget(name)
        self.up.discard(name)
        self.tell(BackendRemoved(name) if gone else BackendLost(name))

    def forget(self, name: str) -> None:
        """A worker's work and KV vanish with it."""
        self.jobs = {key: job for key, job in self.jobs.items() if job.backend != name}
        self.held = {key: kv for key, kv in self.held.items() if kv.producer != name}

    @rule(name=st.sampled_from(NAMES), on=st.booleans())
    def cordon(self, name: str, on: bool) -> None:
        """An operator's wish."""
        self.tell(BackendCordoned(name, on))

    @rule(
        priority=st.sampled_from(Priority),
        tenant=st.sampled_from("abc"),
        prompt=st.integers(1, 5000),
        limit_s=st.one_of(st.just(1000.0), st.floats(0.0, 30.0)),
    )
    def arrive(self, priority: Priority, tenant: str, prompt: int, limit_s: float) -> None:
        """A request, with more or less time."""
        self.sent += 1
        name = f"r{self.sent}"
        self.live.add(name)
        request = Request(name, "llama", prompt, 10, self.now + limit_s, tenant=tenant, priority=priority)
        self.tell(RequestArrived(request))

    @precondition(lambda self: self.jobs)
    @rule(pick=st.integers(0, 1000), lease_s=st.sampled_from([0.5, 30.0]))
    def progress(self, pick: int, lease_s: float) -> None:
        """One worker gets on with one job."""
        (request_id, epoch), job = sorted(self.jobs.items())[pick % len(self.jobs)]
        if job.phase is Phase.PREFILL and job.here:
            job.phase = Phase.DECODE
            self.tell(PrefillDone(request_id, epoch, PhaseCost(0.1, 0.2)))
        elif job.phase is Phase.PREFILL:
            del self.jobs[request_id, epoch]
            kv = KVHandle(job.backend, "", request_id, epoch, "", 7, 1, self.now + lease_s)
            self.held[request_id, epoch] = kv
            self.tell(PrefillDone(request_id, epoch, PhaseCost(0.1, 0.2), kv=kv))
        elif (request_id, epoch) in self.held:
            del self.held[request_id, epoch]
            self.tell(KVMoved(request_id, epoch, 100))
        elif not job.token_sent:
            job.token_sent = True
            self.tell(FirstToken(request_id, epoch))
        else:
            del self.jobs[request_id, epoch]
            self.tell(DecodeDone(request_id, epoch, PhaseCost(0.1, 0.2), 10, FinishReason.LENGTH))

    @precondition(lambda self: self.jobs)
    @rule(pick=st.integers(0, 1000), retryable=st.booleans(), quiet=st.booleans())
    def fail(self, pick: int, retryable: bool, quiet: bool) -> None:
        """One job breaks, or is forgotten without a word."""
        (request_id, epoch), job = sorted(self.jobs.items())[pick % len(self.jobs)]
        del self.jobs[request_id, epoch]
        if not quiet:
            fact = PhaseFailed(
                request_id, epoch, job.phase, job.backend, Reason.BACKEND_FAILED, "", retryable
            )
            self.tell(fact)

    @precondition(lambda self: self.live)
    @rule(pick=st.integers(0, 1000))
    def cancel(self, pick: int) -> None:
        """A client goes."""
        self.tell(RequestCancelled(sorted(self.live)[pick % len(self.live)]))

    @rule(epoch=st.integers(0, 3), pick=st.integers(1, 30))
    def echo(self, epoch: int, pick: int) -> None:
        """A late fact of some attempt of some request."""
        if (f"r{pick}", epoch) not in self.jobs:
            self.tell(DecodeDone(f"r{pick}", epoch + 10, PhaseCost(), 1, FinishReason.STOP))
            self.tell(PhaseFailed(f"r{pick}", epoch + 10, Phase.DECODE, "gpu1", Reason.BACKEND_FAILED))

    @rule(by_s=st.floats(0.0, 15.0))
    def wait(self, by_s: float) -> None:
        """Time passes; what is due happens at its time."""
        until = self.now + by_s
        while (due := self.core.deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self.obey(self.core.advance(self.now))
            after = self.core.deadline()
            assert after is None or after > self.now, (
                "a deadline stays due after advance: the driver would spin"
            )
        self.now = until

    # --- what always holds ---

    @invariant()
    def every_request_ends_once(self) -> None:
        """I1: live here, live there; nothing ends twice (checked in obey)."""
        assert set(self.core.relay.flights) == self.live
        assert not self.live & self.ended

    @invariant()
    def books_match_what_is_live(self) -> None:
        """I2: the ledger is the sum of the live flights' bookings, never negative."""
        flights = self.core.relay.flights.values()
        for backend in self.core.fleet:
            load = backend.in_flight
            assert (
                min(load.prefills, load.prefill_tokens, load.decodes, load.decode_tokens, load.kv_tokens) >= 0
            )
            bookings = [b for f in flights for b in (f.prefill_booking, f.decode_booking)]
            mine = [b.load for b in bookings if b is not None and b.backend == backend.spec.id]
            assert load.kv_tokens == sum(b.kv_tokens for b in mine)
            assert load.decodes == sum(b.decodes for b in mine)
        if not self.live:
            assert all(backend.in_flight == IDLE for backend in self.core.fleet)

    @invariant()
    def kv_is_conserved(self) -> None:
        """I3: tokens held so far = moved + released + held at this time."""
        kv = self.core.relay.kv
        assert kv.total_tokens == kv.moved_tokens + kv.released_tokens + kv.held_tokens

    @invariant()
    def kv_at_workers_is_known(self) -> None:
        """I3: no worker holds KV that the core has forgotten."""
        flights = self.core.relay.flights
        for (request_id, epoch), _ in self.held.items():
            flight = flights.get(request_id)
            assert flight is not None, f"KV of {request_id} is leaked"
            assert flight.epoch == epoch
            assert flight.kv is not None

    @invariant()
    def work_conserving(self) -> None:
        """I6: nobody waits beside idle backends that could take the request, unless it has to leave them."""
        for flight in self.core.relay.flights.values():
            if not self.core.relay.places("llama").open_to(flight.request):
                continue
            idle = [
                v for v in self.core.fleet.views() if v.in_flight == IDLE and v.spec.id not in flight.avoid
            ]
            if flight.stage != "queued" or not all(any(_free(v, phase) for v in idle) for phase in Phase):
                continue
            assert self.core._chooser._bypassed_until > self.now, "a request waits beside an idle fleet"

    def teardown(self) -> None:
        """Everything ends, whatever state the run stopped in: no request is left for ever."""
        if not hasattr(self, "core"):
            return
        self.wait(5000.0)
        assert not self.live, "I1: a request never ended"
        assert all(backend.in_flight == IDLE for backend in self.core.fleet), "I2: a booking was leaked"
        assert self.core.relay.kv.held == 0, "I3: KV was leaked"
        assert self.core.deadline() is None, "a dead timer holds time open"
        assert self.core.relay.places("llama").held == NOTHING, "what was held of the fleet was leaked"


CoreMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestCore = CoreMachine.TestCase
