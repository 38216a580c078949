"""The baselines by name, and how each is built from its table in a policy file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from policies.baselines.decode_first import DecodeFirst
from policies.baselines.dynamo import DynamoParameters, DynamoRule, TwoTierParameters, TwoTierRule
from policies.baselines.llm_d import LlmdParameters, LlmdRule
from policies.baselines.one_worker import OneWorker
from policies.baselines.pooled import (
    MooncakeParameters,
    MooncakeRule,
    Pooled,
    SplitwiseParameters,
    SplitwiseRule,
)
from policies.baselines.preble import PrebleParameters, PrebleRule
from policies.baselines.simple import LeastRequestsRule, RandomRule
from policies.baselines.smg import CacheAwareParameters, CacheAwareRule, LeastLoadParameters, LeastLoadRule
from policies.parameters import read
from router.core.ports import ModelSource, Policy

Params = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class NoParameters:
    """Of a baseline that has none."""


def _random(params: Params, models: ModelSource, rng: Random) -> Policy:
    read(NoParameters, params, _table("random"))
    return OneWorker("random", RandomRule(rng))


def _power_of_two(params: Params, models: ModelSource, rng: Random) -> Policy:
    read(NoParameters, params, _table("power_of_two"))
    return OneWorker("power_of_two", LeastRequestsRule(rng, drawn=2))


def _least_requests(params: Params, models: ModelSource, rng: Random) -> Policy:
    read(NoParameters, params, _table("least_requests"))
    return OneWorker("least_requests", LeastRequestsRule(rng))


def _dynamo(params: Params, models: ModelSource, rng: Random) -> Policy:
    parameters = read(DynamoParameters, params, _table("dynamo"))
    rule = DynamoRule(parameters, rng)
    if parameters.conditional_disaggregation:
        return DecodeFirst("dynamo", rule, rule.splits, rule)
    return OneWorker("dynamo", rule, rule)


def _dynamo_two_tier(params: Params, models: ModelSource, rng: Random) -> Policy:
    rule = TwoTierRule(read(TwoTierParameters, params, _table("dynamo_two_tier")))
    return OneWorker("dynamo_two_tier", rule, rule)


def _smg_cache_aware(params: Params, models: ModelSource, rng: Random) -> Policy:
    rule = CacheAwareRule(read(CacheAwareParameters, params, _table("smg_cache_aware")))
    return OneWorker("smg_cache_aware", rule, rule)


def _smg_least_load(params: Params, models: ModelSource, rng: Random) -> Policy:
    rule = LeastLoadRule(read(LeastLoadParameters, params, _table("smg_least_load")))
    return OneWorker("smg_least_load", rule, rule)


def _llm_d(params: Params, models: ModelSource, rng: Random) -> Policy:
    rule = LlmdRule(read(LlmdParameters, params, _table("llm_d")), rng)
    return DecodeFirst("llm_d", rule, rule.splits, rule)


def _splitwise(params: Params, models: ModelSource, rng: Random) -> Policy:
    parameters = read(SplitwiseParameters, params, _table("splitwise"))
    return Pooled("splitwise", SplitwiseRule(parameters), parameters.prompt_share, models)


def _mooncake(params: Params, models: ModelSource, rng: Random) -> Policy:
    parameters = read(MooncakeParameters, params, _table("mooncake"))
    return Pooled("mooncake", MooncakeRule(parameters), parameters.prompt_share, models)


def _preble(params: Params, models: ModelSource, rng: Random) -> Policy:
    rule = PrebleRule(read(PrebleParameters, params, _table("preble")))
    return OneWorker("preble", rule, rule)


BASELINES: Final[Mapping[str, Callable[[Params, ModelSource, Random], Policy]]] = {
    "random": _random,
    "power_of_two": _power_of_two,
    "least_requests": _least_requests,
    "dynamo": _dynamo,
    "dynamo_two_tier": _dynamo_two_tier,
    "smg_cache_aware": _smg_cache_aware,
    "smg_least_load": _smg_least_load,
    "llm_d": _llm_d,
    "splitwise": _splitwise,
    "mooncake": _mooncake,
    "preble": _preble,
}


def _table(name: str) -> str:
    return f'policy "{name}"'
