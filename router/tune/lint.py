"""Finds what is wrong with a policy file, all at once: errors that keep it from loading, and settings that
load but cannot mean what they say.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from policies.declared import READERS, effective, parameters
from policies.registry import MAX_TEXT
from router.errors import ConfigError

Params = Mapping[str, Any]
_NESTED: Final = ("prefill", "decode")
"""Tables of `scored`, which are checked key by key as well."""


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """The file does not load."""
    WARNING = "warning"
    """It loads, and says something that has no effect or contradicts itself."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    severity: Severity
    text: str
    line: int = 0
    """From 1; 0 when no line is to blame."""


def lint(text: str) -> list[Finding]:
    """Everything that is wrong with the text of a policy file, by line."""
    if len(text) > MAX_TEXT:
        return [_error(f"{len(text)} characters, more than {MAX_TEXT}: is it a policy file?")]
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        return [_error(f"not TOML: {error}")]
    found = [*_tables(document), *_policy(document.get("policy"))]
    placed = [Finding(one.severity, one.text, _line_of(text, one.text)) for one in found]
    return sorted(placed, key=lambda one: (one.line, one.severity))


def _error(text: str) -> Finding:
    return Finding(Severity.ERROR, text)


def _warning(text: str) -> Finding:
    return Finding(Severity.WARNING, text)


def _tables(document: Params) -> Iterator[Finding]:
    for key in document:
        if key != "policy":
            near = difflib.get_close_matches(key, ["policy"], n=1, cutoff=0.5)
            hint = "did you mean [policy]?" if near else "a policy file has [policy] and nothing else"
            yield _error(f'unknown table "{key}"; {hint}')


def _policy(table: object) -> Iterator[Finding]:
    if not isinstance(table, Mapping):
        yield _error('no [policy] table; begin with [policy] and name = "..."')
        return
    name = table.get("name")
    params = {key: value for key, value in table.items() if key != "name"}
    if not isinstance(name, str) or name not in READERS:
        near = difflib.get_close_matches(str(name), READERS, n=1, cutoff=0.5)
        hint = f'did you mean "{near[0]}"? ' if near else ""
        yield _error(f"name is {name!r:.80}; {hint}Valid: {', '.join(sorted(READERS))}")
        return
    errors = list(_errors(name, params))
    yield from errors
    if not errors:
        yield from _contradictions(name, params)


def _errors(name: str, params: Params) -> Iterator[Finding]:
    """Each key by itself, so that one mistake does not hide the next; then all together."""
    before = 0
    for part in _parts(params):
        if (message := _refused(name, part)) is not None:
            before += 1
            yield _error(message)
    if not before and (message := _refused(name, params)) is not None:
        yield _error(message)


def _parts(params: Params) -> Iterator[Params]:
    for key, value in params.items():
        if key in _NESTED and isinstance(value, Mapping):
            yield from ({key: {inner: held}} for inner, held in value.items())
        else:
            yield {key: value}


def _refused(name: str, params: Params) -> str | None:
    try:
        parameters(name, params)
    except ConfigError as error:
        return error.message.replace(" Nothing was changed.", "").replace("Nothing was changed; ", "")
    return None


def _line_of(text: str, message: str) -> int:
    """The first line that sets a key which the message names."""
    for number, line in enumerate(text.splitlines(), start=1):
        key = line.partition("=")[0].strip().strip("[]").strip('"') if "=" in line or "[" in line else ""
        if key and not line.lstrip().startswith("#") and _names(message, key):
            return number
    return 0


def _names(message: str, key: str) -> bool:
    said = message.partition("Valid:")[0]
    return f'"{key}"' in said or f" {key} is " in f" {said}" or said.startswith(f"{key}:")


# --- settings that contradict each other -----------------------------------------------------------

Rule = Callable[[Params, Params], str | None]
"""(what the file sets, by dotted key; what is in force) -> what is odd, beginning with the key."""


def _idle(key: str, unless: str, value: object) -> Rule:
    """A key that is set and has no effect unless another has a value."""

    def rule(given: Params, held: Params) -> str | None:
        if key not in given or held.get(unless) == value:
            return None
        return f"{key}: has no effect while {unless} is {held.get(unless)!r}; it needs {value!r}"

    return rule


def _when(key: str, odd: Callable[[Params], bool], why: str) -> Rule:
    """A key whose value is odd."""

    def rule(given: Params, held: Params) -> str | None:
        return f"{key}: {why}" if key in given and odd(held) else None

    return rule


RULES: Final[Mapping[str, tuple[Rule, ...]]] = {
    "predicted": (
        _when(
            "ttft_weight",
            lambda held: held["ttft_weight"] == 1,
            "at 1 the time of all tokens after the first counts nothing, so decode may go anywhere",
        ),
    ),
    "scored": (
        _idle("prefill.temperature", "prefill.picker", "softmax"),
        _idle("decode.temperature", "decode.picker", "softmax"),
    ),
    "dynamo": (
        _idle("effective_prompt_tokens", "conditional_disaggregation", True),
        _idle("effective_prompt_ratio", "conditional_disaggregation", True),
        _when(
            "overlap_credit_decay",
            lambda held: held["overlap_credit"] == 0 and held["overlap_credit_decay"] > 0,
            "has no effect while overlap_credit is 0",
        ),
    ),
    "llm_d": (
        _idle("affinity_threshold", "strategy", "sticky"),
        _idle("max_ttft_penalty_s", "strategy", "sticky"),
    ),
}
"""By policy. A rule whose key is gone says nothing."""


def _contradictions(name: str, params: Params) -> Iterator[Finding]:
    held, defaults = effective(name, params), effective(name, {})
    # A default that is written out says nothing; policy files that were tuned write all of them.
    given = {key: value for key, value in _flat(params, "") if value != defaults.get(key)}
    for rule in RULES.get(name, ()):
        if (text := rule(given, held)) is not None:
            yield _warning(text)


def _flat(table: Params, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
