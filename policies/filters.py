"""Which backends may take the prefill, and which the decode, of a request; why the others may not.

One pass over the fleet per decision. What does not depend on the request is kept from view to view
(standing.py), so that the pass costs a fraction of a microsecond per backend. Reasons are stable
and few: they are metric labels and words in decision records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count as counter
from typing import Final

from policies.standing import Standing
from router.core.ports import FleetView, LatencyModel, ModelSource
from router.errors import PolyphaseError
from router.model import BackendSpec, BackendView, Phase, Request

MAX_STANDINGS: Final = 1 << 16
"""Standings kept; more distinct backend ids than this are no fleet but churn, and the cache starts anew."""


@dataclass(slots=True)
class Eligible:
    """The outcome of one pass, in order of joining."""

    output_tokens: int
    """Room asked for beyond the prompt."""
    total: int
    """Backends looked at."""
    prefill: list[Standing] = field(default_factory=list[Standing])
    decode: list[Standing] = field(default_factory=list[Standing])
    left_out: list[Standing] = field(default_factory=list[Standing])
    """Backends that cannot take every phase they offer; `reasons` says why."""
    barred: list[tuple[Standing, str]] = field(default_factory=list[tuple[Standing, str]])
    """Those that a policy leaves out besides, and why."""

    def pairable(self) -> list[Standing]:
        """Prefill backends whose KV some decode backend takes over, the same backend included."""
        layouts = accepted(self.decode)
        return [s for s in self.prefill if s.spec.kv_layout in layouts]


def accepted(consumers: Sequence[Standing]) -> set[str]:
    """KV layouts that at least one of the backends can decode from."""
    kinds = {s.ingress: s.spec for s in consumers}
    return {layout for spec in kinds.values() for layout in (spec.kv_layout, *spec.kv_accepts)}


class Screen:
    """Remembers the standing of every backend, and filters the fleet for a request."""

    def __init__(
        self,
        models: ModelSource | None,
        max_prefill_queue: int,
        stretch: Callable[[str], float] = lambda backend: 1.0,
        uncached: Callable[[str], float] = lambda backend: 1.0,
        overbook: float = 0.0,
        fills_steps: bool = False,
    ) -> None:
        """`models` None leaves latency models out; `stretch` gives Standing.stretch of a backend, `uncached`
        the share of its queued prompt tokens that is not in its prefix cache. `overbook` is the share of its
        slots that decodes may wait for; `fills_steps` is that of Standing.see."""
        self._models = models
        self._max_prefill_queue = max_prefill_queue
        self._stretch = stretch
        self._uncached = uncached
        self._overbook = overbook
        self._fills_steps = fills_steps
        self._standings: dict[str, Standing] = {}
        self._classes: dict[object, int] = {}
        self._numbers = counter()

    def __deepcopy__(self, memo: dict[int, object]) -> Screen:
        """Without the cache: a copy for a dry run need not copy a thousand standings."""
        queues = (self._overbook, self._fills_steps)
        return Screen(self._models, self._max_prefill_queue, self._stretch, self._uncached, *queues)

    def standing(self, view: BackendView, order: int = 0) -> Standing:
        """The standing of a view, worked out anew only if the view is."""
        known = self._standings.get(view.spec.id)
        if known is None or known.view is not view:
            known = self._stand(view, known)
        known.order = order
        return known

    def standings(self, views: Sequence[BackendView]) -> list[Standing]:
        """All standings of a model's backends, eligible or not."""
        return [self.standing(view, order) for order, view in enumerate(views)]

    def pass_over(self, request: Request, views: Sequence[BackendView], output_tokens: int) -> Eligible:
        """Filter a model's backends. `output_tokens` is the KV room asked for at decode beyond the prompt."""
        prompt = request.prompt_tokens
        found = Eligible(output_tokens, len(views))
        whole, need, model = prompt + request.max_new_tokens, prompt + output_tokens, request.model
        prefill, decode, left_out = found.prefill.append, found.decode.append, found.left_out.append
        get = self._standings.get
        for order, view in enumerate(views):
            s = get(view.spec.id)
            if s is None or s.view is not view:
                s = self._stand(view, s)
            s.order = order
            spec = s.spec
            if s.barred or whole > spec.max_context_tokens or model not in spec.models:
                left_out(s)
                continue
            room = s.kv_room_tokens
            takes_prefill = s.takes_prefill and prompt <= room
            takes_decode = s.takes_decode and need <= room and whole <= spec.kv_capacity_tokens
            if takes_prefill:
                prefill(s)
            if takes_decode:
                decode(s)
            if not (takes_prefill and takes_decode):
                left_out(s)
        return found

    def after_prefill(
        self, request: Request, prefill: str, fleet: FleetView, output_tokens: int
    ) -> tuple[Standing | None, Eligible]:
        """Decode backends for KV that is at `prefill`; there itself only the output needs room."""
        found = self.pass_over(request, fleet.for_model(request.model), output_tokens)
        view = fleet.get(prefill)
        if view is None:
            return None, found
        producer = self.standing(view, order=-1)  # wins ties: staying needs no transfer
        if producer not in found.decode and _stays(producer, output_tokens):
            found.decode.insert(0, producer)
        found.decode = [s for s in found.decode if s.spec.accepts_kv_of(producer.spec)]
        return producer, found

    def _stand(self, view: BackendView, known: Standing | None) -> Standing:
        spec = view.spec
        if known is None or known.spec is not spec:
            if len(self._standings) >= MAX_STANDINGS:
                self._standings.clear()
            known = self._standings[spec.id] = self._introduce(spec)
        elif known.latency is not None:
            known.latency = self._latency(spec)[0]  # the source may have learned since the last view
        stretch, uncached = self._stretch(spec.id), self._uncached(spec.id)
        known.see(view, self._max_prefill_queue, stretch, uncached, self._overbook, self._fills_steps)
        return known

    def _introduce(self, spec: BackendSpec) -> Standing:
        latency, profiled = self._latency(spec)
        flaw = "" if profiled else "profile"
        return Standing(
            spec,
            latency,
            flaw if spec.phases else "phase",
            self._number(("from", *_ends(spec), spec.kv_bytes_per_token, spec.connector)),
            self._number(("to", *_ends(spec), spec.kv_accepts)),
        )

    def _latency(self, spec: BackendSpec) -> tuple[LatencyModel | None, bool]:
        """A backend without a usable model is left out; it must not cost the others the decision."""
        if self._models is None:
            return None, True
        try:
            return self._models(spec), True
        except PolyphaseError:
            return None, False

    def _number(self, look: object) -> int:
        if len(self._classes) >= MAX_STANDINGS:
            self._classes.clear()  # numbers go on counting: old and new classes never mix
        number = self._classes.get(look)
        if number is None:
            number = self._classes[look] = next(self._numbers)
        return number

    def forget(self, backend: str) -> None:
        """Drop a backend that left."""
        self._standings.pop(backend, None)


def _ends(spec: BackendSpec) -> tuple[object, ...]:
    """All that a link may depend on at one of its ends."""
    return (spec.link, spec.zone, spec.kind, spec.device, spec.kv_layout, spec.kv_conversion)


def _stays(producer: Standing, output_tokens: int) -> bool:
    fits = output_tokens <= producer.kv_room_tokens
    return not producer.barred and producer.takes_decode and fits


def reasons(s: Standing, request: Request, output_tokens: int) -> list[str]:
    """Why a backend was left out of a phase that it offers, or altogether."""
    lasting = lasting_reasons(s, request)
    if s.barred or lasting:
        return [s.barred] if s.barred else lasting
    prompt, phases = request.prompt_tokens, s.spec.phases
    found: list[str] = []
    has_slot = s.view.in_flight.decodes < s.spec.max_num_seqs
    if not has_slot and (Phase.PREFILL in phases or not s.takes_decode):
        found.append("slots_full")
    elif Phase.PREFILL in phases and not s.takes_prefill:
        found.append("queue_full")
    need = prompt + output_tokens if Phase.DECODE in phases else prompt
    if not need <= s.kv_room_tokens:
        found.append("kv_full")
    return found


def lasting_reasons(s: Standing, request: Request) -> list[str]:
    """Why a backend could not serve the request even if it were idle and ready; empty if it could."""
    spec, whole = s.spec, request.prompt_tokens + request.max_new_tokens
    if s.flaw:
        return [s.flaw]
    if request.model not in spec.models:
        return ["model"]
    if whole > spec.max_context_tokens:
        return ["context_too_long"]
    if not could(s, request, Phase.PREFILL) and not could(s, request, Phase.DECODE):
        return ["kv_too_small"]
    return []


def could(s: Standing, request: Request, phase: Phase) -> bool:
    """Whether a backend could take a phase of the request if it were idle and ready."""
    spec = s.spec
    whole = request.prompt_tokens + request.max_new_tokens
    if phase not in spec.phases or request.model not in spec.models or s.flaw:
        return False
    need = whole if phase is Phase.DECODE else request.prompt_tokens
    return whole <= spec.max_context_tokens and need <= spec.kv_capacity_tokens


def ever(request: Request, standings: Sequence[Standing]) -> bool:
    """Whether the fleet could serve the request if every backend were idle and ready."""
    consumers = [s for s in standings if could(s, request, Phase.DECODE)]
    layouts = accepted(consumers)
    return any(s.spec.kv_layout in layouts for s in standings if could(s, request, Phase.PREFILL))
