"""What every frame must hold to, whoever asked for it: noted as frames come, judged at the end of a run.

Checks that drive a worker look only at what they are about; a token that comes twice, say, is noted here once
and fails the check that is about it, not all of them.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from enum import StrEnum
from typing import Final

from polyphase.v1 import common_pb2

from router import wire
from router.errors import BackendError

KEPT: Final = 3
"""Violations of one rule that are kept in words."""

COUNTERS: Final = (
    *("busy_prefill_s", "busy_decode_s", "energy_j", "preemptions", "steps", "decode_sequences"),
    *("context_tokens", "prefill_tokens", "attention_pairs", "busy_loading_s"),
    *("busy_attention_s", "busy_ffn_s", "busy_transfer_s"),
)
"""Fields of LoadReport that grow from the worker's boot."""


class Rule(StrEnum):
    """A rule of frames; the value is the name of its check."""

    COLUMNS = "frame.columns"
    TOKENS = "frame.tokens"
    ORDER = "frame.order"
    COSTS = "frame.costs"
    COUNTERS = "load.counters"


class Journal:
    """How often each rule was looked at, and how it was broken."""

    def __init__(self) -> None:
        self.seen: Counter[Rule] = Counter()
        self.broken: Counter[Rule] = Counter()
        self.words: defaultdict[Rule, list[str]] = defaultdict(list)
        """The first few violations."""

    def note(self, rule: Rule, holds: object, otherwise: str) -> None:
        """Look at a rule once."""
        self.seen[rule] += 1
        if not holds:
            self.broken[rule] += 1
            if len(self.words[rule]) < KEPT:
                self.words[rule].append(otherwise)

    def load(self, last: common_pb2.LoadReport | None, new: common_pb2.LoadReport) -> None:
        """Two reports of one lane, in the order in which they came."""
        try:
            wire.load_from_proto(new, 0.0)
        except BackendError as error:
            self.note(Rule.COUNTERS, False, error.message)
        for name in () if last is None else COUNTERS:
            before, after = getattr(last, name), getattr(new, name)
            self.note(Rule.COUNTERS, after >= before, f"{name} went from {before:g} back to {after:g}")

    def cost(self, cost: object, of: str) -> None:
        """What a phase took."""
        amounts = [getattr(cost, name) for name in ("queued_s", "device_s", "energy_j")]
        holds = all(math.isfinite(amount) and amount >= 0.0 for amount in amounts)
        self.note(Rule.COSTS, holds, f"the cost of {of} holds {amounts}")
