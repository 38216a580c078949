"""Writes policy files: the parameters, and in comments where they come from and what was measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from backends.catalogue import Fleet
from policies.registry import parse_policy_toml
from router.observe.codec import to_json
from router.sim.classes import Workload
from router.tune.pareto import Figures
from router.tune.search import Found

_DIGEST_BYTES: Final = 6


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a search was run on."""

    version: str
    """Of polyphase."""
    workload: str
    fleet: str
    """Each with a digest of its content."""
    requests: int
    """Of a full run."""
    command: str
    """That gives the same file again."""


def tuned_file(found: Found, of: Provenance) -> str:
    """The text of the policy file of the chosen setting. It loads again with the same parameters."""
    params = found.space.params(found.best.point)
    lines = [
        *(f"# {line}".rstrip() for line in _story(found, of)),
        "[policy]",
        f'name = "{found.space.policy}"',
    ]
    text = "\n".join([*lines, *_toml(params, "policy")]) + "\n"
    assert parse_policy_toml(text) == (found.space.policy, params), "a policy file must load as it was meant"
    return text


def digest(value: Any) -> str:
    """A few hexadecimal digits that depend on every field of a noun."""
    text = json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def named(thing: Fleet | Workload) -> str:
    """A fleet or a workload by name and content."""
    content: Any = thing.backends if isinstance(thing, Fleet) else thing
    return f"{thing.name} ({digest(content)})"


def _story(found: Found, of: Provenance) -> Iterator[str]:
    asked = found.asked
    yield f"Tuned in simulation by polyphase {of.version}, for {asked.prefer.value}:"
    yield f"  {of.command}"
    yield f"workload  {of.workload}, {of.requests} requests a run"
    yield f"fleet     {of.fleet}"
    yield f"searched  {', '.join(one.key for one in found.space.dimensions)}"
    yield f"seeds     {_list(asked.seeds)}; search seed {asked.search_seed}; {found.runs} runs"
    yield f"measured  on seeds {_list(found.fresh_seeds)}, which the search did not see:"
    yield "            goodput/s  of all  device $ per 1,000 good  J per 1,000 good"
    yield f"  this      {_figures(found.best_fresh.figures)}"
    yield f"  before    {_figures(found.given_fresh.figures)}"
    yield _verdict(found)


def _verdict(found: Found) -> str:
    if found.best.point == found.given.point:
        return "Nothing better was found: these are the parameters that the search began with."
    width = found.gain.half_width
    interval = "" if width is None else f" +- {width:.3g} (95 % over seeds)"
    sure = "" if found.is_better else "; not sure to be more than noise"
    return f"Goodput differs by {found.gain.mean:+.3g}/s{interval}{sure}."


def _figures(one: Figures) -> str:
    return (
        f"{one.goodput_per_s:9.4g}  {one.attainment:6.1%}  {one.usd_per_1000_good:23.4g}"
        f"  {one.joule_per_1000_good:16.4g}"
    )


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _toml(table: Mapping[str, Any], name: str) -> Iterator[str]:
    """Scalars first, then the tables: what TOML demands."""
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{key} = {_scalar(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield ""
            yield f"[{name}.{key}]"
            yield from _toml(value, f"{name}.{key}")


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, str) else repr(value)
