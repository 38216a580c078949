"""Predict, then place: where a request keeps its objectives, costs nobody else theirs, and is done soonest.

    one backend   prefill end + (n - 1) steps
    a pair        prefill end + KV transfer + n steps, or n - 1 where prefill gives the first token

Prefill ends behind the prompt tokens ahead, beside what decodes there. A step is that of the batch
after joining it, stretched by the prefill work of the same backend: by the larger of what waits
there now and of the share that prefill had of late (learned.py). n is the expected output.

Of all places the cheapest is taken:

    cost = aim (aim.py: finish, first token, $, J) + worth x (risk + harm)

Risk is the probability of missing an objective of one's own, harm the number of requests that would lose one
of theirs (stakes.py, residents.py), worth a multiple of the time that the objectives give. A place that
brings too little, less what it costs, is not taken (patience.py): the request waits while its objectives can
still be held by waiting, and is refused, or served when it harms nobody, once they cannot.

A prediction counts from the decision on: what a request waited before is the same for all places, and is
taken off its objective for the first token. What a backend holds of the prompt by our own decisions
(prefixes.py) need not be computed there; prompts ahead have the share of hits that their backend had of
late. Not predicted: transfers that share a link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from policies.decision import MAX_CANDIDATES, placed, unplaced
from policies.experience import Experience, Placed
from policies.filters import Eligible, Screen
from policies.lengths import Lengths
from policies.objectives import OBJECTIVES, Classes, Objective, aim_of, read_classes
from policies.outlook import Outlook
from policies.parameters import choice, number, read
from policies.patience import Case, Patience, why
from policies.power import MAX_W, caps_of, read_racks
from policies.power_gate import Gate
from policies.prices import Tolls
from policies.search import Found
from policies.stakes import NOTHING, AtStake, Stakes
from policies.standing import Standing
from router.core.messages import BackendLost, BackendRemoved
from router.core.ports import FleetView, ModelSource
from router.model import (
    BackendView,
    Placement,
    Reject,
    Request,
    RoutePlan,
    Seconds,
    ServiceLevel,
    Wait,
)

NAME: Final = "predicted"
TollSource = Callable[[Request, int, Seconds], Tolls | None]
"""(request, expected output tokens, now) -> what its parts cost others by prices; None: none (priced.py)."""


@dataclass(frozen=True, slots=True)
class PredictedParameters:
    """Parameters of `predicted`. `classes` is a nested table of objectives by workload class."""

    objective: str = choice(
        "goodput", of=OBJECTIVES, doc="What decides among places that hold all objectives."
    )
    time_weight: float = number(1.0, low=0.0, high=1e3, doc="Of the finish, in a blend.")
    cost_weight: float = number(0.0, low=0.0, high=1e3, doc="Of dollars of device time, in a blend.")
    energy_weight: float = number(0.0, low=0.0, high=1e3, doc="Of joules of device time, in a blend.")
    ttft_weight: float = number(
        0.0, low=0.0, high=1.0, doc="Minimise (1 - w) x finish + w x time to first token, both in seconds."
    )
    worth: float = number(
        10.0,
        low=0.0,
        high=1e6,
        doc="What a good request is worth, in multiples of the time that its objectives give it.",
    )
    least_gain: float = number(
        0.7,
        low=-1e6,
        high=1.0,
        doc="Expected good requests by a placement, less those it costs; with less, it waits or is refused.",
    )
    hopeless: str = choice(
        "refuse",
        of=("refuse", "last"),
        doc="What becomes of a request whose objectives cannot be held any more.",
    )
    patience_s: float = number(
        10.0, low=0.0, high=3600.0, doc="Longest that a request without hope or objectives waits for others."
    )
    max_prefill_queue: int = number(
        4, low=1, high=100_000, doc="Prefills in flight where others decode; more wait in the router."
    )
    candidates: int = number(
        4, low=1, high=MAX_CANDIDATES, doc="Pairs kept in the decision record, best first."
    )
    lengths: str = choice(
        "learned", of=("learned", "cap"), doc="Answers are as long as such answers were, or as they may be."
    )
    length_memory: int = number(
        64, low=1, high=100_000, doc="Finished answers over which output lengths are averaged, per class."
    )
    duty_window_s: float = number(
        2.0, low=0.01, high=3600.0, doc="Time constant over which the prefill share of a backend is averaged."
    )
    reject_beyond: float = number(
        2.0,
        low=1.0,
        high=1e6,
        doc="Reject when the earliest first token is predicted later than this many times the time left. "
        "Above 1, since prefix hits make a prefill faster than predicted.",
    )
    bind_late_s: float = number(
        0.5,
        low=0.0,
        high=1e6,
        doc="Bind the decode of a pair after its prefill when that is predicted to take longer than this.",
    )
    overbook: float = number(
        1.0, low=0.0, high=10.0, doc="Decodes that may wait for a slot of a backend, as a share of its slots."
    )
    power_cap_w: float = number(
        0.0, low=0.0, high=MAX_W, doc="What the fleet may draw, idle power included; 0 is no cap."
    )
    rack_cap_w: Mapping[str, float] = field(default_factory=dict[str, float])
    """The same by zone."""
    classes: Classes = field(default_factory=dict[str, Objective])

    def of(self, workload_class: str) -> Objective:
        """What a class is placed by."""
        own = self.classes.get(workload_class)
        return own or Objective(self.objective, self.time_weight, self.cost_weight, self.energy_weight)


def read_predicted(values: Mapping[str, object], where: str) -> PredictedParameters:
    """The parameters from a table with nested ones. Raises ConfigError."""
    nested: dict[str, object] = {}
    if "classes" in values:
        nested["classes"] = read_classes(values["classes"], where)
    if "rack_cap_w" in values:
        nested["rack_cap_w"] = read_racks(values["rack_cap_w"], where)
    return read(PredictedParameters, {**values, **nested}, where)


class Predicted:
    """The best of all feasible pairs, by prediction. Satisfies core.ports.Policy."""

    name = NAME

    def __init__(
        self, parameters: PredictedParameters, models: ModelSource, tolls: TollSource | None = None
    ) -> None:
        self._p = parameters
        self._tolls = tolls
        p = parameters
        self._known = Experience(p.length_memory, p.duty_window_s, p.lengths == "learned")
        self._patience = Patience(self._known.waits, parameters.hopeless == "refuse", parameters.patience_s)
        stretch, uncached = self._known.duty.stretch, self._known.cached.uncached
        self._screen = Screen(models, p.max_prefill_queue, stretch, uncached, p.overbook, True)
        self._caps = caps_of(parameters.power_cap_w, parameters.rack_cap_w)

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Place both phases."""
        if (deferred := self._known.waits.deferred(request, now)) is not None:
            return deferred
        views, lengths = fleet.for_model(request.model), self._known.lengths.lengths(request)
        arrived = self._known.waits.since(request, now)
        if self._caps is not None:
            self._caps.look(request, fleet, self._screen, now)
        found = self._screen.pass_over(request, views, lengths.mean)
        gate = None if self._caps is None else Gate(self._caps, request, found)
        outlook = self._outlook(request, fleet, lengths, found, now, now - arrived)
        ends = outlook.prefill_ends(found.prefill)
        best = outlook.pairs(found.decode, ends, self._p.candidates)
        if gate is not None and not gate.admits(best):
            gate.leave_out(found)
            ends = outlook.prefill_ends(found.prefill)
            best = gate.fitting(outlook.pairs(found.decode, ends, self._p.candidates))
            best = best or gate.fitting(_unsplit(outlook, found, ends))
        if gate is not None and not best:
            answer = gate.answer(arrived, now, self._p.hopeless == "refuse")
            if answer is not None:
                return self._powerless(request, found, answer, now)
        if not best:
            return self._nowhere(request, found, views, ends)
        if min(ends.values()) > self._p.reject_beyond * (request.deadline - now):
            return _too_late(min(ends.values()), request.deadline - now)
        *_, producer, consumer = best[0]
        parts = outlook.parts(producer, consumer)
        stake = outlook.stake(producer, consumer, parts)
        if stake.gain < self._p.least_gain:
            case = Case(request, arrived, now, stake, parts["ttft_s"], parts["finish_s"])
            first = not self._known.waits.was_deferred(request)
            verdict = self._patience.verdict(case, self._screen.standings(views))
            if verdict is not None:
                return self._explained(verdict, case, found, best, outlook) if first else verdict
        return self._planned(request, found, best, outlook, parts, lengths, now)

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """Place decode for KV that is at `prefill`: the same search with one producer that is done."""
        lengths = self._known.lengths.lengths(request)
        producer, found = self._screen.after_prefill(request, prefill, fleet, lengths.mean)
        if producer is None:
            return Wait("unknown_backend")
        outlook = self._outlook(request, fleet, lengths, found, now, 0.0)
        best = outlook.bindings(producer, found.decode, self._p.candidates)
        if not best:
            standings = self._screen.standings(fleet.for_model(request.model))
            return unplaced(self.name, request, found, standings)
        consumer, candidates = best[0][5], outlook.bound(best)
        self._known.residents.decodes_at(request.id, consumer.id)
        text = f"decode on {consumer.id}: cost {-candidates[0].score:.3g} s (predicted)"
        return Placement(consumer.id, placed(self.name, request, found, candidates, text))

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learn, and forget who left."""
        self._known.observe(fact, now)
        if self._caps is not None:
            self._caps.observe(fact, now)
        if isinstance(fact, BackendLost | BackendRemoved):
            self._screen.forget(fact.backend)

    def expect(self, request: Request) -> int:
        """Output tokens that a request is expected to need, as learned."""
        return self._known.lengths.expect(request)

    def _outlook(
        self,
        request: Request,
        fleet: FleetView,
        lengths: Lengths,
        found: Eligible,
        now: Seconds,
        waited_s: Seconds,
    ) -> Outlook:
        objective, tokens = self._p.of(request.workload_class), lengths.mean
        span_s = given_s(request.slo, tokens)
        price = 0.0 if self._caps is None else self._caps.price
        worth_s = self._p.worth * span_s
        aim = aim_of(objective, self._p.ttft_weight, request, found, tokens, span_s, price, worth_s)
        stakes: Stakes = NOTHING
        if objective.objective != "latency":
            residents = self._known.residents.at(now)
            stakes = AtStake(request, waited_s, worth_s, residents, self._known.spreads)
        tolls = None if self._tolls is None else self._tolls(request, tokens, now)
        holder = self._known.holder(request, now)
        return Outlook(request, fleet, tokens, aim, holder, stakes, lengths.thirds, tolls)

    def _planned(
        self,
        request: Request,
        found: Eligible,
        best: Sequence[Found],
        outlook: Outlook,
        parts: Mapping[str, float],
        lengths: Lengths,
        now: Seconds,
    ) -> RoutePlan:
        *_, producer, consumer = best[0]
        late = producer is not consumer and parts["queue_s"] + parts["prefill_s"] > self._p.bind_late_s
        late = late and self._caps is None  # the power of the decode is set aside with that of the prefill
        candidates = outlook.candidates(best)
        prediction = outlook.prediction(producer, consumer, parts)
        place = producer.id if producer is consumer else f"{producer.id} -> {consumer.id}"
        times = f"first token in {prediction.ttft_s:.3g} s, finish in {prediction.e2e_s:.3g} s"
        text = f"{place}: {times} (predicted){', decode bound after prefill' if late else ''}"
        decision = placed(self.name, request, found, candidates, text, prediction)
        stall_s, longer_s = outlook.takes(producer, consumer)
        what = Placed(request, producer, consumer, late, parts, lengths, stall_s, longer_s)
        self._known.placed(what, now)
        return RoutePlan(producer.id, None if late else consumer.id, decision, lengths.mean)

    def _explained(
        self, verdict: Wait | Reject, case: Case, found: Eligible, best: Sequence[Found], outlook: Outlook
    ) -> Wait | Reject:
        """With the record of the first answer; who waits is asked again and again."""
        text = f"the request {'waits' if isinstance(verdict, Wait) else 'is refused'}: {why(case)}"
        decision = placed(self.name, case.request, found, outlook.candidates(best), text)
        return replace(verdict, decision=decision)

    def _powerless(
        self, request: Request, found: Eligible, answer: Wait | Reject, now: Seconds
    ) -> Wait | Reject:
        """No place below the power caps, explained once."""
        if not self._known.waits.was_deferred(request):
            text = "the request waits for power" if isinstance(answer, Wait) else answer.reason
            answer = replace(answer, decision=placed(self.name, request, found, (), text))
        return self._known.waits.defer(request, answer, now) if isinstance(answer, Wait) else answer

    def _nowhere(
        self,
        request: Request,
        found: Eligible,
        views: Sequence[BackendView],
        ends: Mapping[Standing, Seconds],
    ) -> Wait | Reject:
        """No place at all. It is explained once; to explain every refusal of a saturated router anew would
        take a third of its time."""
        if (told := self._known.waits.told(request, len(views))) is not None:
            return told
        answer = unplaced(self.name, request, found, self._screen.standings(views), _unusable(found, ends))
        return self._known.waits.tell(request, answer, len(views)) if isinstance(answer, Wait) else answer


def _unsplit(outlook: Outlook, found: Eligible, ends: Mapping[Standing, Seconds]) -> list[Found]:
    """Every place without a split, cheapest first: where two backends draw too much, one may not."""
    places = [outlook.pairs([s], {s: ends[s]}, 1) for s in found.decode if s in ends]
    return sorted((one for each in places for one in each), key=lambda one: one[0])


def _too_late(earliest_s: Seconds, left_s: Seconds) -> Reject:
    text = (
        f"the first token is predicted in {earliest_s:.3g} s at the earliest, but the deadline is in "
        f"{max(0.0, left_s):.3g} s; allow more time, or try again when the load is lower"
    )
    return Reject(text, infeasible_deadline=True)


def given_s(slo: ServiceLevel, tokens: int) -> Seconds:
    """The time that the objectives give a request; seconds of the order of a chat's without them
    (assumption)."""
    first = 1.0 if slo.ttft_s is None else slo.ttft_s
    return first + tokens * (0.05 if slo.tpot_s is None else slo.tpot_s)


def _unusable(found: Eligible, ends: Mapping[Standing, Seconds]) -> list[tuple[Standing, str]]:
    """Why a request with eligible backends has no placement: no prediction, or no common KV layout."""
    unpredicted = [(s, "prediction") for s in found.prefill if s not in ends]
    if unpredicted or not found.prefill or not found.decode:
        return unpredicted
    return [(s, "kv_layout") for s in found.prefill]
