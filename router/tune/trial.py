"""Runs the cases of scene files against their policies: unit tests of a policy as text."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from router.core.choice import Plan
from router.errors import ConfigError, PolyphaseError
from router.observe.explain import decision_of
from router.observe.explain_words import sentence
from router.observe.scene import decide
from router.tune.expectation import said
from router.tune.scene_file import Case, PolicyText, SceneFile, load_scenes

_EXPECT: Final = re.compile(r"""^(\s*expect\s*=\s*)("[^"\n]*"|'[^'\n]*')""", re.MULTILINE)
SUFFIXES: Final = (".toml", ".json")
MAX_FILES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case that was run."""

    case: Case
    answer: Plan | None
    """None when the policy failed."""
    why: str
    """The policy's sentence, or its failure."""

    @property
    def got(self) -> str:
        """The answer as an expectation that it meets; empty when the policy failed."""
        return "" if self.answer is None else said(self.answer)

    @property
    def passed(self) -> bool:
        """Whether the answer is the expected one."""
        expect = self.case.expect
        return self.answer is not None and expect is not None and expect.met_by(self.answer)


def run_case(case: Case) -> Outcome:
    """Ask the policy. A failure of the policy is an outcome, not an error. Raises ConfigError."""
    policy = case.fresh()
    try:
        answer = decide(policy, case.scene)
    except PolyphaseError as error:
        return Outcome(case, None, error.message)
    except Exception as error:  # noqa: BLE001 - a policy under test may raise anything
        return Outcome(case, None, f"the policy raised {error!r:.300}")
    decision = decision_of(answer)
    why = getattr(answer, "reason", "") if decision is None else sentence(decision)
    return Outcome(case, answer, why)


def run_file(path: Path, policy: PolicyText | None = None) -> tuple[SceneFile, list[Outcome]]:
    """All cases of a file; one without an expectation does not pass. Raises ConfigError."""
    file = load_scenes(path, policy)
    return file, [run_case(case) for case in file.cases]


def files_below(path: Path) -> Sequence[Path]:
    """The scene files of a folder and the folders in it, in order; or the one file. Raises ConfigError."""
    if path.is_file():
        return (path,)
    found = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES and each.is_file())
    if not found or len(found) > MAX_FILES:
        raise ConfigError(
            f"{path} has {len(found)} files of scenes; name a file, or a folder with 1 to {MAX_FILES} files "
            "that end in .toml or .json."
        )
    return found


def rewrite(file: SceneFile, outcomes: Sequence[Outcome]) -> int:
    """Write what was got where another thing was expected; the rest of the file stays byte for byte.

    Returns the number of cases that changed. Raises ConfigError, with the file untouched, where an
    expectation is not a line of its own, or a policy failed.
    """
    changed = {one.case.number: one.got for one in outcomes if not one.passed}
    if not changed:
        return 0
    for one in outcomes:
        if one.answer is None:
            raise ConfigError(f"{file.path.name}, {one.case.name!r}: {one.why}. Nothing was written.")
    text = file.path.read_text(encoding="utf-8")
    new = _json(file.document, changed) if file.path.suffix == ".json" else _toml(file, text, changed)
    file.path.write_text(new, encoding="utf-8")
    return len(changed)


def _json(document: Mapping[str, Any], changed: Mapping[int, str]) -> str:
    whole = _expecting(document, changed)
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _toml(file: SceneFile, text: str, changed: Mapping[int, str]) -> str:
    """The n-th line that begins with `expect =` belongs to the n-th case that has an expectation."""
    wanted = _expecting(file.document, changed)
    entries = wanted.get("case", [wanted])
    lines = iter([each["expect"] for each in (wanted, *wanted.get("case", ())) if "expect" in each])
    new = _EXPECT.sub(lambda found: f"{found[1]}{json.dumps(next(lines, ''), ensure_ascii=False)}", text)
    if next(lines, None) is not None or tomllib.loads(new) != wanted:
        missing = ", ".join(str(each.get("name", "?")) for each in entries if "expect" not in each)
        raise ConfigError(
            f"{file.path.name}: expectations can be rewritten where each is a line of its own, as in"
            f' expect = "wait"{f"; these have none: {missing}" if missing else ""}. Nothing was written.'
        )
    return new


def _expecting(document: Mapping[str, Any], changed: Mapping[int, str]) -> dict[str, Any]:
    if "case" not in document:
        return {**document, "expect": changed[0]} if 0 in changed else dict(document)
    cases = [
        {**entry, "expect": changed[i]} if i in changed else dict(entry)
        for i, entry in enumerate(document["case"])
    ]
    return {**document, "case": cases}
