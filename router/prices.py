"""The nouns of price-directed routing: the problem that prices come from, and the prices. Values only.

A policy that routes by prices (core.ports.PriceTaker) states a problem: what came lately, and what it takes
of each kind of backend. Somebody else solves it (router/plan/prices.py) and tells the core what came out, as
a fact. Prices are in seconds: of delay that one unit more of a resource causes to others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from router.model import BackendSpec, Seconds

MAX_CLASSES: Final = 48
"""Classes of one problem, at most; the program grows by this many times the square of the groups."""
MAX_GROUPS: Final = 16
"""Groups of one problem, at most."""


@dataclass(frozen=True, slots=True)
class PricedUse:
    """What one request of a class takes of one backend of a group."""

    prefill_s: Seconds = 0.0
    """Device time of the prompt; infinite when it cannot run there, or not in time."""
    decode_s: Seconds = 0.0
    """Device time of the answer: its share of the steps, in the largest batch that keeps the time per token;
    infinite when it cannot run there."""
    kv_token_s: float = 0.0
    """Tokens of KV room times the time that decode holds them."""
    egress_bytes: float = 0.0
    """KV that leaves when decode runs elsewhere."""
    prefill_j: float = 0.0
    """Energy above idle."""
    decode_j: float = 0.0

    @property
    def prefills(self) -> bool:
        """Whether the prompt may run there."""
        return self.prefill_s < math.inf

    @property
    def decodes(self) -> bool:
        """Whether the answer may run there."""
        return self.decode_s < math.inf


@dataclass(frozen=True, slots=True)
class PricedClass:
    """Requests that are alike."""

    model: str
    rate: float
    """Requests per second, above 0."""
    worth_s: Seconds
    """Seconds of delay to others that one served request is worth; above that it is better left out."""
    uses: tuple[PricedUse, ...]
    """One for each group, in the order of the groups."""


@dataclass(frozen=True, slots=True)
class PricedGroup:
    """Backends that cost the same: they differ in nothing but id and zone."""

    name: str
    spec: BackendSpec
    """Of one of them."""
    units: int
    """How many take work, at least 1."""


@dataclass(frozen=True, slots=True)
class PriceProblem:
    """What prices are to be worked out for. Bounded by MAX_CLASSES and MAX_GROUPS."""

    at: Seconds
    """When it was stated, on the router's clock."""
    classes: tuple[PricedClass, ...]
    groups: tuple[PricedGroup, ...]
    power_cap_w: float = math.inf
    """Of all groups together, idle power included."""
    usd_s: float = 0.0
    """Seconds of delay that a dollar of device time at list price is worth."""


@dataclass(frozen=True, slots=True)
class Unpriced:
    """There is no problem to solve at this time."""

    reason: str
    """`fresh` (the last prices are recent), `thin` (too few requests), `groups` (too many kinds of backends)
    or `fleet` (nobody to price); a metric label."""


@dataclass(frozen=True, slots=True)
class GroupPrice:
    """What the resources of one backend of a group cost, at least 0 each."""

    group: str
    prefill: float
    """Seconds of delay per second of device time on prompts."""
    decode: float
    """The same for answers."""
    kv_token: float = 0.0
    """Per token of KV room and second."""
    egress_byte: float = 0.0
    ingress_byte: float = 0.0
    crowding: float = 0.0
    """All of them together: seconds of delay per second in which one backend's share of each is taken."""
    load: float = 0.0
    """Share of the scarcest resource that the program uses, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Prices:
    """The answer to one problem."""

    at: Seconds
    """`at` of the problem."""
    groups: tuple[GroupPrice, ...]
    joule: float = 0.0
    """Seconds of delay per joule above idle; 0 unless the power cap binds."""
    served: float = 1.0
    """Share of what came that is worth its price, in [0, 1]."""
