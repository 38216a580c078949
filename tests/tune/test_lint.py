"""`polyphase policy lint`: everything that is wrong, at once, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from policies.declared import READERS, complete, declared, effective, with_value
from policies.registry import POLICIES
from router.cli.main import cli
from router.tune.lint import Severity, lint

SHIPPED = Path(__file__).parents[2] / "deploy" / "policies"


def test_every_policy_declares_its_parameters() -> None:
    """A policy that is not in the table could neither be checked nor tuned."""
    assert set(READERS) == set(POLICIES)
    for name in READERS:
        for one in declared(name):
            assert one.doc, f"{name}.{one.key}"
            assert one.of or one.low <= one.default <= one.high, f"{name}.{one.key}"
        assert effective(name, complete(name, {})) == effective(name, {})


def test_a_value_is_set_by_its_dotted_key_in_a_copy() -> None:
    """Other weights of the same table stay."""
    whole = complete("scored", {})
    changed = with_value(whole, "prefill.weights.queue", 9.0)
    assert effective("scored", changed)["prefill.weights.queue"] == 9.0
    assert effective("scored", changed)["prefill.weights.kv_room"] == 1.0
    assert effective("scored", whole)["prefill.weights.queue"] == 1.0


def test_every_mistake_is_found_in_one_go() -> None:
    """With its line, and what was probably meant."""
    text = '[policy]\nname = "least_loaded"\nmax_prefil_queue = 3\n# a comment\ncandidates = 99\n[polcy]\n'
    found = lint(text)
    assert [(one.severity, one.line) for one in found] == [(Severity.ERROR, line) for line in (3, 5, 6)]
    assert 'did you mean "max_prefill_queue"?' in found[0].text
    assert "from 1 to 16" in found[1].text
    assert "did you mean [policy]?" in found[2].text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[policy", "not TOML"),
        ("", "no [policy] table"),
        ('[policy]\nname = "leastloaded"', 'did you mean "least_loaded"?'),
        ("[policy]\nname = 3", "name is 3"),
        ("x" * 70_000, "is it a policy file?"),
        ('[policy]\nname = "scored"\n[policy.prefill.weights]\nqueu = 1', 'did you mean "queue"?'),
        ('[policy]\nname = "scored"\n[policy.prefill]\npicker = "best"\n', "one of max"),
        ('[policy]\nname = "least_loaded"\ncandidates = nan', "candidates is nan"),
    ],
)
def test_a_mistake_is_an_error(text: str, says: str) -> None:
    """That says what is allowed."""
    found = lint(text)
    assert {one.severity for one in found} == {Severity.ERROR}
    assert says in " ".join(one.text for one in found)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "scored"\n[policy.decode]\ntemperature = 0.2', "no effect while decode.picker is 'max'"),
        (
            'name = "dynamo"\neffective_prompt_tokens = 5',
            "no effect while conditional_disaggregation is False",
        ),
        ('name = "dynamo"\noverlap_credit = 0.0\noverlap_credit_decay = 1.0', "while overlap_credit is 0"),
        ('name = "llm_d"\naffinity_threshold = 0.5', "no effect while strategy is 'scorers'"),
        ('name = "predicted"\nttft_weight = 1.0', "decode may go anywhere"),
    ],
)
def test_settings_without_effect_are_warned_about(text: str, says: str) -> None:
    """They load, and do not do what they say."""
    (found,) = lint(f"[policy]\n{text}")
    assert found.severity is Severity.WARNING
    assert says in found.text


def test_the_exit_code_tells_errors_from_warnings(tmp_path: Path) -> None:
    """0 good, 78 does not load, 1 for a warning when asked to be strict."""
    (odd := tmp_path / "odd.toml").write_text('[policy]\nname = "llm_d"\naffinity_threshold = 0.5\n')
    (bad := tmp_path / "bad.toml").write_text('[policy]\nname = "nobody"\n')

    def lint_code(*arguments: object) -> int:
        return CliRunner().invoke(cli, ["policy", "lint", *map(str, arguments)]).exit_code

    assert lint_code(odd) == 0
    assert lint_code(odd, "--strict") == 1
    assert lint_code(odd, bad) == 78
    assert lint_code(SHIPPED / "scored.toml", SHIPPED / "least_loaded.toml") == 0
