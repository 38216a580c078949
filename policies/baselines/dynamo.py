"""NVIDIA Dynamo's KV router: the default cost, the two-tier rule, and conditional disaggregation.

Sources: ai-dynamo/dynamo, lib/kv-router/src/scheduling/selector/default.rs and conditional_disagg.rs,
lib/router-plugins/builtin/src/two_tier_cost_fn.rs, and the flags of the 1.6.1 wheel. Defaults are those of
1.6.1. The two tiers' are 0.5, 32 and 1.1 in that file and in Dynamo's guide to its policies: those of
sgl-router's cache_aware_zmq, from which the rule was ported, not the 0.3, 64 and 1.5 of SMG's command line.

Default cost of a worker, in KV blocks, lower is better:

    adjusted prefill = max(0, (active prefill tokens + prompt) / block - credit x overlap blocks)
    credit           = overlap_credit / (1 + decay x excess prefill blocks / request blocks)
    decode blocks    = blocks of active requests + blocks of the prompt
    cost             = prefill_load_scale x adjusted prefill + decode blocks

The least cost wins, ties are drawn; with a temperature the worker is drawn by softmax over costs scaled to
their range. A prefill pool counts no decode blocks, a decode pool no prefill and no overlap.

Two tiers: if the spread of active requests is above 32 and the most are above 1.1 times the fewest, the least
loaded; else, if the largest overlap is above half of the prompt, the least loaded of those that have it; else
the least loaded. Ties go to the first (the original's order is unspecified).

Conditional disaggregation (off by default): a decode worker that can prefill does so if its uncached part of
the prompt is below 2,048 tokens and below 0.7 of it.

Approximations: overlap comes from our own record of finished prefills, not from KV events; a block shared by
two active requests counts twice (the original's assume-kv-reuse counts it once); host, disk and shared
caches, taints and the queue (off by default) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from policies.baselines.holdings import Holdings
from policies.baselines.rule import (
    Choice,
    Scene,
    Stage,
    active_prompt_tokens,
    active_requests,
    first_least,
    random_least,
)
from policies.parameters import number, switch
from policies.standing import Standing
from router.model import Request, Seconds


@dataclass(frozen=True, slots=True)
class DynamoParameters:
    """Parameters of `dynamo`, named after Dynamo's flags."""

    overlap_credit: float = number(
        1.0, low=0.0, high=100.0, doc="Prefill blocks credited per block that a worker holds."
    )
    overlap_credit_decay: float = number(
        0.0, low=0.0, high=100.0, doc="How fast the credit fades with a worker's excess of prefill."
    )
    prefill_load_scale: float = number(
        1.0, low=0.0, high=100.0, doc="Weight of prefill against decode blocks."
    )
    temperature: float = number(
        0.0, low=0.0, high=100.0, doc="Of the softmax over costs scaled to their range; 0 takes the least."
    )
    conditional_disaggregation: bool = switch(
        False, doc="Let a decode worker that can prefill do short uncached prompts itself."
    )
    effective_prompt_tokens: int = number(
        2048, low=0, high=10_000_000, doc="Uncached prompt below which a decode worker prefills itself."
    )
    effective_prompt_ratio: float = number(
        0.7, low=0.0, high=1.0, doc="Uncached share of the prompt below which it does so."
    )


@dataclass(frozen=True, slots=True)
class TwoTierParameters:
    """Parameters of `dynamo_two_tier`."""

    cache_threshold: float = number(
        0.5, low=0.0, high=1.0, doc="Share of the prompt that must be held, strictly, for the cache tier."
    )
    balance_abs: int = number(
        32, low=0, high=1_000_000, doc="Spread of active requests above which load decides."
    )
    balance_rel: float = number(
        1.1, low=1.0, high=1e6, doc="Ratio of most to fewest active requests above which load decides."
    )


class DynamoRule:
    """The default cost function. A Rule and a Learner."""

    def __init__(self, parameters: DynamoParameters, rng: Random) -> None:
        self._p = parameters
        self._rng = rng
        self._holdings = Holdings()

    def choose(self, scene: Scene, candidates: Sequence[Standing]) -> Choice:
        """Least cost, or softmax."""
        floor = min(s.view.in_flight.prefill_tokens for s in candidates)
        costs = [self.cost(scene, s, floor) for s in candidates]
        return Choice(self._pick(costs), costs)

    def cost(self, scene: Scene, s: Standing, least_prefill_tokens: int) -> float:
        """In blocks."""
        block, prompt = s.spec.block_tokens, scene.request.prompt_tokens
        incoming = max(1, math.ceil(prompt / block))
        decode = active_prompt_tokens(s) / block + incoming
        if scene.stage is Stage.DECODE:
            return decode
        active = s.view.in_flight.prefill_tokens
        excess = (active - least_prefill_tokens) / block / incoming
        credit = self._p.overlap_credit / (1 + self._p.overlap_credit_decay * excess)
        held = credit * self._holdings.index.blocks(s, scene.request, scene.now)
        prefill = self._p.prefill_load_scale * max(0.0, (active + prompt) / block - held)
        return prefill if scene.stage is Stage.PREFILL else prefill + decode

    def splits(self, request: Request, consumer: Standing, now: Seconds) -> bool:
        """The condition `isl_bounding`: whether the prefill pool does the prompt."""
        uncached = request.prompt_tokens - self._holdings.index.tokens(consumer, request, now)
        share = uncached / max(1, request.prompt_tokens)
        p = self._p
        return not (uncached < p.effective_prompt_tokens and share < p.effective_prompt_ratio)

    def sent(self, request: Request, producer: Standing, consumer: Standing, now: Seconds) -> None:
        """Wait for the blocks to be computed."""
        self._holdings.expect(request, producer, consumer)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learn what is held where."""
        self._holdings.observe(fact, now)

    def _pick(self, costs: Sequence[float]) -> int:
        least, most = min(costs), max(costs)
        if not self._p.temperature or least == most:
            return random_least(costs, self._rng)
        weights = [math.exp((least - cost) / (most - least) / self._p.temperature) for cost in costs]
        return self._rng.choices(range(len(costs)), weights)[0]


class TwoTierRule:
    """Balance, then cache, then load. A Rule and a Learner."""

    def __init__(self, parameters: TwoTierParameters) -> None:
        self._p = parameters
        self._holdings = Holdings()

    def choose(self, scene: Scene, candidates: Sequence[Standing]) -> Choice:
        """The first tier that applies. Costs are active requests; those without the overlap are out."""
        loads = [float(active_requests(s, scene.stage)) for s in candidates]
        if self._imbalanced(loads):
            return Choice(first_least(loads), loads)
        blocks = max(1, math.ceil(scene.request.prompt_tokens / candidates[0].spec.block_tokens))
        held = [self._holdings.index.blocks(s, scene.request, scene.now) for s in candidates]
        if max(held) / blocks > self._p.cache_threshold:
            costs = [load if own == max(held) else math.inf for load, own in zip(loads, held, strict=True)]
            return Choice(first_least(costs), costs)
        return Choice(first_least(loads), loads)

    def sent(self, request: Request, producer: Standing, consumer: Standing, now: Seconds) -> None:
        """Wait for the blocks to be computed."""
        self._holdings.expect(request, producer, consumer)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learn what is held where."""
        self._holdings.observe(fact, now)

    def _imbalanced(self, loads: Sequence[float]) -> bool:
        least, most = min(loads), max(loads)
        return most - least > self._p.balance_abs and most > self._p.balance_rel * least
