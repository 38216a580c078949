"""What a policy learns of backends: how busy prefill keeps one, and how much of its prompts it finds in its
prefix cache. Bounded: requests whose end is never reported must not stay in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from policies.forecast import MAX_DUTY
from router.model import BackendSnapshot, Request, Seconds

MAX_WAITED_FOR: Final = 1 << 16
MAX_CLASSES: Final = 512
"""Classes, or tenants of classes, told apart; clients choose the names of both."""
MAX_CACHED: Final = 0.95
"""A queue is never taken for less than a twentieth of its prompts."""


@dataclass(frozen=True, slots=True)
class _Duty:
    at: Seconds
    busy_s: Seconds
    share: float


class PrefillDuty:
    """Share of each backend's time that goes into prefill, from its growing busy counter.

    Steady-state law of a backend that does both: every second of decode comes with share / (1 -
    share) seconds of prefill, so a step takes 1 / (1 - share) as long. This is TPOT = T_decode(C) +
    (C / output length) T_prefill with the second term measured instead of assumed.
    """

    def __init__(self, window_s: Seconds) -> None:
        """`window_s` is the time constant of the moving average."""
        self._window_s = window_s
        self._duties: dict[str, _Duty] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> PrefillDuty:
        other = PrefillDuty(self._window_s)
        other._duties = dict(self._duties)  # values are immutable
        return other

    def stretch(self, backend: str) -> float:
        """1 / (1 - share); 1 for a backend that did not report twice yet."""
        duty = self._duties.get(backend)
        return 1.0 if duty is None else 1.0 / (1.0 - duty.share)

    def reported(self, backend: str, snapshot: BackendSnapshot) -> None:
        """Learn from a load report. A counter that went back is a restart; nonsense is ignored."""
        at, busy = snapshot.observed_at, snapshot.busy_prefill_s
        if not (math.isfinite(at) and 0 <= busy < math.inf):
            return
        known = self._duties.get(backend)
        if known is None or busy < known.busy_s:
            self._duties[backend] = _Duty(at, busy, 0.0)
        elif at > known.at:
            share = min(MAX_DUTY, (busy - known.busy_s) / (at - known.at))
            weight = -math.expm1(-(at - known.at) / self._window_s)
            self._duties[backend] = _Duty(at, busy, known.share + weight * (share - known.share))

    def forget(self, backend: str) -> None:
        """Drop a backend that left."""
        self._duties.pop(backend, None)


class CachedShare:
    """Share of the prompt tokens that each backend found in its prefix cache: a moving average.

    The ledger counts prompts in full. With a cache that holds most of them, a queue of three is short.
    """

    def __init__(self, memory: int) -> None:
        """`memory` is the number of prompts after which an old one has lost two thirds of its weight."""
        self._memory = memory
        self._shares: dict[str, float] = {}
        self._prompts: dict[str, tuple[str, int]] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> CachedShare:
        other = CachedShare(self._memory)
        other._shares, other._prompts = dict(self._shares), dict(self._prompts)  # values are immutable
        return other

    def uncached(self, backend: str) -> float:
        """The share that is computed, in (0, 1]; 1 for a backend of which nothing is known."""
        return 1.0 - self._shares.get(backend, 0.0)

    def wait_for(self, request: Request, backend: str) -> None:
        """Remember a prompt until it is done."""
        if len(self._prompts) >= MAX_WAITED_FOR and request.id not in self._prompts:
            del self._prompts[next(iter(self._prompts))]
        self._prompts[request.id] = (backend, request.prompt_tokens)

    def prefilled(self, request_id: str, cached_tokens: float) -> None:
        """Learn from a prompt that is done. A count that cannot be is ignored."""
        backend, prompt = self._prompts.pop(request_id, ("", 0))
        if not backend or not 0 <= cached_tokens <= prompt or not prompt:
            return
        known = self._shares.get(backend, 0.0)
        share = min(MAX_CACHED, cached_tokens / prompt)
        self._shares[backend] = known + (share - known) / self._memory

    def forget_request(self, request_id: str) -> None:
        """A request ended without its prefill."""
        self._prompts.pop(request_id, None)

    def forget(self, backend: str) -> None:
        """Drop a backend that left, or restarted with an empty cache."""
        self._shares.pop(backend, None)
