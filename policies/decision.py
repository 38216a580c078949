"""Builds decision records: who was considered, who was not and why, in one sentence and in numbers.

Bounded: at most 16 candidates, and 5 names per reason, so that a record of a fleet of a thousand
backends is as small as one of ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from policies.filters import Eligible, ever, reasons
from policies.parameters import clip
from policies.standing import Standing
from router.model import Candidate, Decision, Exclusion, Prediction, Reject, Request, Wait

MAX_CANDIDATES: Final = 16
MAX_NAMES: Final = 5


def exclusions(
    request: Request, found: Eligible, extra: Sequence[tuple[Standing, str]] = ()
) -> tuple[Exclusion, ...]:
    """Backends left out, by reason, most frequent first; `extra` are those a policy left out itself."""
    if not (found.left_out or found.barred or extra):
        return ()
    grouped: dict[str, list[str]] = {}
    for s in found.left_out:
        for reason in reasons(s, request, found.output_tokens):
            grouped.setdefault(reason, []).append(s.id)
    for s, reason in (*found.barred, *extra):
        grouped.setdefault(reason, []).append(s.id)
    ranked = sorted(grouped.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(Exclusion(reason, len(ids), tuple(ids[:MAX_NAMES])) for reason, ids in ranked)


def sentence(found: Eligible, excluded: Sequence[Exclusion], chosen: str) -> str:
    """What happened, as the Kubernetes scheduler would put it."""
    counts = f"{len(found.prefill)} of {found.total} backends can prefill, {len(found.decode)} can decode"
    why = ", ".join(f"{each.count} {each.reason}" for each in excluded)
    return f"{counts}{f' ({why})' if why else ''}; {chosen}"


def placed(
    policy: str,
    request: Request,
    found: Eligible,
    candidates: Sequence[Candidate],
    chosen: str,
    prediction: Prediction | None = None,
    extra: Sequence[tuple[Standing, str]] = (),
) -> Decision:
    """The record of a placement. The first candidate is the one that was chosen."""
    excluded = exclusions(request, found, extra)
    text = sentence(found, excluded, chosen)
    return Decision(policy, text, tuple(candidates[:MAX_CANDIDATES]), excluded, prediction)


def unplaced(
    policy: str,
    request: Request,
    found: Eligible,
    standings: Sequence[Standing],
    extra: Sequence[tuple[Standing, str]] = (),
) -> Wait | Reject:
    """No backend may take the request: Wait if that can change, else Reject.

    Wait.reason is the most frequent exclusion; Reject.reason is a sentence for the caller.
    """
    excluded = exclusions(request, found, extra)
    if ever(request, standings):
        decision = Decision(policy, sentence(found, excluded, "the request waits"), (), excluded)
        return Wait(excluded[0].reason if excluded else "kv_layout", decision, no_room=True)
    why = ", ".join(f"{each.count} {each.reason}" for each in excluded) or "no pair agrees on a kv_layout"
    if not found.total:
        why = "there is none"
    text = (
        f"none of {found.total} backends of model {clip(request.model)!r} can ever serve "
        f"{request.prompt_tokens} prompt tokens and {request.max_new_tokens} new ones ({why}); "
        "ask for less, or for another model"
    )
    return Reject(text, decision=Decision(policy, text, (), excluded))
