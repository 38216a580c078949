"""Price-directed routing: `predicted`, which also pays for what a placement takes from those who come later.

Every few seconds the requests of a sliding window become a fluid program (price_problem.py). Whoever drives
the router solves it, off the decision's path, and tells the duals as a fact (core.ports.PriceTaker). A
placement then costs what `predicted` says, plus for each resource what it uses times its price (prices.py).
All is in seconds: `predicted` counts the time of the request and the objectives at stake of those who are
there, the prices count the delay of those who come. So the queues of the moment settle what is equally dear.

Without prices in force it is `predicted`, and its decisions say so: before the first prices, when too little
came lately to tell a load from chance, when the fleet has too many kinds of backends, when nobody solves, and
when the last prices are too old.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from policies.parameters import number, read, wrong
from policies.predicted import Predicted, PredictedParameters, given_s, read_predicted
from policies.price_problem import classes_of, groups_of, too_many
from policies.prices import PriceBook, Steadiness
from policies.window import Arrivals, HitShare, Window
from router.core.messages import (
    BackendRemoved,
    DecodeDone,
    PhaseFailed,
    PrefillDone,
    PricesRevised,
    RequestArrived,
    RequestCancelled,
)
from router.core.ports import FleetView, LatencyModel, ModelSource
from router.model import (
    BackendSpec,
    BackendView,
    Placement,
    Reject,
    Request,
    RoutePlan,
    Seconds,
    ServiceLevel,
    Wait,
)
from router.prices import PriceProblem, Unpriced

NAME: Final = "priced"


@dataclass(frozen=True, slots=True)
class PricedParameters:
    """Parameters of `priced`, besides those of `predicted`."""

    weight: float = number(
        1.0, low=0.0, high=1e3, doc="Seconds of one's own time that a second of later requests' delay counts."
    )
    window_s: float = number(15.0, low=1.0, high=3600.0, doc="What arrived in this time makes the load.")
    every_s: float = number(2.5, low=0.1, high=600.0, doc="Prices are worked out anew this often.")
    max_age_s: float = number(30.0, low=1.0, high=3600.0, doc="Older prices are not used.")
    min_requests: int = number(
        40, low=1, high=1_000_000, doc="With fewer in the window no new prices are worked out."
    )
    blend: float = number(
        0.5, low=0.01, high=1.0, doc="Share of the way that a price goes at once towards the new one."
    )
    max_change: float = number(
        2.0,
        low=1.01,
        high=1e6,
        doc="Factor by which a price may be taken to change from one time to the next.",
    )
    power_cap_w: float = number(
        0.0, low=0.0, high=1e12, doc="What the fleet may draw, idle power included; 0 is no cap."
    )
    usd_s: float = number(
        0.0, low=0.0, high=1e9, doc="Seconds of delay that a dollar of device time is worth to the prices."
    )
    predicted: PredictedParameters = field(default_factory=PredictedParameters)
    """What the prices are added to."""


class Priced:
    """`predicted` with prices. Satisfies core.ports.Policy and core.ports.PriceTaker."""

    name = NAME

    def __init__(self, parameters: PricedParameters, models: ModelSource) -> None:
        p = self._p = parameters
        self._models = _shared(models)
        self._book = PriceBook(Steadiness(p.blend, p.max_change), p.max_age_s, p.weight)
        self._window = Window(p.window_s)
        self._hits = HitShare(p.predicted.length_memory)
        inner = replace(p.predicted, power_cap_w=p.predicted.power_cap_w or p.power_cap_w)
        self._inner = Predicted(inner, models, self._book.tolls)

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """As `predicted`, with the prices in force."""
        answer = self._inner.plan(request, fleet, now)
        if isinstance(answer, RoutePlan) and not self._book.is_old(now):
            return replace(answer, decision=replace(answer.decision, policy=self.name))
        return answer

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """As `predicted`, with the prices of the handoff and the answer."""
        answer = self._inner.bind_decode(request, prefill, fleet, now)
        if isinstance(answer, Placement) and not self._book.is_old(now):
            return replace(answer, decision=replace(answer.decision, policy=self.name))
        return answer

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learn what `predicted` learns, what arrives, and what it costs."""
        self._inner.observe(fact, now)
        match fact:
            case RequestArrived(request=request):
                self._window.arrived(request, self._inner.expect(request), self._hits.expect(request), now)
                self._hits.wait_for(request)
            case PrefillDone():
                self._hits.prefilled(fact.request_id, fact.cached_tokens)
            case RequestCancelled() | PhaseFailed() | DecodeDone():
                self._hits.forget(fact.request_id)
            case PricesRevised(prices=prices):
                self._book.revise(prices)
            case BackendRemoved():
                self._book.names.forget(fact.backend)
            case _:
                pass

    def price_problem(self, fleet: FleetView, now: Seconds) -> PriceProblem | Unpriced:
        """The load of the window on the fleet as it is."""
        if now - self._book.at < self._p.every_s:
            return Unpriced("fresh")
        span_s, arrivals = self._window.seen(now)
        if sum(one.count for one in arrivals) < self._p.min_requests or span_s <= 0.0:
            return Unpriced("thin")
        groups = groups_of(_views(fleet, arrivals), self._book.names)
        if not groups:
            return Unpriced("fleet")
        if too_many(groups):
            return Unpriced("groups")
        classes = classes_of(arrivals, groups, self._models, span_s, self._worth_s)
        problem = PriceProblem(now, tuple(classes), tuple(groups), usd_s=self._p.usd_s)
        return replace(problem, power_cap_w=self._p.power_cap_w) if self._p.power_cap_w else problem

    def _worth_s(self, slo: ServiceLevel, tokens: int) -> Seconds:
        """What `predicted` weighs against time and harm."""
        return self._p.predicted.worth * given_s(slo, tokens)


def _shared(models: ModelSource) -> ModelSource:
    """A function is not copied with its policy for a dry run, as a thousand learned models would be."""

    def source(spec: BackendSpec) -> LatencyModel:
        return models(spec)

    return source


def _views(fleet: FleetView, arrivals: list[Arrivals]) -> list[BackendView]:
    """All that serve a model of the window, once each."""
    models = dict.fromkeys(one.kind.model for one in arrivals)
    found = {view.spec.id: view for model in models for view in fleet.for_model(model)}
    return list(found.values())


def read_priced(values: Mapping[str, object], where: str) -> PricedParameters:
    """The parameters, with those of `predicted` in a table of that name. Raises ConfigError."""
    table = values.get("predicted", {})
    if not isinstance(table, Mapping):
        raise wrong(where, "predicted", table, 'a table with keys of the policy "predicted"')
    inner = read_predicted(table, f"{where} predicted")
    return read(PricedParameters, {**values, "predicted": inner}, where)
