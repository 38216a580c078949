"""Decode first, then whether to split, then prefill: llm-d's order, and Dynamo's with a condition.

A worker of both phases that was chosen for decode prefills itself unless the decider sends the prompt to the
pool that only prefills; one that only decodes gets its KV from any prefill worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from policies.baselines.one_worker import nowhere
from policies.baselines.pools import both, eligible, new_screen, takers
from policies.baselines.rule import Choice, Learner, Rule, Scene, Stage
from policies.decision import placed, unplaced
from policies.filters import Eligible
from policies.standing import Standing
from router.core.messages import BackendRemoved
from router.core.ports import FleetView
from router.model import Candidate, Phase, Placement, Reject, Request, RoutePlan, Seconds, Wait

Splits = Callable[[Request, Standing, Seconds], bool]
"""(request, chosen decode worker, now) -> whether a worker of the prefill pool does the prompt."""


class DecodeFirst:
    """A baseline. Satisfies core.ports.Policy."""

    def __init__(self, name: str, rule: Rule, splits: Splits, learner: Learner | None = None) -> None:
        """`splits` is the decider; it is asked only where both answers are possible."""
        self._name = name
        self._rule = rule
        self._splits = splits
        self._learner = learner
        self._screen = new_screen()

    @property
    def name(self) -> str:
        """As in the configuration."""
        return self._name

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Choose a worker for decode, decide, then choose one for prefill."""
        found = eligible(self._screen, request, fleet)
        targets = [s for s in found.decode if _sources(s, found)]
        if not targets:
            return nowhere(self._name, request, found, self._screen, fleet)
        whole = all(both(s) for s in targets)
        choice = self._rule.choose(Scene(request, Stage.WHOLE if whole else Stage.DECODE, now), targets)
        consumer = targets[choice.index]
        producer = self._producer(request, consumer, found, now)
        if self._learner is not None:
            self._learner.sent(request, producer, consumer, now)
        candidates = _ranked(producer, targets, choice)
        text = f"{producer.id} -> {consumer.id} by {self._name}"
        return RoutePlan(producer.id, consumer.id, placed(self._name, request, found, candidates, text))

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """Choose a decode worker for KV that is at `prefill`."""
        found = eligible(self._screen, request, fleet)
        view = fleet.get(prefill)
        if view is None:
            return Wait("unknown_backend")
        targets = takers(self._screen.standing(view), found.decode)
        if not targets:
            standings = self._screen.standings(fleet.for_model(request.model))
            return unplaced(self._name, request, found, standings)
        consumer = targets[self._rule.choose(Scene(request, Stage.DECODE, now), targets).index]
        chosen = [Candidate(prefill, consumer.id, 0.0)]
        return Placement(consumer.id, placed(self._name, request, found, chosen, f"decode on {consumer.id}"))

    def observe(self, fact: Any, now: Seconds) -> None:
        """Let the rule learn; forget who left."""
        if isinstance(fact, BackendRemoved):
            self._screen.forget(fact.backend)
        if self._learner is not None:
            self._learner.observe(fact, now)

    def _producer(self, request: Request, consumer: Standing, found: Eligible, now: Seconds) -> Standing:
        sources = _sources(consumer, found)
        if consumer in sources:
            others = [s for s in sources if Phase.DECODE not in s.spec.phases]
            if not others or not self._splits(request, consumer, now):
                return consumer
            sources = others
        return sources[self._rule.choose(Scene(request, Stage.PREFILL, now), sources).index]


def _sources(consumer: Standing, found: Eligible) -> list[Standing]:
    return [s for s in found.prefill if consumer.spec.accepts_kv_of(s.spec)]


def _ranked(producer: Standing, targets: Sequence[Standing], choice: Choice) -> list[Candidate]:
    others = sorted((i for i in range(len(targets)) if i != choice.index), key=lambda i: choice.costs[i])
    first = Candidate(producer.id, targets[choice.index].id, -choice.costs[choice.index])
    return [first, *(Candidate(producer.id, targets[i].id, -choice.costs[i]) for i in others[:3])]
