"""The predictions for one request over a fleet, and the best placements by them.

Made for one decision and thrown away. The formulas are in predicted.py's docstring; times are
seconds from the decision on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from policies import forecast
from policies.search import Best, Found, Row, shortlists
from policies.standing import Standing
from router.core.ports import FleetView
from router.model import Candidate, Prediction, Request, Seconds

Rows = dict[int, list[Row]]


class Outlook:
    """What is predicted for one request. The same load on the same kind of backend is predicted once."""

    def __init__(
        self,
        request: Request,
        fleet: FleetView,
        output_tokens: int,
        ttft_weight: float,
        held: Callable[[Standing], int] | None = None,
    ) -> None:
        """`held` says how many tokens of the prompt a backend is believed to hold; None: nobody any."""
        self.output_tokens = output_tokens
        self._prompt = max(1, request.prompt_tokens)
        self._context = self._prompt + output_tokens // 2
        self._fleet = fleet
        self._w = ttft_weight
        self._held = held

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
        best = Best(keep)
        steps = self._steps(decode)
        for s, step in steps.items():
            end = ends.get(s)
            if end is not None:
                best.offer(end + self._rest(s, step), s, s)
        for early in (False, True):
            producers = _by_egress(ends, early)
            if producers:
                consumers = shortlists(self._consumers(steps, early), keep)
                best.search(shortlists(producers, keep), consumers, self._handoff)
        return best.pairs

    def bindings(self, producer: Standing, decode: Sequence[Standing], keep: int) -> list[Found]:
        """The best places to decode KV that is complete at `producer`, which may be one of them."""
        best = Best(keep)
        early = producer.spec.connector.first_token_from_prefill
        for s, step in self._steps(decode).items():
            move = 0.0 if s is producer else self._handoff(producer, s)
            best.offer(move + self._decode(s, step, early), producer, s)
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
            ttft, handoff, decode = end, 0.0, self._rest_s(consumer, step)
        else:
            early = producer.spec.connector.first_token_from_prefill
            handoff, decode = self._transfer_s(producer, consumer), self._decode_s(consumer, step, early)
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

    # --- costs: (1 - w) x finish + w x time to first token, split into producer + handoff + consumer ---

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

    def _consumers(self, steps: Mapping[Standing, Seconds], early: bool) -> Rows:
        known: dict[tuple[float, ...], float] = {}
        rows: Rows = {}
        for s, step in steps.items():
            cost = known.get(s.load_key)
            if cost is None:
                cost = known[s.load_key] = self._decode(s, step, early)
            rows.setdefault(s.ingress, []).append((cost, s.order, s))
        return rows

    def _rest(self, s: Standing, step: Seconds) -> float:
        return (1 - self._w) * self._rest_s(s, step)

    def _rest_s(self, s: Standing, step: Seconds) -> Seconds:
        """Tokens after the first on the backend that did the prefill."""
        return (self.output_tokens - 1) * step * s.stretch

    def _decode(self, s: Standing, step: Seconds, early: bool) -> float:
        finish = (1 - self._w) * self._decode_s(s, step, early)
        return finish if early else finish + self._w * (s.half_step_s + step * s.stretch)

    def _decode_s(self, s: Standing, step: Seconds, early: bool) -> Seconds:
        """Decode after a handoff; `early` when prefill gave the first token."""
        own = (self.output_tokens - early) * step
        return s.half_step_s + max(own * s.stretch, own + s.backlog_s)

    def _handoff(self, producer: Standing, consumer: Standing) -> float:
        """Infinite when the consumer cannot take the KV over."""
        if not consumer.spec.accepts_kv_of(producer.spec):
            return math.inf
        early = producer.spec.connector.first_token_from_prefill
        return (1 - self._w if early else 1) * self._transfer_s(producer, consumer)

    def _transfer_s(self, producer: Standing, consumer: Standing) -> Seconds:
        link = self._fleet.link(producer.id, consumer.id)
        return forecast.handoff_s(self._prompt, producer.spec.kv_bytes_per_token, link)


def _by_egress(ends: Mapping[Standing, Seconds], early: bool) -> Rows:
    rows: Rows = {}
    for s, end in ends.items():
        if s.spec.connector.first_token_from_prefill is early:
            rows.setdefault(s.egress, []).append((end, s.order, s))
    return rows
