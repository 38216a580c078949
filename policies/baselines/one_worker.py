"""Turns a rule that chooses one worker at a time into a policy of pairs.

Prefill first, then decode among the workers that take over its KV (pools.takers): one after the other, as
the originals do. They price no handoff.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.baselines.pools import eligible, new_screen, stage_of, takers
from policies.baselines.rule import Choice, Learner, Rule, Scene, Stage
from policies.decision import placed, unplaced
from policies.filters import Eligible, Screen
from policies.standing import Standing
from router.core.messages import BackendRemoved
from router.core.ports import FleetView
from router.model import Candidate, Placement, Reject, Request, RoutePlan, Seconds, Wait


class OneWorker:
    """A baseline. Satisfies core.ports.Policy."""

    def __init__(self, name: str, rule: Rule, learner: Learner | None = None) -> None:
        """`learner` is told of plans and facts; usually the rule itself, if it remembers anything."""
        self._name = name
        self._rule = rule
        self._learner = learner
        self._screen = new_screen()

    @property
    def name(self) -> str:
        """As in the configuration."""
        return self._name

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Choose a worker for prefill, then one for decode."""
        found = eligible(self._screen, request, fleet)
        usable = found.pairable()
        if not usable:
            return nowhere(self._name, request, found, self._screen, fleet)
        first = self._rule.choose(Scene(request, stage_of(usable), now), usable)
        producer = usable[first.index]
        targets = takers(producer, found.decode)
        second = self._decode(request, producer, targets, now)
        consumer = targets[second.index]
        if self._learner is not None:
            self._learner.sent(request, producer, consumer, now)
        candidates = ranked(usable, first, producer, consumer)
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
        producer = self._screen.standing(view)
        targets = takers(producer, found.decode)
        if not targets:
            return nowhere(self._name, request, found, self._screen, fleet)
        consumer = targets[self._decode(request, producer, targets, now).index]
        chosen = [Candidate(prefill, consumer.id, 0.0)]
        return Placement(consumer.id, placed(self._name, request, found, chosen, f"decode on {consumer.id}"))

    def observe(self, fact: Any, now: Seconds) -> None:
        """Let the rule learn; forget who left."""
        if isinstance(fact, BackendRemoved):
            self._screen.forget(fact.backend)
        if self._learner is not None:
            self._learner.observe(fact, now)

    def _decode(
        self, request: Request, producer: Standing, targets: Sequence[Standing], now: Seconds
    ) -> Choice:
        if len(targets) == 1:
            return Choice(0, [0.0])
        return self._rule.choose(Scene(request, Stage.DECODE, now), targets)


def ranked(
    producers: Sequence[Standing], choice: Choice, producer: Standing, consumer: Standing
) -> list[Candidate]:
    """For the decision record: the chosen pair first; scores are minus the rule's cost of the prefill."""
    others = sorted(
        (i for i in range(len(producers)) if i != choice.index), key=lambda i: (choice.costs[i], i)
    )
    first = Candidate(producer.id, consumer.id, -choice.costs[choice.index])
    return [first, *(Candidate(producers[i].id, consumer.id, -choice.costs[i]) for i in others[:3])]


def nowhere(name: str, request: Request, found: Eligible, screen: Screen, fleet: FleetView) -> Wait | Reject:
    """No pair of backends is ready."""
    extra = [(s, "kv_layout") for s in found.prefill if found.decode]
    return unplaced(name, request, found, screen.standings(fleet.for_model(request.model)), extra)
