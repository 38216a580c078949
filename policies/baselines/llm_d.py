"""llm-d's endpoint picker: weighted scorers or sticky-until-saturated, with the threshold decider.

Sources: llm-d/llm-d-router, the READMEs of pkg/epp/framework/plugins (queue-scorer,
kv-cache-utilization-scorer, prefix-cache-scorer, token-load-scorer, prefix-cache-affinity-filter,
prefix-based-pd-decider), deploy/config/pd-epp-config.yaml, and the weights 2, 2 and 3 of its
inference-scheduling guide. Scores are from 0 to 1, higher is better; ties of the max picker are drawn.

    queue   (max - own) / (max - min) of waiting requests over the candidates; 1 where all are equal
    kv      1 - share of KV in use
    prefix  matched share of the prompt
    tokens  1 - min(1, prompt tokens in flight / 4,194,304)

`scorers` weighs the first three. `sticky` keeps only endpoints that hold at least 0.8 of the prompt, unless
the best of them would be slower to the first token than the best of the others by 18 s at one throughput for
all endpoints (15,928 tokens/s, measured for one model on one machine), and then takes the least tokens.

Decode is chosen first; the prompt goes to the prefill pool if at least 16 tokens of it are not cached there
(the samples' value: the default 0 never splits).

Approximations: waiting and KV are those of the last report; the index learns on routing and keeps 31,250
blocks a server, of the backend's block size (the original clamps to 64 tokens); tokens in flight count a
prompt until its request ends, without deducting what was cached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from policies.baselines.rule import Choice, Scene, active_prompt_tokens, random_least
from policies.parameters import choice, number
from policies.prefixes import PrefixIndex
from policies.standing import EMPTY, Standing, count
from router.core.messages import BackendLost, BackendRemoved
from router.model import Request, Seconds

LRU_BLOCKS: Final = 31_250
FULL_TOKEN_LOAD: Final = 4_194_304


@dataclass(frozen=True, slots=True)
class LlmdParameters:
    """Parameters of `llm_d`."""

    strategy: str = choice(
        "scorers", of=("scorers", "sticky"), doc="Weighted scorers, or sticky until saturated."
    )
    queue_weight: float = number(2.0, low=0.0, high=1e6, doc="Weight of the queue scorer.")
    kv_weight: float = number(2.0, low=0.0, high=1e6, doc="Weight of the KV utilisation scorer.")
    prefix_weight: float = number(3.0, low=0.0, high=1e6, doc="Weight of the prefix cache scorer.")
    affinity_threshold: float = number(
        0.8, low=0.0, high=1.0, doc="Share of the prompt held at which an endpoint is sticky."
    )
    max_ttft_penalty_s: float = number(
        18.0, low=0.0, high=3600.0, doc="Extra seconds to the first token that end stickiness; 0 never does."
    )
    peak_prefill_tokens_per_s: float = number(
        15_928.0, low=1.0, high=1e9, doc="Prefill throughput of every endpoint."
    )
    non_cached_tokens: int = number(
        16,
        low=0,
        high=10_000_000,
        doc="Uncached prompt tokens from which prefill is split off; 0 never splits.",
    )


class LlmdRule:
    """Filter, score, pick. A Rule and a Learner."""

    def __init__(self, parameters: LlmdParameters, rng: Random) -> None:
        self._p = parameters
        self._rng = rng
        self._index = PrefixIndex(capacity_blocks=LRU_BLOCKS)

    def choose(self, scene: Scene, candidates: Sequence[Standing]) -> Choice:
        """The highest score; costs are minus scores."""
        held = [self._held(s, scene) for s in candidates]
        if self._p.strategy == "sticky":
            kept = self._kept(candidates, held)
            costs = [-_token_load(s) if i in kept else math.inf for i, s in enumerate(candidates)]
        else:
            costs = [-score for score in self._scores(candidates, held)]
        return Choice(random_least(costs, self._rng), costs)

    def splits(self, request: Request, consumer: Standing, now: Seconds) -> bool:
        """The prefix-based decider."""
        uncached = request.prompt_tokens - self._index.tokens(consumer, request, now)
        return 0 < self._p.non_cached_tokens <= uncached

    def sent(self, request: Request, producer: Standing, consumer: Standing, now: Seconds) -> None:
        """The approximate index learns on routing."""
        for s in {producer.id: producer, consumer.id: consumer}.values():
            self._index.store(s, request.prefix_hashes, now)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Forget backends that left."""
        if isinstance(fact, BackendLost | BackendRemoved):
            self._index.forget(fact.backend)

    def _held(self, s: Standing, scene: Scene) -> float:
        return self._index.tokens(s, scene.request, scene.now) / max(1, scene.request.prompt_tokens)

    def _scores(self, candidates: Sequence[Standing], held: Sequence[float]) -> list[float]:
        waiting = [count((s.view.snapshot or EMPTY).waiting) for s in candidates]
        least, spread = min(waiting), max(waiting) - min(waiting)
        p = self._p
        return [
            p.queue_weight * (1 - (queue - least) / spread if spread else 1.0)
            + p.kv_weight * (1 - _kv_share(s))
            + p.prefix_weight * prefix
            for s, queue, prefix in zip(candidates, waiting, held, strict=True)
        ]

    def _kept(self, candidates: Sequence[Standing], held: Sequence[float]) -> set[int]:
        """The affinity filter: indices that stay."""
        everybody = set(range(len(candidates)))
        sticky = {i for i in everybody if held[i] >= self._p.affinity_threshold}
        others = everybody - sticky
        if not sticky or not others or not self._p.max_ttft_penalty_s:
            return sticky or everybody
        rate = self._p.peak_prefill_tokens_per_s
        waits = [active_prompt_tokens(s) / rate for s in candidates]
        penalty = min(waits[i] for i in sticky) - min(waits[i] for i in others)
        return everybody if penalty > self._p.max_ttft_penalty_s else sticky


def _token_load(s: Standing) -> float:
    return 1 - min(1.0, active_prompt_tokens(s) / FULL_TOKEN_LOAD)


def _kv_share(s: Standing) -> float:
    return min(1.0, count((s.view.snapshot or EMPTY).kv_used_tokens) / max(1, s.spec.kv_capacity_tokens))
