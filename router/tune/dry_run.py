"""Explains a scene of a file: with the policy's own parameters among the quantities that are turned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from policies.declared import READERS, Declared, complete, declared, with_value
from router.observe.explain import Knob, Question
from router.observe.explanation import Explanation, explanation
from router.observe.scene import decide
from router.tune.scene_file import Case, PolicyText

IRRELEVANT: Final = frozenset({"candidates"})
"""Parameters of records, not of decisions."""
WIDE: Final = 1000.0
"""A range whose ends are further apart than this factor is searched in powers, not in steps."""
SMALLEST: Final = 1e-3
"""Of a wide range from 0 on: the first value above it, and the unit of the scale."""


def explain_case(case: Case, most: int = 2000) -> Explanation:
    """Decide and explain. Raises ConfigError, PolicyError, and what the policy raises."""
    policy = case.fresh()
    answer = decide(policy, case.scene)
    return explanation(policy, case.scene, answer, more=list(parameter_knobs(case)), most=most)


def parameter_knobs(case: Case) -> Iterator[Knob]:
    """The numbers that the policy of a case lets be set, over their declared ranges."""
    text = case.policy
    if text.name not in READERS:
        return
    params = complete(text.name, text.params)
    known = {one.key: one for one in declared(text.name)}
    for key, one in known.items():
        if one.is_number and key not in IRRELEVANT:
            yield _knob(case, PolicyText(text.name, params), one)


def _knob(case: Case, text: PolicyText, one: Declared) -> Knob:
    value = float(_held(text, one))
    whole = isinstance(one.default, int)

    def turn(to: float) -> Question:
        number = round(to) if whole else to
        changed = PolicyText(text.name, with_value(text.params, one.key, number))
        return Question(changed.build(case.seed), case.scene)

    if not is_wide(one):
        return Knob(f"{one.key}:", value, float(one.low), float(one.high), turn, whole=whole)
    return Knob(
        f"{one.key}:",
        to_scale(one, value),
        to_scale(one, one.low),
        to_scale(one, one.high),
        lambda at: turn(from_scale(one, at)),
        whole=False,
        words=lambda at: f"{round(from_scale(one, at)) if whole else from_scale(one, at):.4g}",
    )


def _held(text: PolicyText, one: Declared) -> float:
    value: object = text.params
    for name in one.key.split("."):
        value = value.get(name, one.default) if isinstance(value, dict) else one.default
    return float(value) if isinstance(value, int | float) else float(one.default)


def is_wide(one: Declared) -> bool:
    """Whether the range spans orders of magnitude."""
    return one.high > WIDE * max(one.low, SMALLEST)


def to_scale(one: Declared, value: float) -> float:
    """Position of a value on the scale of a wide range: logarithmic, and 0 where the range begins."""
    unit = one.low if one.low > 0 else SMALLEST
    return math.log1p(max(0.0, value - one.low) / unit)


def from_scale(one: Declared, at: float) -> float:
    """The value at a position, within the range."""
    unit = one.low if one.low > 0 else SMALLEST
    return min(one.high, max(one.low, one.low + math.expm1(at) * unit))
