"""Does adding a slow worker make a fleet slower? The experiment of an 8-fold faster and a slower worker.

Measured on Dynamo 1.6.1 with its own mocker: unique prompts of 4,000 tokens, 60 output tokens, Poisson
arrivals at 4 and 12 requests/s, workers at 1 and 8 times the mocker's speed, both doing both phases. With the
slow worker added its rule was 2.5 to 3.1 times slower in the mean than the fast worker alone. Here the same
workers are simulated, and each policy is compared with the fast worker alone on the same arrivals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean

from policies.registry import build
from router.model import BackendKind, BackendSpec, Phase, StepParameters
from router.sim.classes import DrawnLengths, Renewal, Workload, WorkloadClass
from router.sim.draws import Fixed
from router.sim.run import Contestant
from tests.bench.policies.field import CHAMPION
from tests.bench.policies.play import play

MODEL = "mocker"
SPEEDUP = 8.0
RATES = (4.0, 12.0)
MOCKER = StepParameters(
    base_s=5.74e-3,
    per_context_token_s=54.01e-3 / (16_384 * 64),
    saturating_s=16.5e-3,
    saturation_tokens=300.0,
    prefill_base_s=16.50142e-3,
    per_prefill_token_s=1.518344e-5,
    per_attention_pair_s=2 * 4.209989e-10,
)
"""The mocker's curves, in ms: prefill 4.209989e-7 n^2 + 1.518344e-2 n + 16.5, decode 5.74 + 54.01 u with u
the share of KV in use of 16,384 blocks of 64 (its quadratic term is below 1 % here). A step that mixes both
pays prefill's constant too: saturating_s gives it to steps of many tokens and spares decode steps."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One policy at one rate, both workers against the fast one alone."""

    policy: str
    rate_per_s: float
    mean_s: float
    p99_s: float
    alone_mean_s: float
    alone_p99_s: float
    slow_share: float
    """Requests that ran on the slow worker."""

    @property
    def mean_ratio(self) -> float:
        """Above 1: adding the slow worker made the mean worse."""
        return self.mean_s / self.alone_mean_s

    @property
    def p99_ratio(self) -> float:
        """The same at the 99th percentile."""
        return self.p99_s / self.alone_p99_s

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "mean_ratio": self.mean_ratio, "p99_ratio": self.p99_ratio}


def worker(name: str, speed: float) -> BackendSpec:
    """A worker of the mocker. Its KV layout is its own: in the experiment nothing is handed over."""
    step = replace(
        MOCKER,
        **{
            field: getattr(MOCKER, field) / speed
            for field in (
                "base_s",
                "per_context_token_s",
                "saturating_s",
                "prefill_base_s",
                "per_prefill_token_s",
                "per_attention_pair_s",
            )
        },
    )
    return BackendSpec(
        name,
        BackendKind.GPU,
        f"mocker x{speed:g}",
        (MODEL,),
        frozenset(Phase),
        step,
        kv_bytes_per_token=131_072,
        kv_capacity_tokens=16_384 * 64,
        block_tokens=64,
        kv_layout=name,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
    )


def arrivals(rate: float) -> Workload:
    """4,000 tokens in, 60 out."""
    lengths = DrawnLengths(Fixed(4000), Fixed(60))
    return Workload("monotone", (WorkloadClass("one", Renewal(rate), lengths, MODEL, max_new_tokens=60),))


def contestant(name: str) -> Contestant:
    """A policy with its defaults."""
    return Contestant(name, lambda outlook: build(name, {}, outlook.models, outlook.rng))


def trial(policy: str, rate: float, requests: int, seed: int = 1) -> Trial:
    """One policy at one rate."""
    fast, slow = worker("fast", SPEEDUP), worker("slow", 1.0)
    load, who = arrivals(rate), contestant(policy)
    both = play([slow, fast], load, who, seed, requests=requests)
    alone = play([fast], load, who, seed, requests=requests)
    on_slow = next(each.prefills for each in both.backends if each.id == "slow")
    found = [result.times("e2e") for result in (both, alone)]
    mean, only = (each.mean for each in found)
    p99, only_p99 = (each.quantile(0.99) for each in found)
    return Trial(policy, rate, mean, p99, only, only_p99, on_slow / max(1, both.ok))


def summary(trials: Sequence[Trial], dynamo: str = "dynamo", ours: str = CHAMPION) -> dict[str, float]:
    """Dynamo's rule by the ratio of its mean latency, averaged over the rates; ours by the worst ratio there
    is, of means and 99th percentiles."""
    theirs = [each.mean_ratio for each in trials if each.policy == dynamo]
    own = [max(each.mean_ratio, each.p99_ratio) for each in trials if each.policy == ours]
    return {"dynamo_rule_ratio": fmean(theirs), "ours_ratio": max(own)}
