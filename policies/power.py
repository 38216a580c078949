"""Holds power caps, of the fleet and of racks, by what the fleet is predicted to draw.

    draw of a backend = min(idle + (joules moved and computed by a step) / (time of the step), its own cap)

with the step that its load forms now (router.model.PowerParameters has the origin of the law). Prompts that
wait count as if they ran, so the sum over the fleet is what it draws until the next placement, or more than
that. A placement must fit: draw + what it adds <= cap x margin. So the mean over any time holds as well, load
reports may be old, and a report is needed only to correct the law:

    margin   falls while the measured power (energy counters of the reports) is above the cap, and comes back
    price    of a joule, rises with time while the draw is near the cap and falls while it is not: the shadow
             price of the cap, which packs requests before the cap makes them wait

A rack is a zone. Power of what serves other routers is seen in the reports alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from policies.filters import Screen
from policies.parameters import finite, wrong
from policies.standing import Standing
from router.core.messages import BackendJoined, BackendLost, BackendRemoved, BackendReported
from router.core.ports import FleetView
from router.model import BackendSnapshot, BackendSpec, BackendView, Request, Seconds

FLEET: Final = ""
"""Name of the limit that holds for all backends; the others have the name of a zone."""
MAX_RACKS: Final = 256
MAX_W: Final = 1e12
NEAR: Final = 0.9
"""Share of a cap above which the price of a joule rises (assumption)."""
RISE_PER_S: Final = 4.0
"""How fast: per second and share of the cap (assumption)."""
HIGHEST: Final = 8.0
"""Weight of joules beside that of time, at most; beyond, requests wait rather than go where they are slow."""
CORRECT_PER_S: Final = 1.0
"""Share of an excess that is taken off the margin per second (assumption)."""
EASE_PER_S: Final = 0.02
"""Of the margin, that comes back per second below the cap (assumption)."""
LEAST_MARGIN: Final = 0.5
MEASURED_S: Final = 3.0
"""Power is measured over at least this time: a step is on the energy counter when it is over, so over a tenth
of this a counter may tell of several times the power."""
STALE_S: Final = 3.0 * MEASURED_S
"""An older measurement says nothing of now."""
TOLERANCE: Final = 0.01
"""Excess that is within what a long step at the edge of a measurement makes of it."""
LONGEST_STEP_S: Final = 1.0
"""Time after which a router that decided nothing adjusts no further."""


def read_racks(table: object, where: str) -> Mapping[str, float]:
    """Caps in watts by zone. Raises ConfigError."""
    if not isinstance(table, Mapping) or len(table) > MAX_RACKS:
        raise wrong(where, "rack_cap_w", table, f"a table of zone = watts, of {MAX_RACKS} zones at most")
    return {
        str(zone): finite(watts, where, f"rack_cap_w.{zone}", 1.0, MAX_W) for zone, watts in table.items()
    }


def draw_w(s: Standing, prompt_tokens: int = 0, decodes: int = 0, context_tokens: int = 0) -> float:
    """Watts of a backend at its load and that much more; the idle power where nothing can be predicted.

    The larger of a step with the prompts and of one without: the decodes go on when the prompts are done."""
    batch = min(s.decodes + decodes, s.spec.max_num_seqs)
    fresh, held = s.prefill_tokens + prompt_tokens, s.context_tokens + context_tokens
    chunk = min(fresh, max(1, s.spec.max_num_batched_tokens - batch))
    mixed_w = _step_w(s, batch, held, chunk) if chunk else 0.0
    return max(mixed_w, _step_w(s, batch, held, 0) if batch else s.spec.power.idle_w)


def _step_w(s: Standing, batch: int, held: int, chunk: int) -> float:
    power, latency = s.spec.power, s.latency
    if latency is None:
        return power.idle_w
    if chunk:
        step_s = latency.mixed_step_s(batch, held, chunk, chunk * chunk / 2)
    else:
        step_s = latency.decode_step_s(batch, held)
    if not 0 < step_s < math.inf:
        return power.idle_w
    moved = power.weight_bytes + s.spec.kv_bytes_per_token * (held + chunk)
    joules = power.joule_per_byte * moved + power.joule_per_flop * power.flop_per_token * (batch + chunk)
    return min(power.idle_w + joules / step_s, power.cap_w)


@dataclass(slots=True)
class Limit:
    """One cap, and how it is held."""

    cap_w: float
    margin: float = 1.0
    price: float = 0.0
    drawn_w: float = 0.0
    """Predicted, at the last look."""
    idle_w: float = 0.0
    """Of that, what is drawn without any work."""

    @property
    def room_w(self) -> float:
        """What may be added."""
        return self.cap_w * self.margin - self.drawn_w

    def adjust(self, measured_w: float, after_s: Seconds) -> None:
        """Bring margin and price up to date."""
        excess = measured_w / self.cap_w - 1.0
        change = -CORRECT_PER_S * excess if excess > TOLERANCE else EASE_PER_S
        self.margin = min(1.0, max(LEAST_MARGIN, self.margin + after_s * change))
        nearness = self.drawn_w / (self.cap_w * self.margin) - NEAR
        self.price = min(HIGHEST, max(0.0, self.price + after_s * RISE_PER_S * nearness))


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the energy counter of one backend says."""

    since: Seconds
    energy_j: float
    """Then."""
    watts: float | None = None
    """Over the time before that; None where none is over."""


@dataclass(frozen=True, slots=True)
class _Draw:
    """What one backend is predicted to draw, as of a view."""

    view: BackendView
    watts: float


class PowerCaps:
    """The caps, and what is known of the power of each backend."""

    def __init__(self, fleet_cap_w: float, racks: Mapping[str, float]) -> None:
        """`fleet_cap_w` is infinite without a cap of the fleet."""
        self._limits = {zone: Limit(watts) for zone, watts in racks.items()}
        if fleet_cap_w < math.inf:
            self._limits[FLEET] = Limit(fleet_cap_w)
        self._known: dict[str, _Draw | None] = {}
        self._measured: dict[str, _Measured] = {}
        self._at: Seconds | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> PowerCaps:
        other = PowerCaps(math.inf, {})
        other._limits = {
            name: Limit(one.cap_w, one.margin, one.price, one.drawn_w, one.idle_w)
            for name, one in self._limits.items()
        }
        other._known, other._measured = dict(self._known), dict(self._measured)  # values are immutable
        other._at = self._at
        return other

    @property
    def price(self) -> float:
        """Weight of joules that the tightest cap adds to an aim (objectives.aim_of), in [0, HIGHEST]."""
        return max((one.price for one in self._limits.values()), default=0.0)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learn who is there and what was drawn."""
        match fact:
            case BackendJoined():
                self._known[fact.spec.id] = None
                self._measured.pop(fact.spec.id, None)
            case BackendReported():
                self._known.setdefault(fact.backend, None)
                self._measure(fact.backend, fact.snapshot)
            case BackendLost() | BackendRemoved():
                self._known.pop(fact.backend, None)
                self._measured.pop(fact.backend, None)
            case _:
                pass

    def look(self, request: Request, fleet: FleetView, screen: Screen, now: Seconds) -> None:
        """Take over the fleet as it is at a decision."""
        for view in fleet.for_model(request.model):
            self._known.setdefault(view.spec.id, None)  # a policy that takes over saw nobody join
        for one in self._limits.values():
            one.drawn_w = one.idle_w = 0.0
        measured = dict.fromkeys(self._limits, 0.0)
        for backend in self._known:
            if (draw := self._draw(backend, fleet, screen)) is not None:
                self._add(draw, measured, now)
        after_s = 0.0 if self._at is None else min(LONGEST_STEP_S, now - self._at)
        self._at = now
        for name, one in self._limits.items():
            one.adjust(measured[name], after_s)

    def over(self, spec: BackendSpec) -> list[Limit]:
        """The caps that hold for a backend."""
        return [one for name in _names(spec) if (one := self._limits.get(name)) is not None]

    def _draw(self, backend: str, fleet: FleetView, screen: Screen) -> _Draw | None:
        known, view = self._known[backend], fleet.get(backend)
        if view is None or (known is not None and known.view is view):
            return known  # hidden from this request, or unchanged
        found = self._known[backend] = _Draw(view, draw_w(screen.standing(view)))
        return found

    def _add(self, draw: _Draw, measured: dict[str, float], now: Seconds) -> None:
        spec = draw.view.spec
        known = self._measured.get(spec.id)
        told = known.watts if known is not None and now - known.since <= STALE_S else None
        watts = draw.watts if told is None else told
        for name in _names(spec):
            if (limit := self._limits.get(name)) is not None:
                limit.drawn_w += draw.watts
                limit.idle_w += spec.power.idle_w
                measured[name] += watts

    def _measure(self, backend: str, snapshot: BackendSnapshot) -> None:
        """Learn from an energy counter. One that went back is a restart; what is no number is ignored."""
        at, joules = snapshot.observed_at, snapshot.energy_j
        if not (math.isfinite(at) and 0 <= joules < math.inf):
            return
        known = self._measured.get(backend)
        if known is None or joules < known.energy_j:
            self._measured[backend] = _Measured(at, joules)
        elif at - known.since >= MEASURED_S:
            self._measured[backend] = _Measured(at, joules, (joules - known.energy_j) / (at - known.since))


def _names(spec: BackendSpec) -> tuple[str, ...]:
    return (FLEET, spec.zone) if spec.zone else (FLEET,)


def caps_of(fleet_cap_w: float, racks: Mapping[str, float]) -> PowerCaps | None:
    """The caps that are configured; a fleet cap of 0 is none."""
    if not fleet_cap_w and not racks:
        return None
    return PowerCaps(fleet_cap_w or math.inf, racks)
