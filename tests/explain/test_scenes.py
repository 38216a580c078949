"""Scenes: kept by a daemon, written as JSON, read from text, and what is said about mistakes in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router.core.fleet import Fleet
from router.core.messages import BackendCordoned, BackendJoined, BackendLost, BackendRemoved
from router.errors import ConfigError
from router.model import BackendState, Priority, Wait
from router.observe.scene import Scene, SceneLog, StillFleet
from router.observe.scene_json import scene_to_json
from router.tune.scene_file import load_scenes, policy_text
from tests.policies.world import policy, reported, request, spec, view

SCENE = """
fleet = "homogeneous"
policy = "least_loaded"
now_s = 50.0
[request]
prompt_tokens = 1000
max_new_tokens = 100
priority = "bulk"
ttft_s = 0.5
deadline_s = 20
[load.h100-0]
decodes = 12
kv_tokens = 9000
state = "cordoned"
reported = { age_s = 0.25, running = 13, kv_used_tokens = 9500, busy_decode_s = 3.5 }
"""


def write(folder: Path, text: str, name: str = "scene.toml") -> Path:
    """A file of scenes."""
    (path := folder / name).write_text(text)
    return path


def test_a_scene_is_read_with_its_load_and_its_request(tmp_path: Path) -> None:
    """Every number lands where the policy looks for it."""
    text = SCENE.replace("homogeneous", "mixed")
    fleet = [view.spec.id for view in load_scenes(write(tmp_path, text)).cases[0].scene.fleet.views]
    assert "h100-0" in fleet
    (case,) = load_scenes(write(tmp_path, text)).cases
    busy = case.scene.fleet.get("h100-0")
    assert busy is not None
    assert busy.snapshot is not None
    assert (busy.in_flight.decodes, busy.in_flight.kv_tokens, busy.state) == (12, 9000, BackendState.CORDONED)
    assert (busy.snapshot.observed_at, busy.snapshot.running, busy.snapshot.busy_decode_s) == (49.75, 13, 3.5)
    asked = case.scene.request
    assert (asked.prompt_tokens, asked.priority, asked.slo.ttft_s, asked.deadline) == (
        1000, Priority.BULK, 0.5, 70.0,
    )  # fmt: skip
    assert case.fresh().name == "least_loaded"


def test_a_case_changes_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    """Tables are laid over tables."""
    text = SCENE.replace("homogeneous", "mixed") + (
        '[[case]]\nname = "longer"\nrequest = { prompt_tokens = 2000 }\nexpect = "b200"\n'
        '[[case]]\nload = { h100-0 = { state = "ready" } }\npolicy = { name = "scored", candidates = 2 }\n'
    )
    longer, other = load_scenes(write(tmp_path, text)).cases
    assert (longer.name, longer.scene.request.prompt_tokens, longer.scene.request.max_new_tokens) == (
        "longer", 2000, 100,
    )  # fmt: skip
    assert longer.expect is not None
    assert (other.name, other.policy.name, other.policy.params) == ("case 2", "scored", {"candidates": 2})
    changed = other.scene.fleet.get("h100-0")
    assert changed is not None
    assert (changed.state, changed.in_flight.decodes) == (BackendState.READY, 12)


def test_a_daemons_scene_survives_json(tmp_path: Path) -> None:
    """To the last field, infinities included."""
    views = [
        reported(view(spec("a"), decodes=3, kv_tokens=100), running=4),
        view(spec("b"), BackendState.LOST),
    ]
    asked = Scene(request(prompt=77, prefix_hashes=(1 << 60, 5), tenant="t"), StillFleet(views), 12.5)
    text = json.dumps(scene_to_json(asked, {"name": "predicted", "ttft_weight": 0.5}))
    (case,) = load_scenes(write(tmp_path, text, "scene.json")).cases
    assert case.scene.request == asked.request
    assert case.scene.fleet.views == asked.fleet.views
    assert (case.scene.now, case.policy.name, case.policy.params) == (12.5, "predicted", {"ttft_weight": 0.5})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("prompt_tokens = 1000", "promt_tokens = 1000"), "did you mean 'prompt_tokens'"),
        (("prompt_tokens = 1000\n", ""), "'prompt_tokens' is missing"),
        (("[load.h100-0]", "[load.h100-9]"), "did you mean 'h100-"),
        (('"cordoned"', '"gone"'), "one of connecting, ready"),
        (("decodes = 12", "decodes = -1"), "whole number from 0"),
        (("running = 13", "runing = 13"), "did you mean 'running'"),
        (('"bulk"', '"urgent"'), "one of bulk, normal"),
        (('"least_loaded"', '"no_such"'), "unknown name"),
        (('fleet = "mixed"', 'fleet = "no_such"'), "there is no fleet 'no_such'"),
        (("[request]", "[[request]]"), "must be a table"),
        (("now_s = 50.0", "now_s = [[["), "is not TOML"),
        (('fleet = "mixed"', "views = 3"), "must be a list of backends"),
        (('fleet = "mixed"', "views = [{spec = {}}]"), "views[0]"),
        (('fleet = "mixed"', "expect = 5"), 'write "PREFILL -> DECODE"'),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    """File, case and field; nothing is decided."""
    text = SCENE.replace("homogeneous", "mixed").replace(*change)
    with pytest.raises(ConfigError) as caught:
        load_scenes(write(tmp_path, text)).cases[0].fresh()
    assert says in caught.value.message


def test_a_file_that_is_not_there_or_no_text_is_said(tmp_path: Path) -> None:
    """With the path."""
    (binary := tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "none.toml", binary):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_scenes(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        policy_text(str(tmp_path / "none.toml"))


def fleet_of(*ids: str) -> Fleet:
    """A live fleet."""
    fleet = Fleet()
    for each in ids:
        fleet.join(spec(each), "boot", "")
    return fleet


def test_the_log_keeps_the_last_questions_as_they_were(tmp_path: Path) -> None:
    """What happens to the fleet later does not reach back."""
    log, fleet, decider = SceneLog(capacity=2), fleet_of("a", "b"), policy("least_loaded")
    for name in ("r1", "r2", "r3"):
        asked = request(prompt=10)
        log.decided(decider, _named(asked, name), fleet, 1.0, Wait("kv_full"))
    assert len(log) == 2
    assert log.get("r1") is None
    kept = log.get("r3")
    assert kept is not None
    fleet.lose("a")
    assert [each.state for each in kept.scene.fleet.views] == [BackendState.READY] * 2


def test_the_log_knows_since_when() -> None:
    """The last change of each backend that is there."""
    log = SceneLog()
    facts: list[tuple[Any, float]] = [
        (BackendJoined(spec("a"), "boot"), 1.0),
        (BackendJoined(spec("b"), "boot"), 2.0),
        (BackendLost("a"), 3.0),
        (BackendCordoned("b"), 4.0),
        (BackendRemoved("a"), 5.0),
    ]
    for fact, at in facts:
        log.observed(fact, at)
    assert log.since == {"b": 4.0}


def _named(asked: Any, name: str) -> Any:
    from dataclasses import replace

    return replace(asked, id=name)
