"""What the core tells models that learn: facts of backends, and phases with the place they ran at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from router.core.core import RouterCore
from router.core.messages import (
    BackendJoined,
    BackendReported,
    DecodeDone,
    Fact,
    FailRequest,
    FinishRequest,
    KVMoved,
    PrefillDone,
    RequestArrived,
    StartPrefill,
)
from router.core.ports import FleetView, LatencyModel
from router.errors import Reason
from router.model import (
    BackendSnapshot,
    BackendSpec,
    ConnectorFlags,
    Decision,
    FinishReason,
    KVHandle,
    Phase,
    PhaseCost,
    PhaseSample,
    Request,
    RoutePlan,
    Seconds,
    Wait,
)
from tests.core.fakes import MODEL, FlatModel, FunctionPolicy, spec


class Pupil:
    """A LearningModels that writes down what it hears, and is told how fast it takes backends to be."""

    def __init__(self, slower: float = 1.0) -> None:
        self.facts: list[tuple[Fact, Seconds]] = []
        self.samples: list[tuple[PhaseSample, Seconds]] = []
        self._slower = slower

    def __call__(self, of: BackendSpec) -> LatencyModel:
        """As tracked."""
        return Flat(self._slower)

    def bound(self, of: BackendSpec) -> LatencyModel:
        """As declared."""
        return Flat(1.0)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Write it down."""
        self.facts.append((fact, now))

    def phase_ended(self, sample: PhaseSample, now: Seconds) -> None:
        """Write it down."""
        self.samples.append((sample, now))

    def drift(self, of: BackendSpec) -> Mapping[Phase, float]:
        """Not asked."""
        return {}

    def fit(self, backend: str) -> Mapping[str, float]:
        """Not asked."""
        return {}


class Flat(FlatModel):
    """A millisecond per prompt token, times a factor."""

    def __init__(self, slower: float) -> None:
        self._slower = slower

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> Seconds:
        """As LatencyModel."""
        return self._slower * super().prefill_s(new_tokens, cached_tokens)


def taught(decode: str, *, early: bool = False, pupil: Pupil | None = None) -> tuple[Pupil, RouterCore]:
    """Two backends that joined; every request prefills on a and decodes on the one named."""

    def plan(request: Request, fleet: FleetView, now: Seconds) -> RoutePlan:
        return RoutePlan("a", decode, Decision("test"))

    pupil = pupil or Pupil()
    policy = FunctionPolicy(plan)
    core = RouterCore(policy, policy, pupil)
    connector = ConnectorFlags(first_token_from_prefill=early)
    for name in ("a", "b"):
        core.handle(BackendJoined(spec(name, connector=connector), "boot"), 0.0)
    return pupil, core


def arrive(core: RouterCore, name: str = "r", at: Seconds = 1.0, **fields: Any) -> list[Any]:
    """A request of 100 prompt tokens for at most 50."""
    return list(core.handle(RequestArrived(Request(name, MODEL, 100, 50, **fields)), at))


def test_facts_of_backends_are_passed_on_in_order() -> None:
    """With the core's time, and nothing else with them."""
    pupil, core = taught("a")
    report = BackendReported("a", BackendSnapshot(2.0, steps=3))
    core.handle(report, 2.0)
    arrive(core, at=3.0)
    assert [type(fact) for fact, _ in pupil.facts] == [BackendJoined, BackendJoined, BackendReported]
    assert pupil.facts[-1] == (report, 2.0)


def test_a_fact_teaches_before_it_is_decided_on() -> None:
    """A request waits for room; what the report of the room taught is known when it is placed."""
    pupil = Pupil()
    heard: list[int] = []

    def plan(request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait:
        heard.append(len(pupil.facts))
        return Wait("no room")

    policy = FunctionPolicy(plan)
    core = RouterCore(policy, policy, pupil)
    core.handle(BackendJoined(spec("a"), "boot"), 0.0)
    core.handle(BackendReported("a", BackendSnapshot(0.5, waiting=3)), 0.5)
    arrive(core)
    core.handle(BackendReported("a", BackendSnapshot(1.5, waiting=1)), 1.5)
    assert heard == [2, 3]


@pytest.mark.parametrize("early", [False, True])
def test_a_split_request_teaches_of_both_backends(early: bool) -> None:
    """The prefill of one, without its cached tokens; the decode of the other, without prefill's token."""
    pupil, core = taught("b", early=early)
    arrive(core)
    handle = KVHandle("a", "boot", "r", 1, "", 100, 0, 60.0)
    core.handle(PrefillDone("r", 1, PhaseCost(0.5, 0.25), 16, handle), 2.0)
    core.handle(KVMoved("r", 1, 1000), 2.5)
    core.handle(DecodeDone("r", 1, PhaseCost(0.75, 0.5), 20, FinishReason.STOP), 5.0)
    assert pupil.samples == [
        (PhaseSample("a", Phase.PREFILL, PhaseCost(0.5, 0.25), 100, 16, 0, 0.5, 0), 2.0),
        (PhaseSample("b", Phase.DECODE, PhaseCost(0.75, 0.5), 100, 0, 20 - early, 2.25, 0), 5.0),
    ]


def test_a_request_that_stays_teaches_of_one_backend() -> None:
    """Its prefill computed the first token; others that decode there are counted."""
    pupil, core = taught("a")
    arrive(core, "r")
    arrive(core, "s")
    core.handle(PrefillDone("r", 1, PhaseCost(0.0, 0.25)), 2.0)
    core.handle(DecodeDone("r", 1, PhaseCost(0.0, 0.5), 20, FinishReason.STOP), 3.0)
    (prefill, _), (decode, _) = pupil.samples
    assert (prefill.backend, prefill.phase, prefill.lasted_s, prefill.beside) == ("a", Phase.PREFILL, 1.0, 1)
    assert (decode.backend, decode.phase, decode.output_tokens) == ("a", Phase.DECODE, 19)
    assert (decode.lasted_s, decode.beside) == (1.0, 1)


def test_stale_and_foreign_facts_teach_nothing() -> None:
    """Another attempt, another request, a phase that is not under way."""
    pupil, core = taught("b")
    arrive(core)
    core.handle(PrefillDone("r", 2, PhaseCost(0.0, 9.0)), 2.0)
    core.handle(PrefillDone("x", 1, PhaseCost(0.0, 9.0)), 2.0)
    core.handle(DecodeDone("x", 1, PhaseCost(0.0, 9.0), 5, FinishReason.STOP), 2.0)
    core.handle(PrefillDone("r", 1, PhaseCost(), 0, KVHandle("a", "boot", "r", 1, "", 100, 0, 60.0)), 2.0)
    core.handle(PrefillDone("r", 1, PhaseCost(0.0, 9.0)), 2.5)
    assert len(pupil.samples) == 1


def test_only_what_no_backend_could_ever_do_is_refused() -> None:
    """A backend that is ten times as slow as declared may recover: its bad hours refuse nothing."""
    _, core = taught("a", pupil=Pupil(slower=10.0))
    [start, _] = arrive(core, "possible", deadline=1.2)
    assert isinstance(start, StartPrefill)
    [end] = arrive(core, "impossible", deadline=1.05)
    assert isinstance(end, FailRequest)
    assert end.reason is Reason.DEADLINE_INFEASIBLE


def test_a_plain_source_of_models_is_told_nothing() -> None:
    """A function does; requests run as ever."""
    policy = FunctionPolicy(lambda request, fleet, now: RoutePlan("a", "a", Decision("test")))
    core = RouterCore(policy, policy, lambda of: Flat(1.0))
    core.handle(BackendJoined(spec("a"), "boot"), 0.0)
    core.handle(BackendReported("a", BackendSnapshot(0.5)), 0.5)
    arrive(core)
    core.handle(PrefillDone("r", 1, PhaseCost(0.0, 0.1)), 2.0)
    [end] = core.handle(DecodeDone("r", 1, PhaseCost(0.0, 0.1), 5, FinishReason.STOP), 3.0)
    assert isinstance(end, FinishRequest)
