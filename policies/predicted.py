"""Predict, then place: the pair of backends, or the one backend, with the earliest predicted finish.

    one backend   prefill end + (n - 1) steps
    a pair        prefill end + KV transfer + n steps, or n - 1 where prefill gives the first token

Prefill ends behind the prompt tokens ahead, beside what decodes there. A step is that of the batch
after joining it, stretched by the prefill work of the same backend: by the larger of what waits
there now and of the share that prefill had of late (learned.py). n is the expected output.

A prediction counts from the decision on: what a request waited before is the same for all places. What a
backend holds of the prompt by our own decisions (prefixes.py) need not be computed there; prompts ahead have
the share of hits that their backend had of late. Not predicted: transfers that share a link, slots that free
up in time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from policies.decision import MAX_CANDIDATES, placed, unplaced
from policies.filters import Eligible, Screen
from policies.learned import CachedShare, OutputLengths, PrefillDuty
from policies.outlook import Outlook
from policies.parameters import number
from policies.prefixes import PrefixIndex
from policies.search import Found
from policies.standing import Standing
from router.core.messages import (
    BackendLost,
    BackendRemoved,
    BackendReported,
    DecodeDone,
    PrefillDone,
    RequestCancelled,
)
from router.core.ports import FleetView, ModelSource
from router.model import Placement, Reject, Request, RoutePlan, Seconds, Wait

NAME: Final = "predicted"


@dataclass(frozen=True, slots=True)
class PredictedParameters:
    """Parameters of `predicted`."""

    ttft_weight: float = number(
        0.0, low=0.0, high=1.0, doc="Minimise (1 - w) x finish + w x time to first token, both in seconds."
    )
    max_prefill_queue: int = number(
        32, low=1, high=100_000, doc="Prefills in flight per backend; above, requests wait in the router."
    )
    candidates: int = number(
        4, low=1, high=MAX_CANDIDATES, doc="Pairs kept in the decision record, best first."
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
    refuse_beyond_slo: float = number(
        0.0,
        low=0.0,
        high=1e6,
        doc="Refuse when the best place breaks the objective for the first token or the time per token "
        "by more than this factor, so that those behind keep theirs (early rejection); 0 refuses nobody.",
    )


class Predicted:
    """Earliest predicted finish over all feasible pairs. Satisfies core.ports.Policy."""

    name = NAME

    def __init__(self, parameters: PredictedParameters, models: ModelSource) -> None:
        self._p = parameters
        self._lengths = OutputLengths(parameters.length_memory)
        self._duty = PrefillDuty(parameters.duty_window_s)
        self._prefixes = PrefixIndex()
        self._cached = CachedShare(parameters.length_memory)
        self._screen = Screen(models, parameters.max_prefill_queue, self._duty.stretch, self._cached.uncached)

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Place both phases."""
        views = fleet.for_model(request.model)
        expected = self._lengths.expect(request)
        outlook = Outlook(request, fleet, expected, self._p.ttft_weight, self._holder(request, now))
        found = self._screen.pass_over(request, views, outlook.output_tokens)
        ends = outlook.prefill_ends(found.prefill)
        best = outlook.pairs(found.decode, ends, self._p.candidates)
        if not best:
            return unplaced(self.name, request, found, self._screen.standings(views), _unusable(found, ends))
        if min(ends.values()) > self._p.reject_beyond * (request.deadline - now):
            return self._too_late(request, min(ends.values()), request.deadline - now)
        if (refusal := self._hopeless(request, best, outlook)) is not None:
            return refusal
        plan = self._planned(request, found, best, outlook)
        self._lengths.wait_for(request)
        self._cached.wait_for(request, plan.prefill)
        self._prefixes.store(best[0][4], request.prefix_hashes, now)
        return plan

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """Place decode for KV that is at `prefill`: the same search with one producer that is done."""
        outlook = Outlook(request, fleet, self._lengths.expect(request), self._p.ttft_weight)
        producer, found = self._screen.after_prefill(request, prefill, fleet, outlook.output_tokens)
        if producer is None:
            return Wait("unknown_backend")
        best = outlook.bindings(producer, found.decode, self._p.candidates)
        if not best:
            standings = self._screen.standings(fleet.for_model(request.model))
            return unplaced(self.name, request, found, standings)
        consumer, candidates = best[0][5], outlook.bound(best)
        text = f"decode on {consumer.id}: finish in {-candidates[0].score:.3g} s (predicted)"
        return Placement(consumer.id, placed(self.name, request, found, candidates, text))

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learn answer lengths and prefill shares; forget who left."""
        match fact:
            case DecodeDone():
                self._lengths.finished(fact.request_id, fact.output_tokens)
            case BackendReported():
                self._duty.reported(fact.backend, fact.snapshot)
            case RequestCancelled():
                self._lengths.forget(fact.request_id)
                self._cached.forget_request(fact.request_id)
            case PrefillDone():
                self._cached.prefilled(fact.request_id, fact.cached_tokens)
            case BackendLost() | BackendRemoved():
                self._duty.forget(fact.backend)
                self._cached.forget(fact.backend)
                self._prefixes.forget(fact.backend)
                self._screen.forget(fact.backend)
            case _:
                pass

    def _holder(self, request: Request, now: Seconds) -> Callable[[Standing], int] | None:
        if not request.prefix_hashes:
            return None
        return lambda s: self._prefixes.tokens(s, request, now)

    def _planned(
        self, request: Request, found: Eligible, best: Sequence[Found], outlook: Outlook
    ) -> RoutePlan:
        *_, producer, consumer = best[0]
        candidates = outlook.candidates(best)
        prediction = outlook.prediction(producer, consumer, candidates[0].parts)
        place = producer.id if producer is consumer else f"{producer.id} -> {consumer.id}"
        times = f"first token in {prediction.ttft_s:.3g} s, finish in {prediction.e2e_s:.3g} s"
        text = f"{place}: {times} (predicted)"
        decision = placed(self.name, request, found, candidates, text, prediction)
        return RoutePlan(producer.id, consumer.id, decision, outlook.output_tokens)

    def _hopeless(self, request: Request, best: Sequence[Found], outlook: Outlook) -> Reject | None:
        """Judges the place that would be taken: by it the request gets the earliest finish there is."""
        slo, factor = request.slo, self._p.refuse_beyond_slo
        if not factor or (slo.ttft_s is None and slo.tpot_s is None):
            return None
        *_, producer, consumer = best[0]
        expected = outlook.prediction(producer, consumer, outlook.parts(producer, consumer))
        late = slo.ttft_s is not None and expected.ttft_s > factor * slo.ttft_s
        slow = slo.tpot_s is not None and (expected.tpot_s or 0.0) > factor * slo.tpot_s
        if not (late or slow):
            return None
        text = (
            f"the first token is predicted in {expected.ttft_s:.3g} s and each other in "
            f"{expected.tpot_s or 0.0:.3g} s, which breaks the objectives; try again when the load is lower"
        )
        return Reject(text, infeasible_deadline=True)

    def _too_late(self, request: Request, earliest_s: Seconds, left_s: Seconds) -> Reject:
        text = (
            f"the first token is predicted in {earliest_s:.3g} s at the earliest, but the deadline is in "
            f"{max(0.0, left_s):.3g} s; allow more time, or try again when the load is lower"
        )
        return Reject(text, infeasible_deadline=True)


def _unusable(found: Eligible, ends: Mapping[Standing, Seconds]) -> list[tuple[Standing, str]]:
    """Why a request with eligible backends has no placement: no prediction, or no common KV layout."""
    unpredicted = [(s, "prediction") for s in found.prefill if s not in ends]
    if unpredicted or not found.prefill or not found.decode:
        return unpredicted
    return [(s, "kv_layout") for s in found.prefill]
