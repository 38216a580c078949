"""An explanation as plain values, the same from a daemon and from a file, and as a page in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyphase.v1 import common_pb2, decisions_pb2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from router.cli.console import duration, grid
from router.model import Decision
from router.observe.explanation import Explanation

MAX_CHANGES = 5
"""Shown in the terminal; JSON has all."""


def shown(answer: decisions_pb2.ExplainResponse) -> dict[str, Any]:
    """What a daemon answered."""
    decision = answer.decision
    return {
        "request": answer.request_id,
        "model": answer.model,
        "prompt_tokens": answer.prompt_tokens,
        "max_new_tokens": answer.max_new_tokens,
        "workload_class": answer.workload_class,
        "age_s": answer.age_s,
        "verdict": answer.verdict,
        "policy": decision.policy,
        "sentence": answer.sentence,
        "candidates": [
            _candidate(one.prefill, one.decode, one.score, one.parts) for one in decision.candidates
        ],
        "exclusions": [_exclusion(one.reason, one.count, one.backends) for one in decision.exclusions],
        "goal": answer.goal,
        "changes": [
            {"text": one.text, "before": one.before, "after": one.after, "effort": one.effort}
            for one in answer.changes
        ],
        "changes_note": answer.changes_note,
        "history": list(_history(answer)),
    }


def of_explanation(told: Explanation, name: str) -> dict[str, Any]:
    """What was worked out here."""
    decision = told.decision or Decision("")
    request = told.request
    note = told.changes.note
    if not told.changes.complete and not note:
        note = f"stopped after {told.changes.asked} questions to the policy"
    return {
        "request": name,
        "model": request.model,
        "prompt_tokens": request.prompt_tokens,
        "max_new_tokens": request.max_new_tokens,
        "workload_class": request.workload_class,
        "age_s": 0.0,
        "verdict": told.verdict,
        "policy": decision.policy,
        "sentence": told.sentence,
        "candidates": [
            _candidate(one.prefill, one.decode, one.score, one.parts) for one in decision.candidates
        ],
        "exclusions": [_exclusion(one.reason, one.count, one.backends) for one in decision.exclusions],
        "goal": told.goal,
        "changes": [
            {"text": one.text, "before": one.before, "after": one.after, "effort": one.effort}
            for one in told.changes.found
        ],
        "changes_note": note,
        "history": [],
    }


def _candidate(prefill: str, decode: str, score: float, parts: Mapping[str, float]) -> dict[str, Any]:
    return {"prefill": prefill, "decode": decode, "score": score, "parts": dict(parts)}


def _exclusion(reason: str, count: int, backends: Sequence[str]) -> dict[str, Any]:
    return {"reason": reason, "count": count, "backends": list(backends)}


def _history(answer: decisions_pb2.ExplainResponse) -> list[str]:
    """What became of the request, line by line, in order of time."""
    lines: list[tuple[float, str]] = []
    for one in answer.decisions:
        lines.append((one.decided_at_s, f"decided by {one.decision.policy}"))
    for note in answer.retries:
        phase = common_pb2.Phase.Name(note.phase).removeprefix("PHASE_").lower()
        lines.append((note.failed_at_s, f"{phase} failed on {note.backend or 'its backend'}: {note.reason}"))
    if answer.HasField("ended_at_s"):
        lines.append((answer.ended_at_s, f"ended: {answer.failure}" if answer.failure else "ended well"))
    told = [f"{duration(at)} after arrival: {text}" for at, text in sorted(lines)]
    return told + [f"policy fault: {fault}" for fault in answer.policy_faults]


# --- in the terminal -------------------------------------------------------------------------------


def page(told: Mapping[str, Any]) -> RenderableType:
    """Who, why, the score table, the runner-up, and what would have changed it."""
    parts: list[RenderableType] = [
        Text(f"{told['request']}: {told['verdict']}", style="bold"),
        Text(_about(told), style="dim"),
        Text(told["sentence"]),
        *(Text(line, style="dim") for line in told["history"]),
    ]
    if told["candidates"]:
        parts.append(_scores(told["candidates"]))
    parts += [Text(line) for line in _changes(told)]
    return Group(*parts)


def _about(told: Mapping[str, Any]) -> str:
    kind = f", class {told['workload_class']}" if told["workload_class"] else ""
    age = f", {duration(told['age_s'])} ago" if told["age_s"] else ""
    by = f", by {told['policy']}" if told["policy"] else ""
    return (
        f"{told['model']}, {told['prompt_tokens']:,} prompt tokens, up to {told['max_new_tokens']:,} new"
        f"{kind}{age}{by}"
    )


def _scores(candidates: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for one in candidates for name in one["parts"]))
    table = grid("Prefill", "Decode", "score", *names, title="\nScores, best first", words=["Decode"])
    for one in candidates:
        parts = [one["parts"].get(name) for name in names]
        cells = ["-" if part is None else _part(n, part) for n, part in zip(names, parts, strict=True)]
        table.add_row(one["prefill"], one["decode"], f"{one['score']:.4g}", *cells)
    return table


def _part(name: str, value: float) -> str:
    return duration(value) if name.endswith("_s") else f"{value:.4g}"


def _changes(told: Mapping[str, Any]) -> list[str]:
    if len(told["candidates"]) > 1:
        second = told["candidates"][1]
        lines = ["", f"Runner-up: {second['prefill']} for prefill, {second['decode']} for decode."]
    else:
        lines = [""]
    if not told["goal"]:
        return lines
    if not told["changes"]:
        return [*lines, f"No change of a single quantity would have made it {told['goal']}."]
    lines.append(f"The smallest change that would have made it {told['goal']}: {told['changes'][0]['text']}.")
    return lines + [f"  or {one['text']}" for one in told["changes"][1:MAX_CHANGES]]
