"""SGLang Model Gateway: `cache_aware` (its default) and `least_load`.

Sources: lightseekorg/smg, model_gateway/src/policies/cache_aware.rs and least_load.rs, and the command line
defaults and spill gate of the 1.13 wheel. Prefill and decode are chosen apart, by the same rule.

cache_aware: the worker with the longest match takes the request if the match is above 0.3 of the prompt, else
the one with the fewest requests in flight. Of two matches the less loaded, then the smaller tree. A matched
worker is passed over (spill) when its load is above the fleet's mean by 64 and by 1.5 times the mean; the
first margin is capped at two standard deviations of the natural swing, at least 4. A worker that reports 8
waiting requests or 0.8 of its KV in use is passed over while another is not.

least_load, in seconds, lower is better:

    (queued tokens + tokens sent since the last poll) / throughput + 0.15 s x k / (1 - k)

k is the share of KV in use, throughput the generation rate as reported, else 2,000 tokens/s. Workers are
polled every 10 s. Without any report, the fewest requests in flight.

Approximations: the tree is an index of blocks (policies/prefixes.py) that learns on routing, as the
original's token tree does; the natural swing is taken for Poisson, sqrt(mean) (assumption); throughput is the
growth of decoded sequences between two polls, since our workers report no rate; queued tokens are not reduced
by cache hits; the warm-up slice, wedge detection and softmax (off by default) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policies.baselines.rule import Choice, Scene, active_requests, first_least
from policies.parameters import number
from policies.prefixes import PrefixIndex
from policies.standing import EMPTY, Standing, count
from router.core.messages import BackendLost, BackendRemoved, BackendReported
from router.model import BackendSnapshot, Request, Seconds

STALE_POLLS = 3
"""Polls after which a load report counts as absent (STALE_LOAD_INTERVALS)."""
MOST_KV = 0.999


@dataclass(frozen=True, slots=True)
class CacheAwareParameters:
    """Parameters of `smg_cache_aware`, named after SMG's flags."""

    cache_threshold: float = number(
        0.3, low=0.0, high=1.0, doc="Matched share of the prompt above which the match decides."
    )
    balance_abs: float = number(
        64.0,
        low=0.0,
        high=1e6,
        doc="Requests above the fleet's mean at which a matched worker is passed over.",
    )
    balance_rel: float = number(
        1.5, low=0.0, high=1e6, doc="The same as a multiple of the mean; both must hold."
    )
    overload_waiting: int = number(
        8, low=1, high=1_000_000, doc="Waiting requests at which a worker counts as overloaded."
    )
    overload_kv: float = number(
        0.8, low=0.0, high=1.0, doc="Share of KV in use at which a worker counts as overloaded."
    )


@dataclass(frozen=True, slots=True)
class LeastLoadParameters:
    """Parameters of `smg_least_load`."""

    kv_pressure_s: float = number(0.15, low=0.0, high=1e6, doc="Seconds per unit of KV pressure k / (1 - k).")
    default_tokens_per_s: float = number(
        2000.0, low=1e-3, high=1e9, doc="Throughput of a worker that reports none."
    )
    mean_prefill_tokens: int = number(
        1024, low=1, high=10_000_000, doc="Prompt assumed per request where no report is there."
    )
    poll_s: float = number(10.0, low=0.01, high=3600.0, doc="Seconds between two load polls.")


class CacheAwareRule:
    """Longest match, unless overloaded. A Rule and a Learner."""

    def __init__(self, parameters: CacheAwareParameters) -> None:
        self._p = parameters
        self._index = PrefixIndex()

    def choose(self, scene: Scene, candidates: Sequence[Standing]) -> Choice:
        """The best match, or the least loaded."""
        loads = [float(active_requests(s, scene.stage)) for s in candidates]
        barred = self._overloaded(candidates)
        by_load = [math.inf if i in barred else load for i, load in enumerate(loads)]
        matched = self._matched(scene, candidates, loads, barred)
        return Choice(first_least(by_load) if matched is None else matched, by_load)

    def sent(self, request: Request, producer: Standing, consumer: Standing, now: Seconds) -> None:
        """The tree learns on routing."""
        for s in {producer.id: producer, consumer.id: consumer}.values():
            self._index.store(s, request.prefix_hashes, now)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Forget backends that left."""
        if isinstance(fact, BackendLost | BackendRemoved):
            self._index.forget(fact.backend)

    def _matched(
        self, scene: Scene, candidates: Sequence[Standing], loads: Sequence[float], barred: set[int]
    ) -> int | None:
        held = [self._index.tokens(s, scene.request, scene.now) for s in candidates]
        free = [i for i in range(len(candidates)) if i not in barred and not self._spills(loads[i], loads)]
        if not free:
            return None
        best = min(free, key=lambda i: (-held[i], loads[i], self._index.size(candidates[i]), i))
        share = held[best] / max(1, scene.request.prompt_tokens)
        return best if share > self._p.cache_threshold else None

    def _spills(self, load: float, loads: Sequence[float]) -> bool:
        mean = sum(loads) / len(loads)
        margin = min(self._p.balance_abs, max(4.0, 2 * math.sqrt(mean)))
        return load - mean > margin and load > self._p.balance_rel * mean

    def _overloaded(self, candidates: Sequence[Standing]) -> set[int]:
        found = {i for i, s in enumerate(candidates) if self._is_overloaded(s)}
        return set() if len(found) == len(candidates) else found

    def _is_overloaded(self, s: Standing) -> bool:
        seen = s.view.snapshot or EMPTY
        used = count(seen.kv_used_tokens) / max(1, s.spec.kv_capacity_tokens)
        return count(seen.waiting) >= self._p.overload_waiting or used >= self._p.overload_kv


@dataclass(slots=True)
class _Polled:
    """The last poll of a worker."""

    at: Seconds
    queued_tokens: int
    kv_used_tokens: int
    decoded: int
    tokens_per_s: float


class LeastLoadRule:
    """Least time to drain, with a barrier on KV. A Rule and a Learner."""

    def __init__(self, parameters: LeastLoadParameters) -> None:
        self._p = parameters
        self._polled: dict[str, _Polled] = {}
        self._sent: dict[str, int] = {}
        """Prompt tokens sent since the last poll."""

    def choose(self, scene: Scene, candidates: Sequence[Standing]) -> Choice:
        """Least score; ties go to the first."""
        fresh = [self._fresh(s, scene.now) for s in candidates]
        rates = [poll.tokens_per_s for poll in fresh if poll is not None and poll.tokens_per_s > 0]
        nominal = sum(rates) / len(rates) if rates else self._p.default_tokens_per_s
        dark = not any(fresh)
        costs = [
            self._unseen(active_requests(s, scene.stage), nominal, dark)
            if poll is None
            else self._score(s, poll)
            for s, poll in zip(candidates, fresh, strict=True)
        ]
        return Choice(first_least(costs), costs)

    def sent(self, request: Request, producer: Standing, consumer: Standing, now: Seconds) -> None:
        """Credit the chosen workers until their next poll."""
        for backend in {producer.id, consumer.id}:
            self._sent[backend] = self._sent.get(backend, 0) + request.prompt_tokens

    def observe(self, fact: Any, now: Seconds) -> None:
        """Take a report when a poll is due."""
        match fact:
            case BackendReported():
                self._reported(fact.backend, fact.snapshot, now)
            case BackendLost() | BackendRemoved():
                self._polled.pop(fact.backend, None)
                self._sent.pop(fact.backend, None)
            case _:
                pass

    def _reported(self, backend: str, seen: BackendSnapshot, now: Seconds) -> None:
        last = self._polled.get(backend)
        if last is not None and now - last.at < self._p.poll_s:
            return
        decoded = count(seen.decode_sequences)
        grown = 0 if last is None else decoded - last.decoded
        rate = grown / (now - last.at) if last is not None and grown > 0 and now > last.at else 0.0
        queued, used = count(seen.waiting_prefill_tokens), count(seen.kv_used_tokens)
        self._polled[backend] = _Polled(now, queued, used, decoded, rate)
        self._sent[backend] = 0

    def _fresh(self, s: Standing, now: Seconds) -> _Polled | None:
        poll = self._polled.get(s.id)
        return None if poll is None or now - poll.at > STALE_POLLS * self._p.poll_s else poll

    def _score(self, s: Standing, poll: _Polled) -> float:
        rate = poll.tokens_per_s if poll.tokens_per_s > 0 else self._p.default_tokens_per_s
        k = min(MOST_KV, poll.kv_used_tokens / max(1, s.spec.kv_capacity_tokens))
        work = poll.queued_tokens + self._sent.get(s.id, 0)
        return work / rate + self._p.kv_pressure_s * k / (1 - k)

    def _unseen(self, requests: int, nominal: float, dark: bool) -> float:
        return float(requests) if dark else requests * self._p.mean_prefill_tokens / nominal
