"""Reads scenes: a fleet, its load, a request and a policy, as text. One format for `explain --dry-run` and
`policy test`.

    fleet = "mixed"                      # a name, or a fleet file beside this one
    policy = "predicted"                 # a name, a policy file, or a table [policy] as in one
    expect = "b200 -> lpu"               # what a test expects; `explain` does not look at it

    [request]
    prompt_tokens = 4000
    max_new_tokens = 300

    [load.b200]                          # our ledger; backends that are not named are idle
    decodes = 40
    kv_tokens = 90_000
    reported = { age_s = 0.05, running = 42, kv_used_tokens = 95_000 }

    [[case]]                             # any number; each is the whole above with these changes
    name = "no room"
    request = { prompt_tokens = 100_000 }
    expect = "wait: kv_full"

A file that ends in .json has the same keys. `views` instead of `fleet` holds backends as a daemon knows them
(router/observe/scene_json.py). docs/guides/explain-and-tune.md lists every key.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from random import Random
from typing import Any, Final

from backends.catalogue import load_fleet
from backends.models.fields import Fields, merged
from backends.models.laws import StepModels
from policies.registry import build, parse_policy_toml
from router.core.ports import Policy
from router.errors import ConfigError
from router.model import (
    BackendSnapshot,
    BackendSpec,
    BackendState,
    BackendView,
    InFlight,
    Priority,
    Request,
    ServiceLevel,
)
from router.observe.scene import Scene, StillFleet
from router.observe.scene_json import TYPE, request_of, views_of
from router.tune.expectation import Expectation, parse_expectation

MAX_FILE_BYTES: Final = 64 << 20
"""A daemon's snapshot of ten thousand backends fits."""
MAX_CASES: Final = 10_000
DEFAULT_DEADLINE_S: Final = 300.0
"""As a daemon's."""
_TOP: Final = ("fleet", "views", "policy", "expect", "seed", "now_s", "request", "load", "name", "note")
_LOAD: Final = ("prefills", "prefill_tokens", "decodes", "decode_tokens", "kv_tokens", "state", "reported")
_NUMBERS: Final = ("ttft_s", "tpot_s", "jitter_ratio", "deadline_s", "max_cost_usd", "max_energy_j")
_REQUEST: Final = (
    *(
        "id",
        "model",
        "prompt_tokens",
        "max_new_tokens",
        "workload_class",
        "tenant",
        "session_key",
        "priority",
    ),
    *("prefix_hashes", *_NUMBERS),
)
Table = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PolicyText:
    """A policy by name and parameters, unchecked."""

    name: str
    params: Mapping[str, Any]

    def build(self, seed: int = 1) -> Policy:
        """A fresh one, with the models that the backends declare. Raises ConfigError."""
        return build(self.name, self.params, StepModels(), Random(seed))


@dataclass(frozen=True, slots=True)
class Case:
    """One scene of a file."""

    name: str
    number: int
    """From 0, in the order of the file."""
    scene: Scene
    policy: PolicyText
    seed: int
    expect: Expectation | None

    def fresh(self) -> Policy:
        """The policy of the case, as new. Raises ConfigError."""
        return self.policy.build(self.seed)


@dataclass(frozen=True, slots=True)
class SceneFile:
    """A file of scenes."""

    path: Path
    document: Table
    cases: tuple[Case, ...]
    """At least one."""


def load_scenes(path: Path, policy: PolicyText | None = None) -> SceneFile:
    """Read a file; `policy` replaces those that it names. Raises ConfigError that names file, case and
    field."""
    document = _document(path)
    where = path.name
    entries = document.get("case", [{}])
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_CASES:
        raise ConfigError(f"{where}: `case` must be a list of 1 to {MAX_CASES} tables; write [[case]].")
    common = {key: value for key, value in document.items() if key != "case"}
    reader = _Reader(path.parent, where, policy)
    cases = tuple(reader.case(common, entry, number) for number, entry in enumerate(entries))
    return SceneFile(path, document, cases)


def policy_text(name_or_file: str, folder: Path = Path()) -> PolicyText:
    """A policy by name, or by the path of a .toml file. Raises ConfigError."""
    if not name_or_file.endswith(".toml"):
        return PolicyText(name_or_file, {})
    path = folder / name_or_file
    try:
        return PolicyText(*parse_policy_toml(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Check the path.") from error


def _document(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes; it cannot be a scene.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Check the path.") from error
    try:
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path} is not {kind}: {error}. Correct the file.") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no table; a scene is one object. Correct the file.")
    return document


class _Reader:
    """Reads the cases of one file. Fleets are read once."""

    def __init__(self, folder: Path, where: str, policy: PolicyText | None) -> None:
        self._folder = folder
        self._where = where
        self._policy = policy
        self._fleets: dict[str, tuple[BackendSpec, ...]] = {}

    def case(self, common: Table, entry: object, number: int) -> Case:
        """One scene: what all cases share, and its own changes over it."""
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{self._where} [[case]] {number + 1} must be a table; write [[case]].")
        name = str(entry.get("name", common.get("name", f"case {number + 1}")))
        where = f"{self._where}, {name!r}"
        whole = merged({**common, "expect": None} if "expect" in entry else common, entry)
        top = Fields(whole, where, _TOP)
        scene = self._scene(top, whole, where)
        expect = parse_expectation(whole["expect"], where) if "expect" in top else None
        return Case(name, number, scene, self._policy_of(whole, where), top.whole("seed", 1, least=0), expect)

    def _scene(self, top: Fields, whole: Table, where: str) -> Scene:
        now = top.number("now_s", 0.0)
        if "views" in top:
            views = views_of(whole["views"], where)
        else:
            views = tuple(BackendView(spec) for spec in self._fleet(top.text("fleet", "mixed")))
        views = _loaded(views, top.table("load"), now, where)
        models = next((view.spec.models[0] for view in views), "")
        return Scene(_request(top.table("request"), models, now, f"{where}, request"), StillFleet(views), now)

    def _fleet(self, name: str) -> tuple[BackendSpec, ...]:
        if name not in self._fleets:
            at = str(self._folder / name) if name.endswith(".toml") else name
            self._fleets[name] = load_fleet(at).backends
        return self._fleets[name]

    def _policy_of(self, whole: Table, where: str) -> PolicyText:
        if self._policy is not None:
            return self._policy
        asked = whole.get("policy", "predicted")
        if isinstance(asked, str):
            return policy_text(asked, self._folder)
        if not isinstance(asked, Mapping) or not isinstance(asked.get("name"), str):
            raise ConfigError(
                f"{where}: `policy` is {asked!r:.80}; give a name, a .toml file, or a table with a name."
            )
        return PolicyText(asked["name"], {key: value for key, value in asked.items() if key != "name"})


def _loaded(views: tuple[BackendView, ...], load: Table, now: float, where: str) -> tuple[BackendView, ...]:
    known = {view.spec.id for view in views}
    Fields(load, f"{where}, load", known)
    return tuple(
        _with_load(view, load[view.spec.id], now, f"{where}, load.{view.spec.id}")
        if view.spec.id in load
        else view
        for view in views
    )


def _with_load(view: BackendView, table: object, now: float, where: str) -> BackendView:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is {table!r:.40}; it must be a table.")
    read = Fields(table, where, _LOAD)
    ours = view.in_flight
    counts = {one.name: read.whole(one.name, getattr(ours, one.name), least=0) for one in fields(InFlight)}
    state = read.choice("state", BackendState, view.state)
    snapshot = view.snapshot
    if "reported" in read:
        snapshot = _snapshot(read.table("reported"), now, f"{where}.reported")
    return replace(view, in_flight=InFlight(**counts), state=state, snapshot=snapshot)


def _snapshot(table: Table, now: float, where: str) -> BackendSnapshot:
    known = {one.name: one for one in fields(BackendSnapshot) if one.name != "observed_at"}
    read = Fields(table, where, ("age_s", *known))
    values: dict[str, Any] = {}
    for name, one in known.items():
        if name not in read:
            continue
        if one.type == "str":
            values[name] = read.text(name)
        else:
            values[name] = (
                read.number(name) if one.type in ("float", "Seconds") else read.whole(name, least=0)
            )
    return BackendSnapshot(observed_at=now - read.number("age_s", 0.0), **values)


def _request(table: Table, model: str, now: float, where: str) -> Request:
    if TYPE in table:
        return request_of(table, where)
    read = Fields(table, where, _REQUEST)
    optional: dict[str, Any] = {key: read.number(key, least=1e-9) for key in _NUMBERS if key in read}
    deadline_s = optional.pop("deadline_s", DEFAULT_DEADLINE_S)
    slo = ServiceLevel(*(optional.pop(key, None) for key in ("ttft_s", "tpot_s", "jitter_ratio")))
    priority = read.text("priority", "normal").upper()
    if priority not in Priority.__members__:
        known = ", ".join(name.lower() for name in Priority.__members__)
        raise ConfigError(f"{where}: 'priority' is {priority.lower()!r}; it must be one of {known}.")
    return Request(
        id=read.text("id", "request"),
        model=read.text("model", model),
        prompt_tokens=read.whole("prompt_tokens"),
        max_new_tokens=read.whole("max_new_tokens"),
        deadline=now + deadline_s,
        workload_class=read.text("workload_class", ""),
        slo=slo,
        tenant=read.text("tenant", ""),
        priority=Priority[priority],
        session_key=read.text("session_key", ""),
        prefix_hashes=read.wholes("prefix_hashes", ()),
        **optional,
    )
