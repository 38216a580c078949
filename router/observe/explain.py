"""Works out the smallest change that would have given another answer, by asking the policy again.

Nothing here knows how a policy thinks. One quantity of the question is turned at a time (explain_knobs.py),
in steps that double, until the wanted answer comes; then the threshold is bisected. Every value that is
reported was asked and gave the wanted answer. The policy is copied for each question, so it learns nothing
from them.

A quantity whose effect goes to and fro is found at the first step that gives the wanted answer, which need
not be the nearest point that does. Two quantities are never turned together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from router.core.choice import Plan
from router.core.ports import Policy
from router.model import Candidate, Decision, Reject, RoutePlan, Wait
from router.observe.scene import Place, Scene, decide, place_of

RUNGS = 11
"""Steps of the search outwards: from 1/1024 of the range to all of it."""
HALVINGS = 10
"""Of the interval in which the answer changes: to a thousandth of it."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and who is asked."""

    policy: Policy
    scene: Scene


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class Knob:
    """One quantity of a question that can be turned."""

    name: str
    value: float
    """As it is."""
    low: float
    high: float
    """How far it is turned, inclusive; the span between the two is what a change is measured by."""
    turn: Callable[[float], Question]
    """The question with another value. Raises PolyphaseError for one that cannot be asked."""
    whole: bool = True
    words: Callable[[float], str] = _number
    """A value as it is read; the name comes before it."""
    switch: bool = False
    """It has two values: there is no "at least"."""

    @property
    def span(self) -> float:
        """The range."""
        return self.high - self.low


@dataclass(frozen=True, slots=True)
class Change:
    """A quantity that, turned so far by itself, gives the wanted answer."""

    name: str
    before: float
    after: float
    effort: float
    """Share of the quantity's range, in [0, 1]: by it changes are compared."""
    text: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What was found, smallest first."""

    found: tuple[Change, ...]
    asked: int
    """Times the policy was asked."""
    complete: bool
    """False when the number of questions was spent before every quantity was tried."""
    note: str = ""
    """Why nothing was looked for; empty when it was."""


class Interview:
    """Asks a policy a bounded number of questions."""

    def __init__(self, wanted: Callable[[Plan], bool], most: int, paced: Callable[[], None]) -> None:
        """`paced` is called after every question: a place to let others work."""
        self.asked = 0
        self._wanted = wanted
        self._most = most
        self._paced = paced

    @property
    def spent(self) -> bool:
        """No more questions."""
        return self.asked >= self._most

    def gives(self, knob: Knob, value: float) -> bool:
        """Whether the wanted answer comes. A question that cannot be asked or answered gives none."""
        if self.spent:
            return False
        self.asked += 1
        try:
            question = knob.turn(value)
            return self._wanted(decide(question.policy, question.scene))
        except Exception:  # noqa: BLE001 - the policy is plugged in, and the question may be absurd
            return False
        finally:
            self._paced()


def smallest_changes(
    knobs: Sequence[Knob],
    wanted: Callable[[Plan], bool],
    *,
    most: int = 2000,
    paced: Callable[[], None] = lambda: None,
) -> Changes:
    """For each knob the smallest turn that gives a wanted answer, smallest of all first.

    `most` bounds the questions; a knob that cannot give the answer costs two searches outwards.
    """
    interview = Interview(wanted, most, paced)
    found = [change for knob in knobs if (change := _threshold(knob, interview)) is not None]
    found.sort(key=lambda change: change.effort)
    return Changes(tuple(found), interview.asked, not interview.spent)


def wants(candidate: Candidate) -> Callable[[Plan], bool]:
    """The answer that places a request as a candidate would."""
    return lambda answer: _is(place_of(answer), candidate)


def placed(answer: Plan) -> bool:
    """Any place at all."""
    return isinstance(answer, RoutePlan)


def same_place(answer: Plan, place: Place | None) -> bool:
    """Whether an answer puts the request in the same place, or nowhere as before."""
    return place_of(answer) == place


def decision_of(answer: Plan) -> Decision | None:
    """The record in an answer, if the policy gave one."""
    match answer:
        case RoutePlan():
            return answer.decision
        case Wait() | Reject():
            return answer.decision


def _is(place: Place | None, candidate: Candidate) -> bool:
    if place is None or place[0] != candidate.prefill:
        return False
    return place[1] is None or place[1] == candidate.decode


def _threshold(knob: Knob, interview: Interview) -> Change | None:
    turns = [_outwards(knob, interview, end) for end in (knob.low, knob.high) if end != knob.value]
    values = [value for value in turns if value is not None]
    if not values:
        return None
    after = min(values, key=lambda value: abs(value - knob.value))
    effort = abs(after - knob.value) / knob.span
    bound = "" if knob.switch else "at least " if after > knob.value else "at most "
    text = f"{knob.name} {bound}{knob.words(after)} instead of {knob.words(knob.value)}"
    return Change(knob.name, knob.value, after, effort, text)


def _outwards(knob: Knob, interview: Interview, end: float) -> float | None:
    """Double the step until the answer comes or the end is reached; then halve the last step."""
    before = knob.value
    for rung in range(RUNGS):
        step = knob.span * 2.0 ** (rung - RUNGS + 1)
        value = _clamped(knob, knob.value + math.copysign(step, end - knob.value), end)
        if value != before:
            if interview.gives(knob, value):
                return _bisected(knob, interview, before, value)
            before = value
        if value == end or interview.spent:
            return None
    return None


def _clamped(knob: Knob, value: float, end: float) -> float:
    value = max(value, end) if end < knob.value else min(value, end)
    if not knob.whole or value == end:
        return value
    return float(math.floor(value) if end < knob.value else math.ceil(value))


def _bisected(knob: Knob, interview: Interview, misses: float, gives: float) -> float:
    """Narrow the interval; its second end always gives the answer."""
    for _ in range(HALVINGS):
        middle = (misses + gives) / 2
        if knob.whole:
            middle = float(math.floor(middle)) if gives < misses else float(math.ceil(middle))
        if middle in (misses, gives) or interview.spent:
            break
        if interview.gives(knob, middle):
            gives = middle
        else:
            misses = middle
    return gives
