"""SGLang pairs: prefill and decode get the same request at the same time, and meet in a room. Pure words.

The router names the prefill engine's bootstrap server and a room of 63 bits, and both engines are told both
(`bootstrap_host`, `bootstrap_port`, `bootstrap_room`). With data parallelism `room % dp_size` is the rank
that prefills; it is told to both, so that a decode engine asks the right one even where prefill engines
spread their load by another rule. Read in SGLang 0.5.23.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from backends.engines.dialect import Ask
from backends.engines.failures import PhaseError
from router.errors import Reason

_KIND: Final = "sglang"


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Where decode engines find a prefill engine."""

    host: str
    port: int
    dp_size: int = 1


def meeting(bootstrap: Bootstrap, room: int) -> bytes:
    """What a decode engine has to know of a prefill, as a handle's connector."""
    rank = room % bootstrap.dp_size if bootstrap.dp_size > 1 else None
    host = bootstrap.host
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    place = {"kind": _KIND, "host": host, "port": bootstrap.port, "room": room, "rank": rank}
    return json.dumps(place).encode()


def prefill_ask(ask: Ask, connector: bytes) -> Ask:
    """The request of the first leg."""
    return _ask(ask, _place(connector), "routed_dp_rank")


def decode_ask(ask: Ask, connector: bytes) -> Ask:
    """The request of the second leg. Raises PhaseError for KV of another engine."""
    return _ask(ask, _place(connector), "disagg_prefill_dp_rank")


def _ask(ask: Ask, place: dict[str, Any], rank_field: str) -> Ask:
    fields: dict[str, Any] = {
        "bootstrap_host": place["host"],
        "bootstrap_port": place["port"],
        "bootstrap_room": place["room"],
    }
    if place["rank"] is not None:
        fields[rank_field] = place["rank"]
    return Ask(ask.path, ask.body | fields)


def _place(connector: bytes) -> dict[str, Any]:
    try:
        place = json.loads(connector)
    except ValueError:
        place = None
    if not isinstance(place, dict) or place.get("kind") != _KIND:
        text = "the KV is of an engine that is no SGLang; give engines of other kinds another spec.kv_layout"
        raise PhaseError(Reason.KV_TRANSFER_FAILED, text)
    return place
