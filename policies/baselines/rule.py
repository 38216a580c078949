"""What a baseline's rule is asked, and what it answers.

A rule ranks the candidates of one choice; one_worker.py turns choices into plans. Costs are in the rule's
own unit; lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, Protocol

from policies.standing import Standing
from router.model import Request, Seconds


class Stage(StrEnum):
    """Which of a deployment's routers is asked."""

    WHOLE = "whole"
    """One worker for both phases, in a fleet whose prefill backends all decode as well."""
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Scene:
    """One choice."""

    request: Request
    stage: Stage
    now: Seconds


@dataclass(frozen=True, slots=True)
class Choice:
    """The candidate that a rule takes, and the cost of each."""

    index: int
    costs: Sequence[float]


class Rule(Protocol):
    """Chooses one worker at a time."""

    def choose(self, scene: Scene, candidates: Sequence[Standing]) -> Choice:
        """Take one of at least one candidate."""
        ...


class Learner(Protocol):
    """What a rule remembers of its own decisions and of facts. Bounded."""

    def sent(self, request: Request, producer: Standing, consumer: Standing, now: Seconds) -> None:
        """A plan was made of the choices."""
        ...

    def observe(self, fact: Any, now: Seconds) -> None:
        """See a fact after the core handled it."""
        ...


def first_least(costs: Sequence[float]) -> int:
    """The lowest cost; ties go to the first; what is no number is never low."""
    return min(range(len(costs)), key=lambda i: (_number(costs[i]), i))


def random_least(costs: Sequence[float], rng: Random) -> int:
    """The lowest cost; ties are drawn."""
    least = min(_number(cost) for cost in costs)
    return rng.choice([i for i, cost in enumerate(costs) if _number(cost) == least])


def active_requests(s: Standing, stage: Stage) -> int:
    """Requests in flight by the router's own books, in the phase that is asked for."""
    ours = s.view.in_flight
    return ours.prefills if stage is Stage.PREFILL else ours.decodes


def active_prompt_tokens(s: Standing) -> int:
    """Prompt tokens of the requests in flight, whatever their phase; output is not in it."""
    ours = s.view.in_flight
    return max(0, ours.kv_tokens - ours.decode_tokens)


def _number(cost: float) -> float:
    return math.inf if math.isnan(cost) else cost
