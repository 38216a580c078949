"""Baselines whose fleet is divided into a prompt pool and a token pool: Splitwise and Mooncake.

Splitwise (Patel et al., ISCA 2024), as in Mutinifni/splitwise-sim, scheduler.py, MixedPoolScheduler, and
its mixed_pool.yml: the prompt goes to the machine of the prompt pool with the fewest pending tokens, tokens
to the machine of the token pool with the least memory booked. A prompt queue above 8,192 pending tokens, or
memory that would be full, looks to the mixed pool, and then takes a machine of the other pool into it, which
goes back when it is rid of the foreign work. The pools are 25 to 15 as in the paper's design for
conversation.

Mooncake (Qin et al., FAST 2025), Algorithm 1 and section 7: the prompt goes where the first token is due
earliest, queue + prefill of what the instance does not hold; decode goes where a token takes least; a request
whose predicted TTFT or TBT breaks its SLO is rejected at once (early rejection), before any work is done.

Approximations: whether a machine is in the mixed pool is read from our bookings. Mooncake's times come from
offline tests of its one machine: here each backend has its own model, which is more than the original has.
Its second branch, fetching a prefix from another instance, is left out since our workers move KV from
prefill to decode only. A request without SLOs is never rejected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from policies import forecast
from policies.baselines.holdings import Holdings
from policies.baselines.one_worker import nowhere
from policies.baselines.pools import Pools, divide, eligible, new_screen, whole
from policies.decision import placed
from policies.filters import Eligible
from policies.parameters import choice, number
from policies.standing import Standing
from router.core.messages import BackendRemoved
from router.core.ports import FleetView, ModelSource
from router.model import Candidate, Placement, Reject, Request, RoutePlan, Seconds, Wait

PROMPT_SHARE = 0.625
"""25 of 40 machines (Splitwise, table of designs for the conversation trace)."""


@dataclass(frozen=True, slots=True)
class SplitwiseParameters:
    """Parameters of `splitwise`."""

    prompt_share: float = number(
        PROMPT_SHARE, low=0.0, high=1.0, doc="Share of the backends of both phases that is the prompt pool."
    )
    max_pending_tokens: int = number(
        8192, low=1, high=100_000_000, doc="Pending tokens above which a prompt queue is long."
    )


@dataclass(frozen=True, slots=True)
class MooncakeParameters:
    """Parameters of `mooncake`."""

    prompt_share: float = number(
        PROMPT_SHARE, low=0.0, high=1.0, doc="Share of the backends of both phases that is the prefill pool."
    )
    early_rejection: str = choice(
        "present",
        of=("present", "off"),
        doc="Reject what would break its SLO by the present load, or nothing.",
    )


class PooledRule(Protocol):
    """Chooses a pair from two pools."""

    def pair(
        self, request: Request, pools: Pools, now: Seconds
    ) -> tuple[Standing, Standing, float] | Reject | None:
        """(prefill, decode, cost of the prefill), a rejection, or None where no pair agrees on KV."""
        ...

    def consumer(self, request: Request, producer: Standing, tokens: Sequence[Standing]) -> Standing:
        """Decode alone, for KV that is at `producer`; there is at least one candidate."""
        ...

    def observe(self, fact: Any, now: Seconds) -> None:
        """See a fact."""
        ...


class Pooled:
    """A baseline. Satisfies core.ports.Policy."""

    def __init__(self, name: str, rule: PooledRule, prompt_share: float, models: ModelSource) -> None:
        """`models` rank backends for the division into pools."""
        self._name = name
        self._rule = rule
        self._share = prompt_share
        self._screen = new_screen(models)

    @property
    def name(self) -> str:
        """As in the configuration."""
        return self._name

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Choose from the pools; the whole fleet is one pool where the pools do not fit together."""
        found = eligible(self._screen, request, fleet)
        answer = self._rule.pair(request, divide(found, self._share), now)
        if answer is None:
            answer = self._rule.pair(request, whole(found), now)
        if answer is None:
            return nowhere(self._name, request, found, self._screen, fleet)
        if isinstance(answer, Reject):
            return answer
        return self._planned(request, found, *answer)

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """Choose a decode worker for KV that is at `prefill`."""
        found = eligible(self._screen, request, fleet)
        view = fleet.get(prefill)
        if view is None:
            return Wait("unknown_backend")
        producer = self._screen.standing(view)
        targets = [s for s in found.decode if s.spec.accepts_kv_of(producer.spec)]
        if not targets:
            return nowhere(self._name, request, found, self._screen, fleet)
        consumer = self._rule.consumer(request, producer, targets)
        chosen = [Candidate(prefill, consumer.id, 0.0)]
        return Placement(consumer.id, placed(self._name, request, found, chosen, f"decode on {consumer.id}"))

    def observe(self, fact: Any, now: Seconds) -> None:
        """Let the rule learn; forget who left."""
        if isinstance(fact, BackendRemoved):
            self._screen.forget(fact.backend)
        self._rule.observe(fact, now)

    def _planned(
        self, request: Request, found: Eligible, producer: Standing, consumer: Standing, cost: float
    ) -> RoutePlan:
        chosen = [Candidate(producer.id, consumer.id, -cost)]
        text = f"{producer.id} -> {consumer.id} by {self._name}"
        return RoutePlan(producer.id, consumer.id, placed(self._name, request, found, chosen, text))


class SplitwiseRule:
    """Fewest pending tokens for prompts, least memory for tokens, and a mixed pool between."""

    def __init__(self, parameters: SplitwiseParameters) -> None:
        self._p = parameters

    def pair(
        self, request: Request, pools: Pools, now: Seconds
    ) -> tuple[Standing, Standing, float] | Reject | None:
        """Prompt first, then a taker of its KV."""
        fitting = [s for s in pools.prompt if _takers(s, pools.decode)]
        if not fitting:
            return None
        producer = self._prompt(request, fitting, pools)
        consumer = self._token(request, producer, pools)
        return producer, consumer, float(pending_tokens(producer))

    def consumer(self, request: Request, producer: Standing, tokens: Sequence[Standing]) -> Standing:
        """Least memory booked."""
        return min(tokens, key=lambda s: (s.view.in_flight.kv_tokens, s.order))

    def observe(self, fact: Any, now: Seconds) -> None:
        """Nothing is learned."""

    def _prompt(self, request: Request, fitting: Sequence[Standing], pools: Pools) -> Standing:
        """The prompt pool, then token machines that prefill already (mixed), then any that could."""
        able = [s for s in pools.token if s in pools.prefill and _takers(s, pools.decode)]
        mixed = [s for s in able if s.view.in_flight.prefills]
        for pool in (fitting, mixed):
            best = min(pool, key=lambda s: (pending_tokens(s), s.order), default=None)
            if best is not None and not self._long(best, request):
                return best
        return min(able or fitting, key=lambda s: (pending_tokens(s), s.order))

    def _token(self, request: Request, producer: Standing, pools: Pools) -> Standing:
        """The token pool, then prompt machines that decode already (mixed), then any that could."""
        tokens = _takers(producer, pools.token)
        able = [s for s in _takers(producer, pools.prompt) if s in pools.decode]
        mixed = [s for s in able if s.view.in_flight.decodes]
        for pool in (tokens, mixed):
            if pool and not self._full(best := self.consumer(request, producer, pool), request):
                return best
        return self.consumer(request, producer, able or tokens)

    def _long(self, s: Standing, request: Request) -> bool:
        pending = pending_tokens(s)
        return pending > 0 and pending + request.prompt_tokens > self._p.max_pending_tokens

    def _full(self, s: Standing, request: Request) -> bool:
        need = request.prompt_tokens + request.max_new_tokens
        return s.view.in_flight.kv_tokens + need >= s.spec.kv_capacity_tokens


class MooncakeRule:
    """Earliest first token, least time per token, and early rejection."""

    def __init__(self, parameters: MooncakeParameters) -> None:
        self._p = parameters
        self._holdings = Holdings()

    def pair(
        self, request: Request, pools: Pools, now: Seconds
    ) -> tuple[Standing, Standing, float] | Reject | None:
        """Algorithm 1."""
        fitting = [s for s in pools.prompt if _takers(s, pools.token)]
        if not fitting:
            return None
        due = [self.ttft_s(s, request, now) for s in fitting]
        best = min(range(len(due)), key=lambda i: (due[i], i))
        producer = fitting[best]
        consumer = self.consumer(request, producer, _takers(producer, pools.token))
        refused = self._refused(request, due[best], tbt_s(consumer, request))
        if refused is not None:
            return refused
        self._holdings.expect(request, producer, consumer)
        return producer, consumer, due[best]

    def consumer(self, request: Request, producer: Standing, tokens: Sequence[Standing]) -> Standing:
        """Least time between tokens."""
        return min(tokens, key=lambda s: (tbt_s(s, request), s.order))

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learn what is held where."""
        self._holdings.observe(fact, now)

    def ttft_s(self, s: Standing, request: Request, now: Seconds) -> Seconds:
        """Prefills ahead, one after the other as if of equal length, and the uncached part of this one."""
        assert s.latency is not None
        ours = s.view.in_flight
        mean = ours.prefill_tokens // max(1, ours.prefills)
        queue = ours.prefills * s.latency.prefill_s(mean) if ours.prefills else 0.0
        held = min(self._holdings.index.tokens(s, request, now), request.prompt_tokens - 1)
        return forecast.seconds(
            queue + s.latency.prefill_s(request.prompt_tokens - max(0, held), max(0, held))
        )

    def _refused(self, request: Request, ttft_s: Seconds, tbt: Seconds) -> Reject | None:
        slo = request.slo
        late = slo.ttft_s is not None and ttft_s > slo.ttft_s
        slow = slo.tpot_s is not None and tbt > slo.tpot_s
        if self._p.early_rejection == "off" or not (late or slow):
            return None
        text = (
            f"predicted first token in {ttft_s:.3g} s and {tbt:.3g} s a token break the objectives; "
            "try again when the load is lower"
        )
        return Reject(text, infeasible_deadline=True)


def pending_tokens(s: Standing) -> int:
    """Prompt tokens pending, and one for each token task."""
    return s.view.in_flight.prefill_tokens + s.view.in_flight.decodes


def tbt_s(s: Standing, request: Request) -> Seconds:
    """A step after the request has joined, with the bookings as the batch."""
    assert s.latency is not None
    ours, prompt = s.view.in_flight, max(1, request.prompt_tokens)
    context = max(0, ours.kv_tokens - ours.prefill_tokens) + prompt
    waves = max(1, math.ceil((ours.decodes + 1) / s.spec.max_num_seqs))
    return waves * forecast.seconds(s.latency.decode_step_s(ours.decodes + 1, context))


def _takers(producer: Standing, tokens: Sequence[Standing]) -> list[Standing]:
    return [s for s in tokens if s.spec.accepts_kv_of(producer.spec)]
