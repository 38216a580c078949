"""The policies there are, by name, and how one is built from its table in a TOML file.

    [policy]
    name = "predicted"
    ttft_weight = 0.2

A policy of your own needs one more entry in a table like BUILTIN (docs/guides/write-a-policy.md).
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

from policies.baselines.table import BASELINES
from policies.least_loaded import LeastLoaded, LeastLoadedParameters
from policies.parameters import read, unknown
from policies.predicted import Predicted, read_predicted
from policies.priced import Priced, read_priced
from policies.round_robin import RoundRobin, RoundRobinParameters
from policies.scored import Scored, read_scored
from router.core.ports import ModelSource, Policy
from router.errors import ConfigError

Factory = Callable[[Mapping[str, object], ModelSource, Random], Policy]
"""(parameters as read from TOML, latency models, randomness) -> policy. Raises ConfigError."""

DEFAULT: Final = "predicted"
MAX_TEXT: Final = 1 << 16
"""Characters of a policy file; a larger one is another kind of file."""


def _round_robin(params: Mapping[str, object], models: ModelSource, rng: Random) -> Policy:
    return RoundRobin(read(RoundRobinParameters, params, _table("round_robin")))


def _least_loaded(params: Mapping[str, object], models: ModelSource, rng: Random) -> Policy:
    return LeastLoaded(read(LeastLoadedParameters, params, _table("least_loaded")), models)


def _scored(params: Mapping[str, object], models: ModelSource, rng: Random) -> Policy:
    return Scored(read_scored(params, _table("scored")), models, rng)


def _predicted(params: Mapping[str, object], models: ModelSource, rng: Random) -> Policy:
    return Predicted(read_predicted(params, _table("predicted")), models)


def _priced(params: Mapping[str, object], models: ModelSource, rng: Random) -> Policy:
    return Priced(read_priced(params, _table("priced")), models)


BUILTIN: Final[Mapping[str, Factory]] = {
    "round_robin": _round_robin,
    "least_loaded": _least_loaded,
    "scored": _scored,
    "predicted": _predicted,
    "priced": _priced,
}
"""Our own. They place nothing where it has no room at the time."""
POLICIES: Final[Mapping[str, Factory]] = {**BUILTIN, **BASELINES}
"""All that ship: ours, and other routers' rules to compare with (policies/baselines)."""


def build(
    name: str,
    params: Mapping[str, object],
    models: ModelSource,
    rng: Random,
    table: Mapping[str, Factory] = POLICIES,
) -> Policy:
    """Build a policy. Raises ConfigError for an unknown name, an unknown key, or a wrong value."""
    factory = table.get(name)
    if factory is None:
        raise unknown("policy", "name", name, table)
    return factory(params, models, rng)


def parse_policy_toml(text: str) -> tuple[str, dict[str, Any]]:
    """Read a policy file: its name, and its parameters unchecked (`build` checks them).

    Raises ConfigError for text that is not TOML, is too long, has other tables, or names no policy.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError(
            f"policy file: {len(text)} characters, more than {MAX_TEXT}; nothing was changed. "
            "Is it the right file?"
        )
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of thousands of digits
        raise ConfigError(f"policy file: not TOML: {error}. Nothing was changed; correct it.") from error
    for key in document:
        if key != "policy":
            raise unknown("policy file", "table", key, ["policy"])
    parameters = document.get("policy")
    if not isinstance(parameters, dict):
        raise ConfigError(
            'policy file: no [policy] table; nothing was changed. Begin with [policy] and name = "...".'
        )
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(
            f"policy file: [policy] name is {name!r} but must be one of {', '.join(POLICIES)}; "
            "nothing was changed."
        )
    return name, parameters


def _table(name: str) -> str:
    return f'policy "{name}"'
