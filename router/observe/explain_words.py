"""Puts the reasons of a decision into words, in the style of a Kubernetes scheduler."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from router.model import Decision, Exclusion, Seconds

WORDS: Final[Mapping[str, str]] = {
    "kv_full": "KV full",
    "kv_layout": "layout mismatch",
    "kv_too_small": "KV too small",
    "queue_full": "prefill queue full",
    "slots_full": "slots full",
    "context_too_long": "context too long",
    "model": "another model",
    "phase": "no phase",
    "profile": "no usable profile",
    "prediction": "no prediction",
    "too_slow": "too slow",
}
"""Reasons of the policies that ship (policies/filters.py); others are shown as they are."""
_STATE: Final = "state:"


def sentence(decision: Decision, since: Mapping[str, Seconds] | None = None, now: Seconds = 0.0) -> str:
    """The policy's own sentence, with its reasons in words. `since` says from when on a backend has been in
    its state."""
    text = decision.reason
    for each in decision.exclusions:
        counted = rf"\b{each.count} {re.escape(each.reason)}(?![\w:])"
        text = re.sub(counted, _literal(phrase(each, since or {}, now)), text)
    return text


def phrase(each: Exclusion, since: Mapping[str, Seconds], now: Seconds) -> str:
    """`3 KV full`, or `1 lost for 12 s`."""
    if not each.reason.startswith(_STATE):
        return f"{each.count} {WORDS.get(each.reason, each.reason.replace('_', ' '))}"
    state = each.reason.removeprefix(_STATE)
    times = [now - since[name] for name in each.backends if since.get(name, math.inf) <= now]
    if not times:
        return f"{each.count} {state}"
    longest = "" if each.count == 1 else ", the longest"
    return f"{each.count} {state}{longest} for {_short(max(times))}"


def _literal(text: str) -> str:
    return text.replace("\\", r"\\")


def _short(seconds: Seconds) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
