"""vLLM pairs that hand KV over by NIXL: the words of the handoff. Pure.

Prefill is asked for one token and to keep its KV (`do_remote_decode`). Its answer says where the KV lies;
that object goes to decode verbatim, and decode pulls the blocks, or has them pushed, engine to engine. Read
in vLLM 0.32.0: distributed/kv_transfer/kv_connector/v1/nixl/{pull,push}_scheduler.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from backends.engines.dialect import Ask
from backends.engines.failures import PhaseError, broken
from router.errors import Reason

FIELD: Final = "kv_transfer_params"
MAX_PARAMS_BYTES: Final = 1 << 18
"""A prompt of a million tokens has 65,536 blocks of 16, with ids of up to 7 digits: about half of this."""
LEASE_S: Final = 30.0
"""vLLM's kv_lease_duration unless kv_connector_extra_config says otherwise."""
_DROPPED: Final = ("stream_options", "min_tokens", "max_completion_tokens")
_WANTED: Final[Mapping[str, Any]] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


@dataclass(frozen=True, slots=True)
class Hosts:
    """Where KV may be pulled from. Empty: from wherever prefill says."""

    allowed: frozenset[str] = frozenset()


def prefill_ask(ask: Ask) -> Ask:
    """The request of the first leg: one token, not streamed, and its KV kept."""
    body = {key: value for key, value in ask.body.items() if key not in _DROPPED}
    return Ask(ask.path, body | {"stream": False, "max_tokens": 1, FIELD: dict(_WANTED)})


def decode_ask(ask: Ask, connector: bytes) -> Ask:
    """The request of the second leg, with what the first one answered."""
    return Ask(ask.path, ask.body | {FIELD: json.loads(connector)})


def release_ask(connector: bytes, model: str) -> Ask:
    """A request that a decode engine refuses, whereupon it tells prefill to free the blocks.

    It names a model nobody serves. vLLM does so for every request with a handoff that it does not admit
    (entrypoints/generate/base/serving.py, _with_kv_transfer_rejection_cleanup).
    """
    body = {"model": f"{model}/released", "prompt": [0], "max_tokens": 1, FIELD: json.loads(connector)}
    return Ask("/v1/completions", body)


def connector_of(answer: Any, hosts: Hosts) -> bytes | None:
    """What prefill said of its KV, verbatim as JSON; None when it keeps none. Raises PhaseError."""
    params = answer.get(FIELD) if isinstance(answer, dict) else None
    if not params:
        return None
    if not isinstance(params, dict) or params.get("do_remote_prefill") is not True:
        raise broken("its kv_transfer_params offer no KV")
    host = params.get("remote_host")
    if hosts.allowed and host not in hosts.allowed:
        # Decode connects to wherever this says: an engine that was broken into could send it anywhere.
        raise PhaseError(Reason.BACKEND_FAILED, "its KV is at a host that options.kv_hosts does not allow")
    raw = json.dumps(params, separators=(",", ":")).encode()
    if len(raw) > MAX_PARAMS_BYTES:
        raise broken(f"its kv_transfer_params have more than {MAX_PARAMS_BYTES} bytes")
    return raw
