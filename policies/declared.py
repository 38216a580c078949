"""What every policy lets be set: keys, defaults and ranges, as they were declared. For lint, diff and tuning.

A key of a nested table is dotted, as in `prefill.weights.queue`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Final

from policies.baselines.dynamo import DynamoParameters, TwoTierParameters
from policies.baselines.llm_d import LlmdParameters
from policies.baselines.pooled import MooncakeParameters, SplitwiseParameters
from policies.baselines.preble import PrebleParameters
from policies.baselines.smg import CacheAwareParameters, LeastLoadParameters
from policies.baselines.table import NoParameters
from policies.least_loaded import LeastLoadedParameters
from policies.parameters import Parameters, read, unknown
from policies.predicted import read_predicted
from policies.priced import read_priced
from policies.round_robin import RoundRobinParameters
from policies.scored import read_scored
from policies.scorers import SCORERS

Params = Mapping[str, object]
Reader = Callable[[Params, str], Parameters]
"""(parameters as in a policy file, what to call them) -> checked, with defaults. Raises ConfigError."""

LARGEST_WEIGHT: Final = 10.0
"""Weights count by their shares, so a search need not go to the largest that is allowed."""


def _reader(kind: type[Parameters]) -> Reader:
    return partial(read, kind)


READERS: Final[Mapping[str, Reader]] = {
    "round_robin": _reader(RoundRobinParameters),
    "least_loaded": _reader(LeastLoadedParameters),
    "scored": read_scored,
    "predicted": read_predicted,
    "priced": read_priced,
    "random": _reader(NoParameters),
    "power_of_two": _reader(NoParameters),
    "least_requests": _reader(NoParameters),
    "dynamo": _reader(DynamoParameters),
    "dynamo_two_tier": _reader(TwoTierParameters),
    "smg_cache_aware": _reader(CacheAwareParameters),
    "smg_least_load": _reader(LeastLoadParameters),
    "llm_d": _reader(LlmdParameters),
    "splitwise": _reader(SplitwiseParameters),
    "mooncake": _reader(MooncakeParameters),
    "preble": _reader(PrebleParameters),
}
"""Every policy of the registry; a test keeps the two equal."""


@dataclass(frozen=True, slots=True)
class Declared:
    """One parameter."""

    key: str
    default: Any
    low: float = 0.0
    high: float = 1.0
    """Inclusive range of a number."""
    of: tuple[Any, ...] = ()
    """The values of a parameter that is no number."""
    doc: str = ""

    @property
    def is_number(self) -> bool:
        """Whether it has a range rather than a few values."""
        return not self.of


def parameters(name: str, params: Params | None = None) -> Parameters:
    """A policy's parameters with their defaults filled in. Raises ConfigError."""
    reader = READERS.get(name)
    if reader is None:
        raise unknown("policy", "name", name, READERS)
    return reader(params or {}, f'policy "{name}"')


def declared(name: str) -> tuple[Declared, ...]:
    """What can be set. Raises ConfigError for a policy that is not known."""
    return tuple(_declared(parameters(name), ""))


def effective(name: str, params: Params) -> dict[str, Any]:
    """Every value in force, by dotted key. Raises ConfigError."""
    return dict(_values(parameters(name, params), ""))


def complete(name: str, params: Params) -> dict[str, Any]:
    """The parameters as in a policy file, with every default written out. Raises ConfigError.

    A table of weights that names one replaces the others, so a single weight can only be changed in these.
    """
    whole: dict[str, Any] = {}
    for key, value in effective(name, params).items():
        whole = with_value(whole, key, value)
    return whole


def with_value(params: Params, key: str, value: object) -> dict[str, Any]:
    """A copy of the parameters with one dotted key set."""
    changed: dict[str, Any] = copy.deepcopy(dict(params))
    *tables, last = key.split(".")
    table = changed
    for name in tables:
        table = table.setdefault(name, {})
    table[last] = value
    return changed


def _declared(held: Any, prefix: str) -> Iterator[Declared]:
    for one in fields(held):
        value, key = getattr(held, one.name), f"{prefix}{one.name}"
        if is_dataclass(value):
            yield from _declared(value, f"{key}.")
        elif isinstance(value, Mapping) and one.name == "weights":
            yield from _weights(value, f"{key}.")
        elif one.metadata:
            yield _one(one, key)


def _one(one: Field[Any], key: str) -> Declared:
    about = one.metadata
    if "low" in about:
        return Declared(key, one.default, about["low"], about["high"], doc=about["doc"])
    return Declared(key, one.default, of=about.get("of", (False, True)), doc=about["doc"])


def _weights(defaults: Mapping[str, float], prefix: str) -> Iterator[Declared]:
    for scorer in SCORERS:
        yield Declared(
            f"{prefix}{scorer}", float(defaults.get(scorer, 0.0)), 0.0, LARGEST_WEIGHT, doc="Weight."
        )


def _values(held: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for one in fields(held):
        value, key = getattr(held, one.name), f"{prefix}{one.name}"
        if is_dataclass(value):
            yield from _values(value, f"{key}.")
        elif isinstance(value, Mapping):
            for name, each in sorted(value.items()):
                yield from (
                    _values(each, f"{key}.{name}.") if is_dataclass(each) else [(f"{key}.{name}", each)]
                )
        else:
            yield key, value
