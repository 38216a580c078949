"""Policy files, good and broken. Every error names the key, says what is allowed, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from policies.registry import BUILTIN, DEFAULT, MAX_TEXT, build, parse_policy_toml
from router.core.ports import Policy
from router.errors import ConfigError
from router.model import RoutePlan
from tests.policies.world import Models, Views, request, spec, view

SAMPLES = sorted((Path(__file__).parents[2] / "deploy" / "policies").glob("*.toml"))


def load(text: str) -> Policy:
    """A policy from the text of its file."""
    return build(*parse_policy_toml(text), Models(), Random(1))


def table(body: str, name: str = "predicted") -> str:
    """A policy file with some lines of parameters."""
    return f'[policy]\nname = "{name}"\n{body}\n'


@pytest.mark.parametrize("name", BUILTIN)
def test_every_policy_has_defaults_and_carries_its_name(name: str) -> None:
    """A file with the name alone will do."""
    assert load(table("", name)).name == name
    assert DEFAULT in BUILTIN


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_the_samples_are_policies_that_place(sample: Path) -> None:
    """Each sample is named after its policy and places a request."""
    made = load(sample.read_text(encoding="utf-8"))
    assert sample.stem.startswith(made.name)
    assert isinstance(made.plan(request(), Views([view(spec("x"))]), 0.0), RoutePlan)


def test_there_is_a_sample_of_every_policy() -> None:
    """Nobody has to guess how one is written."""
    assert {path.stem for path in SAMPLES} >= set(BUILTIN)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[policy]\nname = predicted", ["not TOML", "line 2"]),
        ("", ["no [policy] table"]),
        ("policy = 3", ["no [policy] table"]),
        ('[polcy]\nname = "predicted"', ['unknown table "polcy"', 'did you mean "policy"']),
        ("[policy]\nttft_weight = 0.1", ["name is None", "round_robin"]),
        ("[policy]\nname = 7", ["name is 7"]),
        (table("", "predictd"), ['unknown name "predictd"', 'did you mean "predicted"', "least_loaded"]),
        (table("", "zzz"), ['unknown name "zzz"', "Valid: dynamo, ", "predicted", "round_robin"]),
        (
            table("max_prefil_queue = 4"),
            ['did you mean "max_prefill_queue"', "Valid: bind_late_s, candidates"],
        ),
        (table("zzzzzz = 4"), ['unknown key "zzzzzz". ', "ttft_weight"]),
        (table("ttft_weight = nan"), ["ttft_weight is nan", "from 0 to 1"]),
        (table("ttft_weight = inf"), ["ttft_weight is inf"]),
        (table("ttft_weight = -0.1"), ["ttft_weight is -0.1"]),
        (table("ttft_weight = 1.5"), ["ttft_weight is 1.5"]),
        (table('ttft_weight = "much"'), ["ttft_weight is 'much'", "a number"]),
        (table("ttft_weight = true"), ["ttft_weight is True"]),
        (table("candidates = 2.5"), ["candidates is 2.5", "whole number"]),
        (table("candidates = 17"), ["candidates is 17", "from 1 to 16"]),
        (table("candidates = []"), ["candidates is []"]),
        (table(f"candidates = {10**400}"), ["candidates is 1000"]),
        (table(f"candidates = {'9' * 5000}"), ["not TOML"]),
        (table("duty_window_s = 0"), ["duty_window_s is 0"]),
        (table("rate = 1", "round_robin"), ['unknown key "rate"', "max_prefill_queue"]),
        (table("max_prefill_queue = 0", "least_loaded"), ["max_prefill_queue is 0"]),
        (table("prefill = 3", "scored"), ["scored", "prefill", "a table with picker"]),
        (table("[policy.prefil]", "scored"), ['did you mean "prefill"']),
        (table('[policy.decode]\npicker = "best"', "scored"), ["decode: picker is 'best'", "power_of_two"]),
        (table("[policy.decode]\ntemperature = 0", "scored"), ["temperature is 0"]),
        (table('[policy.decode]\npickr = "max"', "scored"), ['did you mean "picker"', "weights"]),
        (table("[policy.decode]\nweights = 1", "scored"), ["weights is 1", "scorer = weight"]),
        (table("[policy.decode.weights]\nkvroom = 1", "scored"), ['unknown scorer "kvroom"', '"kv_room"']),
        (table("[policy.decode.weights]\nqueue = -1", "scored"), ["decode weights: queue is -1"]),
        (table("[policy.decode.weights]\nqueue = nan", "scored"), ["decode weights: queue is nan"]),
        (table("[policy.decode.weights]\nqueue = 0", "scored"), ["at least one scorer"]),
        (table("[policy.decode.weights]", "scored"), ["at least one scorer"]),
        ("#" * (MAX_TEXT + 1), ["Is it the right file?"]),
        ("a=" + "[" * 5000, ["not TOML"]),
        (table("x = '" + "y" * 9000 + "'"), ['unknown key "x"']),
        (table("y" * 9000 + " = 1"), ["yyy..."]),
    ],
)
def test_a_broken_file_is_explained(text: str, parts: list[str]) -> None:
    """The message is short, names what is wrong, and says what would be right."""
    with pytest.raises(ConfigError) as caught:
        load(text)
    for part in parts:
        assert part in caught.value.message
    assert len(caught.value.message) < 500


def test_an_own_table_of_policies_can_be_given() -> None:
    """`build` knows no registry but the one it is handed."""
    marker = load(table(""))
    assert build("mine", {}, Models(), Random(1), {"mine": lambda params, models, rng: marker}) is marker
    with pytest.raises(ConfigError, match="Valid: mine"):
        build("predicted", {}, Models(), Random(1), {"mine": lambda params, models, rng: marker})
