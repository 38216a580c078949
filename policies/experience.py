"""All that `predicted` learns from facts and from its own decisions, in one place: to feed, to forget, to
copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from policies.affinity import Affinity
from policies.learned import CachedShare, PrefillDuty
from policies.lengths import Lengths, OutputLengths
from policies.residents import Residents
from policies.spread import Bet, Bets, Spreads
from policies.standing import Standing
from policies.waits import Waits
from router.core.messages import (
    BackendLost,
    BackendRemoved,
    BackendReported,
    DecodeDone,
    PrefillDone,
    RequestCancelled,
)
from router.model import Request, Seconds


@dataclass(frozen=True, slots=True)
class Placed:
    """What was decided for a request."""

    request: Request
    producer: Standing
    consumer: Standing
    late: bool
    """Decode is bound after prefill."""
    parts: Mapping[str, float]
    """As of Outlook.parts."""
    lengths: Lengths
    stall_s: Seconds
    """What the prefill takes from the decodes beside it."""
    longer_s: Seconds
    """By how much the decode makes each step longer."""


class Experience:
    """Learned, and bounded."""

    def __init__(self, memory: int, duty_window_s: Seconds, learns_lengths: bool = True) -> None:
        self.lengths = OutputLengths(memory, learns_lengths)
        self.duty = PrefillDuty(duty_window_s)
        self.affinity = Affinity()
        self.cached = CachedShare(memory)
        self.spreads = Spreads(memory)
        self.residents = Residents()
        self.waits = Waits()
        self._bets = Bets(self.spreads)

    def holder(self, request: Request, now: Seconds) -> Callable[[Standing], int] | None:
        """Tokens of the prompt that each backend is believed to hold; None when nobody holds any."""
        held = self.affinity.held(request.prefix_hashes, now)
        if not held:
            return None
        return lambda s: min(request.prompt_tokens, held.get(s.id, 0) * s.spec.block_tokens)

    def placed(self, what: Placed, now: Seconds) -> None:
        """Remember a decision."""
        request, parts, producer = what.request, what.parts, what.producer
        arrived, ttft_s = self.waits.since(request, now), parts["ttft_s"]
        self.waits.over(request.id)
        self.lengths.wait_for(request)
        self.cached.wait_for(request, producer.id)
        self.affinity.placed(producer.spec, request.prefix_hashes, now)
        tpot_s = (parts["finish_s"] - ttft_s) / max(1, what.lengths.mean - 1)
        self._bets.place(request.id, Bet(now, producer.id, ttft_s, what.consumer.id, tpot_s))
        self.residents.disturbed(producer.id, what.stall_s, now)
        decode = None if what.late else what.consumer.id
        if decode is not None:
            self.residents.slowed(decode, what.longer_s)
        due = math.inf if request.slo.ttft_s is None else arrived + request.slo.ttft_s
        self.residents.moves_in(request, producer.id, decode, what.lengths.thirds, now + ttft_s, due)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learn from a fact."""
        self.waits.observe(fact, now)
        self.residents.observe(fact, now)
        self._bets.observe(fact, now)
        self.affinity.observe(fact, now)
        match fact:
            case DecodeDone():
                self.lengths.finished(fact.request_id, fact.output_tokens)
            case BackendReported():
                self.duty.reported(fact.backend, fact.snapshot)
            case RequestCancelled():
                self.lengths.forget(fact.request_id)
                self.cached.forget_request(fact.request_id)
            case PrefillDone():
                self.cached.prefilled(fact.request_id, fact.cached_tokens)
            case BackendLost() | BackendRemoved():
                self._forget(fact.backend)
            case _:
                pass

    def _forget(self, backend: str) -> None:
        self.duty.forget(backend)
        self.cached.forget(backend)
        self.spreads.forget(backend)
