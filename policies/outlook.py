"""The predictions for one request over a fleet, and the best placements by them.

Made for one decision and thrown away. The formulas are in predicted.py's docstring; times are
seconds from the decision on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from policies import forecast
from policies.aim import SOONEST, Aim
from policies.costs import Costs, Size
from policies.prices import Tolls
from policies.search import Best, Found, Row, shortlist
from policies.stakes import NOTHING, Stake, Stakes
from policies.standing import Standing
from router.core.ports import FleetView
from router.model import Candidate, Prediction, Request, Seconds

Rows = dict[int, list[Row]]


class Outlook:
    """What is predicted for one request. The same load on the same kind of backend is predicted once.

    The cost of a placement is in seconds (costs.py). Without stakes, tolls and prices it is its time.
    """

    def __init__(
        self,
        request: Request,
        fleet: FleetView,
        output_tokens: int,
        aim: Aim = SOONEST,
        held: Callable[[Standing], int] | None = None,
        stakes: Stakes = NOTHING,
        lengths: Sequence[int] = (),
        tolls: Tolls | None = None,
    ) -> None:
        """`held` says how many tokens of the prompt a backend is believed to hold; None: nobody any.

        The answer may have any of the `lengths`, ascending, with equal probability; empty: the expected one.
        `tolls` is what each part costs others by the prices in force (prices.py); None: there are none.
        """
        self.output_tokens = output_tokens
        self._prompt = max(1, request.prompt_tokens)
        self._fleet = fleet
        self._held = held
        size = Size(self._prompt, output_tokens, lengths or (output_tokens,), self._cached)
        self._costs = Costs(size, aim, stakes, tolls)
        self._context = size.context

    def prefill_ends(self, eligible: Sequence[Standing]) -> dict[Standing, Seconds]:
        """When the prompt would be done on each backend; one that cannot be predicted is missing."""
        known: dict[tuple[tuple[float, ...], int], Seconds] = {}
        ends: dict[Standing, Seconds] = {}
        for s in eligible:
            cached = 0 if self._held is None else self._cached(s)
            end = known.get((s.load_key, cached))
            if end is None:
                end = forecast.prefill_end_s(s, self._prompt - cached, cached)
                known[s.load_key, cached] = end
            if end < math.inf:
                ends[s] = end
        return ends

    def pairs(self, decode: Sequence[Standing], ends: Mapping[Standing, Seconds], keep: int) -> list[Found]:
        """The best placements: exactly those that trying every pair gives. Cheapest first."""
        best, costs, steps = Best(keep), self._costs, self._steps(decode)
        sources = {s: costs.source(s, end) for s, end in ends.items()}
        self._together(best, sources, steps, ends)

        def source_extra(s: Standing) -> float:
            return costs.source_extra(s, ends[s])

        for early in (False, True):
            producers = _by_egress(sources, early)
            if not producers:
                continue
            givers = [shortlist(rows, source_extra, keep) for rows in producers]
            decode_extra = partial(self._decode_extra, steps, early)
            takers = [shortlist(rows, decode_extra, keep) for rows in self._consumers(steps, early)]
            best.search(givers, takers, self._handoff)
        return best.pairs

    def bindings(self, producer: Standing, decode: Sequence[Standing], keep: int) -> list[Found]:
        """The best places to decode KV that is complete at `producer`, which may be one of them."""
        best, costs = Best(keep), self._costs
        early = producer.spec.connector.first_token_from_prefill
        for s, step in self._steps(decode).items():
            cost = 0.0 if s is producer else self._handoff(producer, s)
            cost += costs.decode(s, step, early) + costs.decode_extra(s, step, early)
            best.offer(cost, producer, s)
        return best.pairs

    def candidates(self, best: Sequence[Found]) -> list[Candidate]:
        """For the decision record: score is minus the cost in seconds, parts are seconds."""
        return [Candidate(p.id, d.id, -cost, self.parts(p, d)) for cost, _, _, _, p, d in best]

    def bound(self, best: Sequence[Found]) -> list[Candidate]:
        """The same for a late binding, counted from the end of prefill."""
        return [
            Candidate(p.id, d.id, -cost, {"handoff_s": 0.0 if p is d else self._transfer_s(p, d)})
            for cost, _, _, _, p, d in best
        ]

    def parts(self, producer: Standing, consumer: Standing) -> dict[str, float]:
        """Where the time of a placement goes: queue + prefill + handoff + decode = finish."""
        cached = self._cached(producer)
        end = forecast.prefill_end_s(producer, self._prompt - cached, cached)
        prefill = min(end, forecast.alone_s(producer, self._prompt - cached, cached))
        step = forecast.joined_step_s(consumer, self._context)
        if producer is consumer:
            ttft, handoff, decode = end, 0.0, self._costs.rest_s(consumer, step)
        else:
            early = producer.spec.connector.first_token_from_prefill
            handoff = self._transfer_s(producer, consumer)
            decode = self._costs.decode_s(consumer, step, early)
            ttft = end if early else end + handoff + consumer.half_step_s + step * consumer.stretch
        return {
            "queue_s": end - prefill,
            "prefill_s": prefill,
            "handoff_s": handoff,
            "decode_s": decode,
            "ttft_s": ttft,
            "finish_s": end + handoff + decode,
        }

    def prediction(self, producer: Standing, consumer: Standing, parts: Mapping[str, float]) -> Prediction:
        """The same for the router: times, list price and energy of the device time."""
        n, ttft, finish = self.output_tokens, parts["ttft_s"], parts["finish_s"]
        fresh = self._prompt - self._cached(producer)
        usd = forecast.prefill_usd(producer, fresh) + n * forecast.token_usd(consumer, self._context)
        joule = forecast.prefill_energy_j(producer, fresh)
        joule += n * forecast.token_energy_j(consumer, self._context)
        tpot = (finish - ttft) / (n - 1) if n > 1 else None
        return Prediction(ttft, finish, tpot, usd, joule)

    def stake(self, producer: Standing, consumer: Standing, parts: Mapping[str, float]) -> Stake:
        """What one placement puts at stake, both phases together."""
        costs, stakes, step = self._costs, self._costs.stakes, forecast.joined_step_s(consumer, self._context)
        harm = stakes.stalled(producer, lambda: costs.stall_s(producer))
        harm += stakes.slowed(consumer, costs.longer_s(consumer, step))
        moved_s: Seconds | None = None
        if producer is consumer:
            slow = stakes.tokens(consumer, step * consumer.stretch)
        else:
            early = producer.spec.connector.first_token_from_prefill
            moved_s = parts["handoff_s"] if early else None
            slow = costs.slow(consumer, step, early, moved_s or 0.0)
        uneven = costs.uneven(consumer, step, moved_s)
        return Stake(stakes.first(producer, parts["ttft_s"]), slow, uneven, harm)

    def takes(self, producer: Standing, consumer: Standing) -> tuple[Seconds, Seconds]:
        """What a placement takes from those beside it: time of the prefill, and of each decode step."""
        step = forecast.joined_step_s(consumer, self._context)
        return self._costs.stall_s(producer), max(0.0, self._costs.longer_s(consumer, step))

    def _decode_extra(self, steps: Mapping[Standing, Seconds], early: bool, s: Standing) -> float:
        return self._costs.decode_extra(s, steps[s], early)

    def _together(
        self,
        best: Best,
        sources: Mapping[Standing, float],
        steps: Mapping[Standing, Seconds],
        ends: Mapping[Standing, Seconds],
    ) -> None:
        """Offer each backend for both phases. The extras are worked out as long as the base is good
        enough."""
        costs = self._costs
        rows = [(sources[s] + costs.rest(s, step), s.order, s) for s, step in steps.items() if s in sources]
        rows.sort()
        for base, _, s in rows:
            if base >= best.worst:  # a later equal would not go before those found
                return
            best.offer(base + costs.source_extra(s, ends[s]) + costs.rest_extra(s, steps[s]), s, s)

    def _cached(self, s: Standing) -> int:
        """An engine computes at least the last token anew."""
        return 0 if self._held is None else max(0, min(self._held(s), self._prompt - 1))

    def _steps(self, decode: Sequence[Standing]) -> dict[Standing, Seconds]:
        known: dict[tuple[float, ...], Seconds] = {}
        steps: dict[Standing, Seconds] = {}
        for s in decode:
            step = known.get(s.load_key)
            if step is None:
                step = known[s.load_key] = forecast.joined_step_s(s, self._context)
            if step < math.inf:
                steps[s] = step
        return steps

    def _consumers(self, steps: Mapping[Standing, Seconds], early: bool) -> list[list[Row]]:
        known: dict[tuple[float, ...], float] = {}
        rows: Rows = {}
        for s, step in steps.items():
            cost = known.get(s.load_key)
            if cost is None:
                cost = known[s.load_key] = self._costs.decode(s, step, early)
            rows.setdefault(s.ingress, []).append((cost, s.order, s))
        return list(rows.values())

    def _handoff(self, producer: Standing, consumer: Standing) -> float:
        """Infinite when the consumer cannot take the KV over."""
        if not consumer.spec.accepts_kv_of(producer.spec):
            return math.inf
        return self._costs.handoff(producer, consumer, self._transfer_s(producer, consumer))

    def _transfer_s(self, producer: Standing, consumer: Standing) -> Seconds:
        link = self._fleet.link(producer.id, consumer.id)
        return forecast.handoff_s(self._prompt, producer.spec.kv_bytes_per_token, link)


def _by_egress(sources: Mapping[Standing, float], early: bool) -> list[list[Row]]:
    rows: Rows = {}
    for s, cost in sources.items():
        if s.spec.connector.first_token_from_prefill is early:
            rows.setdefault(s.egress, []).append((cost, s.order, s))
    return list(rows.values())
