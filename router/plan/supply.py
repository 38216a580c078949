"""What a plan deals in: classes of requests, types of backends, and what one costs the other. Values only.

A `Demand` is a class of requests with a rate; a `Supply` is a type of backend with its number of units; an
`Effort` is what one request of the class takes from one unit of the type. Which numbers an effort holds is
decided where it is worked out: work.py gives lower bounds that hold for our engine, recipe.py a published
recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from router.model import BackendSpec, Phase, Seconds


@dataclass(frozen=True, slots=True)
class Supply:
    """One type of backend."""

    name: str
    spec: BackendSpec
    units: float
    """How many there are; the most that may be bought when a fleet is sized."""


@dataclass(frozen=True, slots=True)
class Demand:
    """A class of requests."""

    name: str
    rate: float
    """Requests per second; in a plan over a span of time, requests in the span."""
    model: str


@dataclass(frozen=True, slots=True)
class Effort:
    """What one request takes from one unit, and why it cannot run there."""

    prefill_s: Seconds = 0.0
    """Device time of the prompt."""
    decode_s: Seconds = 0.0
    """Device time of the answer, in the largest batch that keeps the time per output token."""
    kv_token_s: float = 0.0
    """Token-seconds of KV room during decode."""
    egress_bytes: float = 0.0
    """KV that leaves the unit when decode runs elsewhere."""
    prefill_j: float = 0.0
    """Energy above idle."""
    decode_j: float = 0.0
    batch: float = 1.0
    """The batch that decode_s assumes."""
    no_prefill: str = ""
    """Why the prompt cannot run here in time, or at all; empty when it can."""
    no_decode: str = ""


Efforts = Mapping[tuple[str, str], Effort]
"""By name of demand and of supply."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the whole fleet may draw and cost."""

    power_w: float = math.inf
    """Of the backends alone; the caller divides the site's power by its PUE."""
    usd_per_hour: float = math.inf
    provisioned_w: float = math.inf
    """Of the power caps of all units together, as a rack or a site is laid out."""


NO_LIMITS: Final = Limits()


def supplies_of(specs: Iterable[BackendSpec]) -> tuple[Supply, ...]:
    """Backends that differ in nothing but id and zone are one type; in order of first appearance."""
    found: dict[BackendSpec, list[str]] = {}
    for spec in specs:
        found.setdefault(replace(spec, id="", zone=""), []).append(spec.id)
    return tuple(Supply(_name(ids), replace(spec, id=_name(ids)), len(ids)) for spec, ids in found.items())


def _name(ids: Sequence[str]) -> str:
    """What the ids of a type share, as in h100 for h100-0 and h100-1."""
    first = ids[0]
    shared = len(first)
    for one in ids[1:]:
        shared = next((i for i in range(min(shared, len(one))) if one[i] != first[i]), min(shared, len(one)))
    return (first[:shared].rstrip("-._") or first) if len(ids) > 1 else first


def hands_over(producer: Supply, consumer: Supply) -> bool:
    """Whether a prompt computed on one type can be decoded on another, or on the same."""
    if Phase.PREFILL not in producer.spec.phases or Phase.DECODE not in consumer.spec.phases:
        return False
    return producer is consumer or consumer.spec.accepts_kv_of(producer.spec)
