"""Which backends there are, how loaded they say they are, and how loaded we know them to be.

Three sources are kept apart: the spec (static), the last snapshot (stale), and our own ledger of what is in
flight (always fresh). Policies get immutable views of the three, rebuilt only for backends that changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from router.model import (
    IDLE,
    BackendSnapshot,
    BackendSpec,
    BackendState,
    BackendView,
    InFlight,
    LinkParameters,
    StepParameters,
)


@dataclass(frozen=True, slots=True)
class Booking:
    """Load that a request puts on a backend, until it is released."""

    backend: str
    load: InFlight


@dataclass(slots=True)
class Backend:
    """What the core knows of one backend."""

    spec: BackendSpec
    incarnation: str
    address: str
    connected: bool = True
    cordoned: bool = False
    draining: bool = False
    snapshot: BackendSnapshot | None = None
    in_flight: InFlight = IDLE

    @property
    def state(self) -> BackendState:
        """A lost lane outweighs what the operator asked for."""
        if not self.connected:
            return BackendState.LOST
        if self.draining:
            return BackendState.DRAINING
        return BackendState.CORDONED if self.cordoned else BackendState.READY

    @property
    def busy_s(self) -> float:
        """Device time its worker has reported since boot; a worker whose figure stands still does nothing."""
        if (told := self.snapshot) is None:
            return 0.0
        return told.busy_prefill_s + told.busy_decode_s + told.busy_loading_s

    def view(self) -> BackendView:
        """The immutable picture for policies."""
        return BackendView(self.spec, self.state, self.snapshot, self.in_flight)


class Fleet:
    """The backends, in order of joining. Satisfies core.ports.FleetView."""

    def __init__(self) -> None:
        self._backends: dict[str, Backend] = {}
        self._views: dict[str, BackendView] = {}
        self._models: dict[str, _ModelViews] = {}
        self._roomier: set[str] = set()
        self.shape = 0
        """Changes with what may take work, not with how much it has; grows."""

    # --- changes, by the core ---

    def join(self, spec: BackendSpec, incarnation: str, address: str) -> None:
        """Add a backend, or connect a known one again; an operator's cordon outlives the connection."""
        known = self._backends.get(spec.id)
        if known is None:
            self._backends[spec.id] = Backend(spec, incarnation, address)
        else:
            known.spec, known.incarnation, known.address = spec, incarnation, address
            known.connected, known.snapshot = True, None
        self._models.clear()
        self._changed(spec.id)
        self.shape += 1
        self._roomier.update(spec.models)

    def lose(self, backend: str) -> None:
        """Mark a backend as out of reach."""
        if (known := self._backends.get(backend)) is not None:
            known.connected, known.snapshot = False, None
            self._changed(backend)
            self.shape += 1
            self._roomier.update(known.spec.models)

    def remove(self, backend: str) -> None:
        """Forget a backend."""
        if (known := self._backends.pop(backend, None)) is not None:
            self._views.pop(backend, None)
            self._models.clear()
            self.shape += 1
            self._roomier.update(known.spec.models)

    def cordon(self, backend: str, cordoned: bool, draining: bool) -> None:
        """Stop new work for a backend, or allow it again."""
        if (known := self._backends.get(backend)) is not None:
            known.cordoned, known.draining = cordoned, draining
            self._changed(backend)
            self.shape += 1
            self._roomier.update(known.spec.models)

    def report(self, backend: str, snapshot: BackendSnapshot) -> None:
        """Take a worker's account of itself."""
        if (known := self._backends.get(backend)) is not None:
            before, known.snapshot = known.snapshot, snapshot
            self._changed(backend)
            if before is not None and _has_more_room(snapshot, before):
                self._roomier.update(known.spec.models)

    def book(self, booking: Booking) -> None:
        """Add a load to our ledger."""
        self._shift(booking, 1)

    def release(self, booking: Booking) -> None:
        """Take a load off our ledger."""
        self._shift(booking, -1)
        if (known := self._backends.get(booking.backend)) is not None:
            self._roomier.update(known.spec.models)

    def take_roomier(self) -> set[str]:
        """Models of which a request that waits may have a place now, since the last call: a load went off
        one of their backends, or what may take work has changed."""
        if not (models := self._roomier):
            return models
        self._roomier = set()
        return models

    def offer_again(self, models: Iterable[str]) -> None:
        """Count models as having room, for another reason."""
        self._roomier.update(models)

    def _shift(self, booking: Booking, sign: int) -> None:
        backend = self._backends.get(booking.backend)
        if backend is None:  # removed while its requests were being failed
            return
        has, load = backend.in_flight, booking.load
        backend.in_flight = InFlight(
            has.prefills + sign * load.prefills,
            has.prefill_tokens + sign * load.prefill_tokens,
            has.decodes + sign * load.decodes,
            has.decode_tokens + sign * load.decode_tokens,
            has.kv_tokens + sign * load.kv_tokens,
        )
        self._changed(booking.backend)

    def _changed(self, backend: str) -> None:
        self._views.pop(backend, None)
        for model in self._backends[backend].spec.models:
            if (views := self._models.get(model)) is not None:
                views.stale.add(backend)

    # --- reads ---

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends.values())

    def __getitem__(self, backend: str) -> Backend:
        return self._backends[backend]

    def find(self, backend: str) -> Backend | None:
        """What the core knows of a backend."""
        return self._backends.get(backend)

    def get(self, backend: str) -> BackendView | None:
        """One backend by id."""
        view = self._views.get(backend)
        if view is None and (known := self._backends.get(backend)) is not None:
            view = self._views[backend] = known.view()
        return view

    def views(self) -> Sequence[BackendView]:
        """All backends, in order of joining."""
        return tuple(backend.view() for backend in self._backends.values())

    def for_model(self, model: str) -> Sequence[BackendView]:
        """Backends that serve a model, whatever their state, in order of joining."""
        views = self._models.get(model)
        if views is None:
            ids = [backend.spec.id for backend in self._backends.values() if model in backend.spec.models]
            views = self._models[model] = _ModelViews(ids)
        return views.refreshed(self)

    def link(self, producer: str, consumer: str) -> LinkParameters:
        """The link KV takes from one backend to another."""
        return link_between(self._backends[producer].spec, self._backends[consumer].spec)

    def steps(self, model: str) -> Sequence[BackendSpec]:
        """One backend for each distinct step model that serves a model."""
        self.for_model(model)
        return self._models[model].distinct(self)


def _has_more_room(now: BackendSnapshot, before: BackendSnapshot) -> bool:
    return now.kv_used_tokens < before.kv_used_tokens or now.waiting < before.waiting


def link_between(giver: BackendSpec, taker: BackendSpec) -> LinkParameters:
    """The producer's egress: a pull is served by the worker that holds the KV. Slower where the consumer
    takes less in, or has to convert what comes."""
    ingress = taker.link.ingress_bytes_per_s
    factor = 1.0 if giver.kv_layout == taker.kv_layout else taker.kv_conversion
    if ingress >= giver.link.bandwidth_bytes_per_s and factor == 1.0:
        return giver.link
    bandwidth = min(ingress, giver.link.bandwidth_bytes_per_s) / factor
    return replace(giver.link, latency_s=giver.link.latency_s * factor, bandwidth_bytes_per_s=bandwidth)


class _ModelViews:
    """The views of one model's backends; only those that changed are built again."""

    __slots__ = ("_index", "_specs", "_tuple", "_views", "stale")

    def __init__(self, ids: list[str]) -> None:
        self._index = {backend: i for i, backend in enumerate(ids)}
        self._views: list[BackendView] = []
        self._tuple: tuple[BackendView, ...] = ()
        self._specs: tuple[BackendSpec, ...] | None = None
        self.stale: set[str] = set(ids)

    def refreshed(self, fleet: Fleet) -> tuple[BackendView, ...]:
        if self.stale:
            if not self._views:
                self._views = [fleet[backend].view() for backend in self._index]
            for backend in self.stale:  # order is irrelevant: each writes its own place
                view = fleet.get(backend)
                assert view is not None
                self._views[self._index[backend]] = view
            self.stale.clear()
            self._tuple = tuple(self._views)
        return self._tuple

    def distinct(self, fleet: Fleet) -> tuple[BackendSpec, ...]:
        if self._specs is None:
            by_step: dict[StepParameters, BackendSpec] = {}
            for backend in self._index:
                by_step.setdefault(fleet[backend].spec.step, fleet[backend].spec)
            self._specs = tuple(by_step.values())
        return self._specs


class FleetWithout:
    """A fleet that hides the backends which failed a request, so that a retry goes elsewhere."""

    __slots__ = ("_fleet", "_hidden")

    def __init__(self, fleet: Fleet, hidden: Sequence[str]) -> None:
        self._fleet = fleet
        self._hidden = frozenset(hidden)

    def for_model(self, model: str) -> Sequence[BackendView]:
        """As Fleet.for_model, without the hidden ones."""
        return tuple(v for v in self._fleet.for_model(model) if v.spec.id not in self._hidden)

    def get(self, backend: str) -> BackendView | None:
        """As Fleet.get; a hidden backend is unknown."""
        return None if backend in self._hidden else self._fleet.get(backend)

    def link(self, producer: str, consumer: str) -> LinkParameters:
        """As Fleet.link."""
        return self._fleet.link(producer, consumer)
