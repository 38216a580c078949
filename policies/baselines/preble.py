"""Preble's E2: exploit a cached prefix if that saves more than it costs, else explore.

Source: Srivatsa et al., "Preble: efficient distributed prompt scheduling for LLM serving", ICLR 2025,
section 3, and WukLab/preble, multi_node/global_scheduler_with_time.py. If the longest match is more than the
rest of the prompt, the request goes to a worker that holds it, of several to the least loaded (exploit). Else
it goes where

    L + M + P

is least (explore): L is the work of the last 3 minutes on the worker, prefill of what was not cached plus
mean output times time per token; M is the prefill that evicting for this request will cost later, each block
by the share of the window's requests that used it; P is the prefill of the part that is not cached there. An
exploit onto a worker with more than `balance` times the least load goes to the least loaded one instead (the
paper's post-assignment load adjustment).

Prefill and decode times are one linear model for all workers, as the original profiles one kind of GPU: 1e-4
s a prompt token, and per worker the median of 200 measured times per output token, 0.15 s at the start
(avg_topt_per_gpu). Preble knows no split: in a fleet of pools each phase is chosen apart by the same rule.

Approximations: the prefix tree is an index of blocks; the prefill model's slope and `balance` are
assumptions, since the original fits its own GPU and its threshold differs from version to version;
replication of a hot prefix by its time to first token is left out.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from policies.baselines.rule import Choice, Scene, first_least
from policies.parameters import number
from policies.prefixes import PrefixIndex
from policies.standing import Standing
from router.core.messages import BackendLost, BackendRemoved, DecodeDone, FirstToken, RequestCancelled
from router.model import Request, Seconds

WINDOW_S: Final = 180.0
FIRST_TPOT_S: Final = 0.15
MEASURED: Final = 200
MAX_WINDOW: Final = 1 << 16
"""Requests kept of the window, and first tokens waited for."""
UNKNOWN_OUTPUT: Final = 45
"""Output assumed before an answer is done (the original's default of max_tokens)."""


@dataclass(frozen=True, slots=True)
class PrebleParameters:
    """Parameters of `preble`."""

    prefill_s_per_token: float = number(
        1e-4, low=1e-9, high=1.0, doc="Slope of the one prefill model for all workers."
    )
    balance: float = number(
        1.5,
        low=1.0,
        high=1e6,
        doc="Load of a cached worker over the least load at which the request moves on.",
    )


@dataclass(frozen=True, slots=True)
class _Sent:
    at: Seconds
    backend: str
    uncached_tokens: int
    hashes: tuple[int, ...]


class PrebleRule:
    """E2. A Rule and a Learner."""

    def __init__(self, parameters: PrebleParameters) -> None:
        self._p = parameters
        self._index = PrefixIndex()
        self._window: deque[_Sent] = deque()
        self._uses: Counter[int] = Counter()
        """Requests of the window by block."""
        self._tpots: dict[str, deque[float]] = {}
        self._running: dict[str, tuple[str, Seconds | None]] = {}
        self._outputs: deque[int] = deque(maxlen=MEASURED)

    def choose(self, scene: Scene, candidates: Sequence[Standing]) -> Choice:
        """Exploit or explore."""
        self._expire(scene.now)
        request = scene.request
        held = [self._index.tokens(s, request, scene.now) for s in candidates]
        loads = self._loads(candidates)
        if max(held) > request.prompt_tokens - max(held):
            best = min((i for i in range(len(held)) if held[i] == max(held)), key=lambda i: (loads[i], i))
            if loads[best] <= self._p.balance * min(loads) or min(loads) == loads[best]:
                return Choice(best, loads)
            return Choice(first_least(loads), loads)
        costs = [
            load + self._eviction_s(s, request) + self._prefill_s(request.prompt_tokens - own)
            for s, load, own in zip(candidates, loads, held, strict=True)
        ]
        return Choice(first_least(costs), costs)

    def sent(self, request: Request, producer: Standing, consumer: Standing, now: Seconds) -> None:
        """Count the request in the window of its prefill worker."""
        uncached = request.prompt_tokens - self._index.tokens(producer, request, now)
        if len(self._window) >= MAX_WINDOW:
            self._drop()
        self._window.append(_Sent(now, producer.id, uncached, request.prefix_hashes))
        self._uses.update(request.prefix_hashes)
        self._index.store(producer, request.prefix_hashes, now)
        if len(self._running) >= MAX_WINDOW and request.id not in self._running:
            del self._running[next(iter(self._running))]
        self._running[request.id] = (consumer.id, None)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Measure times per output token; forget who left."""
        match fact:
            case FirstToken():
                if (known := self._running.get(fact.request_id)) is not None:
                    self._running[fact.request_id] = (known[0], now)
            case DecodeDone():
                self._done(fact, now)
            case RequestCancelled():
                self._running.pop(fact.request_id, None)
            case BackendLost() | BackendRemoved():
                self._index.forget(fact.backend)
                self._tpots.pop(fact.backend, None)
            case _:
                pass

    def _done(self, fact: DecodeDone, now: Seconds) -> None:
        backend, first = self._running.pop(fact.request_id, ("", None))
        if first is not None and fact.output_tokens > 1:
            self._outputs.append(fact.output_tokens)
            measured = self._tpots.setdefault(backend, deque([FIRST_TPOT_S], maxlen=MEASURED))
            measured.append((now - first) / (fact.output_tokens - 1))

    def _loads(self, candidates: Sequence[Standing]) -> list[Seconds]:
        """L of each candidate."""
        uncached: Counter[str] = Counter()
        requests: Counter[str] = Counter()
        for one in self._window:
            uncached[one.backend] += one.uncached_tokens
            requests[one.backend] += 1
        output = sum(self._outputs) / len(self._outputs) if self._outputs else UNKNOWN_OUTPUT
        return [
            self._prefill_s(uncached[s.id])
            + requests[s.id] * output * median(self._tpots.get(s.id, (FIRST_TPOT_S,)))
            for s in candidates
        ]

    def _eviction_s(self, s: Standing, request: Request) -> Seconds:
        """M: what evicting for the request will cost."""
        victims = self._index.oldest(s, len(request.prefix_hashes))
        used = sum(self._uses[one] for one in victims)
        return self._prefill_s(s.spec.block_tokens) * used / max(1, len(self._window))

    def _prefill_s(self, tokens: int) -> Seconds:
        return self._p.prefill_s_per_token * tokens

    def _expire(self, now: Seconds) -> None:
        while self._window and self._window[0].at < now - WINDOW_S:
            self._drop()

    def _drop(self) -> None:
        gone = self._window.popleft()
        self._uses.subtract(gone.hashes)
        for one in gone.hashes:
            if self._uses[one] <= 0:
                del self._uses[one]
