"""What a placement costs the others, by the prices that were worked out last. Pure.

    prefill   device time of the prompt x price + joules x price
    decode    device time of the answer, shared as in the batch that keeps its pace, x price; KV room; joules
    handoff   bytes x (price at the producer's egress + price at the consumer's ingress)

All in seconds of delay (router/prices.py). Prices follow what is worked out half way each time, and change by
a bounded factor, so that a burst, or a program that has two answers, does not throw them about. Old prices
are none: what holds for a load that is gone would steer against the present one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from policies.price_problem import Batch, GroupNames, batch_of
from policies.standing import Standing
from router.model import BackendSpec, Request, Seconds
from router.prices import GroupPrice, Prices

AT_ONCE: Final = 1.0
"""Crowding that may come at once, so that a price of nothing can rise: that of a load of 38 %."""
MAX_BATCHES: Final = 4096
"""Batches kept; clients choose objectives, so there may be any number."""
PRICES: Final = ("prefill", "decode", "kv_token", "egress_byte", "ingress_byte", "crowding")
"""The fields of a GroupPrice that are prices."""


@dataclass(frozen=True, slots=True)
class Steadiness:
    """How prices follow what is worked out."""

    blend: float
    """Share of the way to the new price that is gone at once, in (0, 1]."""
    most_change: float
    """Factor by which crowding may be taken to change from one time to the next, above 1."""

    def __call__(self, old: GroupPrice, new: GroupPrice) -> GroupPrice:
        """The prices in force after `old`: on the way to the new ones, or as far as these are taken."""
        low, high = old.crowding / self.most_change, old.crowding * self.most_change + AT_ONCE
        taken = min(max(new.crowding, low), high)
        goal = _scaled(new, taken) if new.crowding > 0.0 else _scaled(old, taken)
        return _with(new, lambda name: self.between(getattr(old, name), getattr(goal, name)))

    def between(self, old: float, new: float) -> float:
        """The price in force when nothing bounds it."""
        return old + self.blend * (new - old)


class PriceBook:
    """The prices in force."""

    def __init__(self, steadiness: Steadiness, max_age_s: Seconds, weight: float = 1.0) -> None:
        """`weight` 1 counts a second of others' delay like one of one's own."""
        self._steady = steadiness
        self._max_age_s = max_age_s
        self._weight = weight
        self.names = GroupNames()
        self.at: Seconds = -math.inf
        """Of the problem that was solved last."""
        self.joule = 0.0
        self._groups: dict[str, GroupPrice] = {}
        self._of: dict[str, tuple[BackendSpec, GroupPrice | None]] = {}
        """By backend: a name takes longer to find than a price, and every backend of a fleet is asked for."""
        self._batches: dict[tuple[str, float, int], Batch | None] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> PriceBook:
        other = PriceBook(self._steady, self._max_age_s, self._weight)
        other.at, other.joule, other._groups = self.at, self.joule, dict(self._groups)
        return other

    def revise(self, prices: Prices) -> None:
        """Go towards new prices. Numbers that are no prices count as nothing."""
        stale = prices.at - self.at > self._max_age_s
        known = {} if stale else self._groups
        self._groups = {new.group: self._towards(known.get(new.group), _sound(new)) for new in prices.groups}
        joule = _price(prices.joule)
        self.joule = joule if stale else self._steady.between(self.joule, joule)
        self.at = prices.at
        self._of.clear()
        self._batches.clear()  # the models may have learned since

    def _towards(self, old: GroupPrice | None, new: GroupPrice) -> GroupPrice:
        return new if old is None else self._steady(old, new)

    def is_old(self, now: Seconds) -> bool:
        """Whether there are no prices to go by."""
        return now - self.at > self._max_age_s

    def tolls(self, request: Request, output_tokens: int, now: Seconds) -> Tolls | None:
        """What a request costs others; None without prices to go by."""
        return None if self.is_old(now) else Tolls(self, request, output_tokens, self._weight)

    def of(self, spec: BackendSpec) -> GroupPrice | None:
        """None for a kind of backend that was not there when prices were worked out."""
        known = self._of.get(spec.id)
        if known is None or known[0] is not spec:
            if len(self._of) >= GroupNames.LIMIT:
                self._of.clear()
            known = self._of[spec.id] = (spec, self._groups.get(self.names(spec)))
        return known[1]

    def batch(self, s: Standing, context_tokens: int, tpot_s: Seconds) -> Batch | None:
        """The batch that an answer of about this context shares; kept until the next prices."""
        eighth = max(1, context_tokens) // (1 << max(0, context_tokens.bit_length() - 3))
        rounded = eighth << max(0, context_tokens.bit_length() - 3)
        key = (self.names(s.spec), tpot_s, rounded)
        if key not in self._batches:
            if len(self._batches) >= MAX_BATCHES:
                self._batches.clear()
            assert s.latency is not None
            found = batch_of(s.latency, s.spec, rounded, tpot_s)
            self._batches[key] = found or batch_of(s.latency, s.spec, rounded, math.inf)
        return self._batches[key]


def _price(value: float) -> float:
    return value if 0.0 <= value < math.inf else 0.0


def _sound(one: GroupPrice) -> GroupPrice:
    return _with(one, lambda name: _price(getattr(one, name)))


def _scaled(one: GroupPrice, crowding: float) -> GroupPrice:
    """The same prices in another measure."""
    factor = crowding / one.crowding if one.crowding > 0.0 else 0.0
    return _with(one, lambda name: factor * getattr(one, name))


def _with(one: GroupPrice, price: Callable[[str], float]) -> GroupPrice:
    """The same group with other prices; `price` gives that of a field."""
    priced: dict[str, Any] = {name: price(name) for name in PRICES}
    return replace(one, **priced)


class Tolls:
    """What one request costs the others, backend by backend. Made for one decision.

    Backends of a group pay the same for the same work; each is worked out once.
    """

    def __init__(self, book: PriceBook, request: Request, output_tokens: int, weight: float) -> None:
        tpot_s = request.slo.tpot_s
        self._book = book
        self._prompt = max(1, request.prompt_tokens)
        self._output = output_tokens
        self._context = self._prompt + output_tokens // 2
        self._tpot_s = math.inf if tpot_s is None else tpot_s
        self._weight = weight
        self._decodes: dict[tuple[int, int], Seconds] = {}
        self._prefills: dict[tuple[int, int, int], Seconds] = {}

    def prefill(self, s: Standing, cached_tokens: int) -> Seconds:
        """Of the prompt, `cached_tokens` of which are there."""
        price = self._book.of(s.spec)
        if price is None:
            return 0.0
        key = (id(price), id(s.latency), cached_tokens)
        known = self._prefills.get(key)
        if known is None:
            known = self._prefills[key] = self._weight * self._prefill(s, price, cached_tokens)
        return known

    def decode(self, s: Standing) -> Seconds:
        """Of the answer."""
        price = self._book.of(s.spec)
        if price is None:
            return 0.0
        key = (id(price), id(s.latency))
        known = self._decodes.get(key)
        if known is None:
            known = self._decodes[key] = self._weight * self._decode(s, price)
        return known

    def handoff(self, producer: Standing, consumer: Standing) -> Seconds:
        """Of the KV on its way."""
        out, into = self._book.of(producer.spec), self._book.of(consumer.spec)
        price = (out.egress_byte if out else 0.0) + (into.ingress_byte if into else 0.0)
        return self._weight * price * self._prompt * producer.spec.kv_bytes_per_token

    def _prefill(self, s: Standing, price: GroupPrice, cached_tokens: int) -> Seconds:
        fresh = self._prompt - cached_tokens
        assert s.latency is not None
        power = s.spec.power
        joule = fresh * (power.joule_per_flop * power.flop_per_token) + power.joule_per_byte * (
            power.weight_bytes + s.spec.kv_bytes_per_token * fresh
        )
        return price.prefill * s.latency.prefill_s(fresh, cached_tokens) + self._book.joule * joule

    def _decode(self, s: Standing, price: GroupPrice) -> Seconds:
        batch = self._book.batch(s, self._context, self._tpot_s)
        if batch is None:
            return 0.0
        power = s.spec.power
        moved = power.weight_bytes / batch.size + s.spec.kv_bytes_per_token * self._context
        joule = power.joule_per_flop * power.flop_per_token + power.joule_per_byte * moved
        token = price.decode * batch.share_s + price.kv_token * batch.held_s * self._context
        return self._output * (token + self._book.joule * joule)
