"""Scorers: what speaks for a backend, as a number from 0 to 1 where 1 is best.

Two kinds. Room scorers are absolute: the share that is free. Time, price and energy scorers are
relative: the best candidate's value over one's own, so that twice as slow is half as good whatever
the unit. Every scorer uses data that exists at the decision; none looks at backends that were
filtered out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from policies import forecast
from policies.standing import Standing
from router.model import Phase, Request

MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Scene:
    """What a scorer may look at besides the candidates."""

    request: Request
    phase: Phase
    max_prefill_queue: int
    producer: Standing | None = None
    """Where prefill goes, once that is decided."""

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens, at least 1."""
        return max(1, self.request.prompt_tokens)

    @property
    def output_tokens(self) -> int:
        """The upper bound; this policy learns no lengths."""
        return max(1, self.request.max_new_tokens)

    @property
    def context_tokens(self) -> int:
        """Context halfway through the output."""
        return self.prompt_tokens + self.output_tokens // 2


Scorer = Callable[[Scene, Sequence[Standing]], list[float]]


def queue(scene: Scene, candidates: Sequence[Standing]) -> list[float]:
    """Free share of the prefill queue, or of the decode slots."""
    if scene.phase is Phase.PREFILL:
        return [_share(s.prefills, scene.max_prefill_queue) for s in candidates]
    return [_share(s.decodes, s.spec.max_num_seqs) for s in candidates]


def kv_room(scene: Scene, candidates: Sequence[Standing]) -> list[float]:
    """Share of the KV capacity that is free once the request is there."""
    need = scene.prompt_tokens + (scene.output_tokens if scene.phase is Phase.DECODE else 0)
    return [
        _share(s.spec.kv_capacity_tokens - s.kv_room_tokens + need, s.spec.kv_capacity_tokens)
        for s in candidates
    ]


def drain_time(scene: Scene, candidates: Sequence[Standing]) -> list[float]:
    """Seconds until the work ahead and the request itself are done, relative to the shortest."""
    if scene.phase is Phase.PREFILL:
        return relative(forecast.prefill_end_s(s, scene.prompt_tokens) for s in candidates)
    context, output = scene.context_tokens, scene.output_tokens
    return relative(forecast.decode_drain_s(s, context, output) + s.backlog_s for s in candidates)


def speed(scene: Scene, candidates: Sequence[Standing]) -> list[float]:
    """Prefill alone, or a decode step after joining the batch, relative to the fastest."""
    if scene.phase is Phase.PREFILL:
        return relative(forecast.alone_s(s, scene.prompt_tokens) for s in candidates)
    return relative(forecast.joined_step_s(s, scene.context_tokens) for s in candidates)


def cost(scene: Scene, candidates: Sequence[Standing]) -> list[float]:
    """List price of the prefill, or of an output token, relative to the cheapest."""
    if scene.phase is Phase.PREFILL:
        return relative(forecast.prefill_usd(s, scene.prompt_tokens) for s in candidates)
    return relative(forecast.token_usd(s, scene.context_tokens) for s in candidates)


def energy(scene: Scene, candidates: Sequence[Standing]) -> list[float]:
    """Joules of the prefill, or of an output token, relative to the least."""
    if scene.phase is Phase.PREFILL:
        return relative(forecast.prefill_energy_j(s, scene.prompt_tokens) for s in candidates)
    return relative(forecast.token_energy_j(s, scene.context_tokens) for s in candidates)


def same_backend(scene: Scene, candidates: Sequence[Standing]) -> list[float]:
    """1 where decode needs no handoff, else 0. For prefill: 1 where decode could stay."""
    if scene.producer is None:
        return [1.0 if Phase.DECODE in s.spec.phases else 0.0 for s in candidates]
    return [1.0 if s is scene.producer else 0.0 for s in candidates]


def session(scene: Scene, candidates: Sequence[Standing]) -> list[float]:
    """1 for the backend that a session's key hashes to, else 0; 0 for all without a key.

    Rendezvous hashing: when a backend leaves or is full, only its own sessions move.
    """
    key = scene.request.session_key
    if not key:
        return [0.0] * len(candidates)
    seed = crc32(key.encode("utf-8", "replace"))
    draws = [_mix(seed << 32 ^ crc32(s.id.encode("utf-8", "replace"))) for s in candidates]
    top = draws.index(max(draws))
    return [float(i == top) for i in range(len(candidates))]


def relative(values: Iterable[float]) -> list[float]:
    """Best over own for values where less is better; what is no value scores 0, and 0 is best."""
    known = list(values)
    least = min((value for value in known if 0 <= value < math.inf), default=0.0)
    return [(least / value if value > 0 else 1.0) if 0 <= value < math.inf else 0.0 for value in known]


def _share(used: float, limit: float) -> float:
    free = 1 - used / limit if limit > 0 else 0.0
    return min(1.0, free) if free > 0 else 0.0


def _mix(value: int) -> int:
    """Finaliser of SplitMix64 (Steele, Lea and Flood 2014): spreads every bit over the word."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


SCORERS: Final[Mapping[str, Scorer]] = {
    "queue": queue,
    "kv_room": kv_room,
    "drain_time": drain_time,
    "speed": speed,
    "cost": cost,
    "energy": energy,
    "same_backend": same_backend,
    "session": session,
}
