"""What the core and its drivers ask of the parts that are plugged into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from router.model import (
    BackendSpec,
    BackendView,
    LinkParameters,
    Phase,
    PhaseSample,
    Placement,
    Reject,
    Request,
    RoutePlan,
    Seconds,
    Wait,
)
from router.prices import PriceProblem, Unpriced

Message_contra = TypeVar("Message_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class Machine(Protocol[Message_contra, Out_co]):
    """A state machine with time as an argument. `now` never decreases from call to call."""

    def handle(self, message: Message_contra, now: Seconds) -> Sequence[Out_co]:
        """Take one message and say what follows from it."""
        ...

    def advance(self, now: Seconds) -> Sequence[Out_co]:
        """Do what became due up to and including `now`."""
        ...

    def deadline(self) -> Seconds | None:
        """When `advance` is next needed; None while nothing is pending."""
        ...


class FleetView(Protocol):
    """The fleet at the time of a decision. Everything reachable from it is immutable."""

    def for_model(self, model: str) -> Sequence[BackendView]:
        """Backends that serve a model, whatever their state, in order of joining."""
        ...

    def get(self, backend: str) -> BackendView | None:
        """One backend by id."""
        ...

    def link(self, producer: str, consumer: str) -> LinkParameters:
        """The link KV takes from one backend to another."""
        ...


class Policy(Protocol):
    """Places the phases of requests. Pure: no I/O, no clock; randomness from an RNG it was given."""

    @property
    def name(self) -> str:
        """As in the configuration; a metric label."""
        ...

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Place both phases, as a pair."""
        ...

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """Place decode after prefill on `prefill`, for a plan that left it open."""
        ...

    def observe(self, fact: Any, now: Seconds) -> None:  # facts hold policies: the types are circular
        """See a fact after the core handled it. A policy that learns nothing leaves this empty."""
        ...


@runtime_checkable
class PriceTaker(Protocol):
    """A policy that routes by prices which somebody else works out, off the decision's path.

    Whoever drives the core asks it for the problem now and then, solves it, and tells the core PricesRevised,
    which reaches the policy as every fact does. Asking changes nothing: no recording has it.
    """

    def price_problem(self, fleet: FleetView, now: Seconds) -> PriceProblem | Unpriced | None:
        """What prices are to be worked out for, or why none are; None from a wrapper of a policy that takes
        no prices."""
        ...


class LatencyModel(Protocol):
    """Times of one backend's steps."""

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> Seconds:
        """A prefill that has the device to itself."""
        ...

    def decode_step_s(self, sequences: int, context_tokens: int) -> Seconds:
        """One decode step of a batch; context_tokens is the sum over its sequences."""
        ...

    def mixed_step_s(
        self, sequences: int, context_tokens: int, prefill_tokens: int, attention_pairs: float
    ) -> Seconds:
        """A step that decodes a batch and prefills chunks; pairs is the sum of n (history + n / 2)."""
        ...


class ModelSource(Protocol):
    """Gives the latency model of a backend as it is known at this time.

    A model never changes. A source that learns gives another one after facts about the backend, so ask
    again whenever its view has changed; without such facts the same spec gives the same object.
    """

    def __call__(self, spec: BackendSpec) -> LatencyModel:
        """Build or look up the model."""
        ...


@runtime_checkable
class LearningModels(Protocol):
    """A ModelSource that corrects its models by what the core is told (docs/adr/0006).

    The core feeds it within `handle`, before anything is decided by the same fact, so that a replay
    rebuilds the same models. Nothing here may raise, whatever a worker reports.
    """

    def __call__(self, spec: BackendSpec) -> LatencyModel:
        """As ModelSource."""
        ...

    def bound(self, spec: BackendSpec) -> LatencyModel:
        """A model no slower than any backend with the spec's step parameters is, or says it is."""
        ...

    def observe(self, fact: Any, now: Seconds) -> None:  # as Policy.observe
        """See a fact about a backend: it joined, reported, was lost or removed."""
        ...

    def phase_ended(self, sample: PhaseSample, now: Seconds) -> None:
        """See what a phase of a live request took."""
        ...

    def drift(self, spec: BackendSpec) -> Mapping[Phase, float]:
        """Learned over declared time of a reference prefill and a reference decode step; above 1 is slower.

        Of the phases that the backend offers; empty for one that is not known.
        """
        ...

    def fit(self, backend: str) -> Mapping[str, float]:
        """Observed over predicted time by kind of work, in the median of the last observations.

        Kinds are `prefill`, `decode` and `mixed`; one of which nothing was observed lately is missing.
        """
        ...


class Tap(Protocol):
    """Sees everything the core was told and what it answered: metrics, recorder, decision log."""

    def seen(self, fact: Any, now: Seconds, actions: Sequence[Any]) -> None:
        """`fact` is None when the actions came from a deadline."""
        ...
