"""TensorRT-LLM pairs, context first: the words of the handoff. Pure.

A context server gets the request as `context_only`, computes the KV and the first token, and answers where
the KV lies and the prompt's ids. A generation server gets all of it back as `generation_only`: it fetches the
KV, and its answer begins with that first token. Read in TensorRT-LLM's serve/openai_disagg_service.py and
serve/openai_protocol.py (2026).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from backends.engines.dialect import Ask, ids_of
from backends.engines.failures import PhaseError, broken
from router.errors import Reason

FIELD: Final = "disaggregated_params"
MAX_STATE_BYTES: Final = 1 << 20
"""Of what a context server says of its KV, with the ids of the prompt; an answer has no more either."""
_KIND: Final = "trtllm"
NOT_OVER: Final = frozenset({"length", "not_finished"})
"""Ends of a context server's answer after which there is something to generate."""


def context_ask(ask: Ask, number: int) -> Ask:
    """The request of the first leg, under a number of the router's, at least 2^42."""
    body = {key: value for key, value in ask.body.items() if key != "stream_options"}
    params = {"request_type": "context_only", "disagg_request_id": number}
    return Ask(ask.path, body | {"stream": False, FIELD: params})


def generation_ask(ask: Ask, connector: bytes) -> Ask:
    """The request of the second leg. Raises PhaseError for KV of another engine."""
    try:
        kept = json.loads(connector)
    except ValueError:
        kept = None
    if not isinstance(kept, dict) or kept.get("kind") != _KIND:
        text = "the KV is of an engine that is no TensorRT-LLM; give other engines another spec.kv_layout"
        raise PhaseError(Reason.KV_TRANSFER_FAILED, text)
    field = "prompt_token_ids" if "messages" in ask.body else "prompt"
    return Ask(ask.path, ask.body | {FIELD: kept["params"], field: kept["ids"]})


def kept_in(answer: Any, choice: Mapping[str, Any], number: int) -> bytes:
    """A handle's connector out of a context server's answer. Raises PhaseError."""
    params = choice.get(FIELD)
    if not params:
        text = f"the engine gave no {FIELD}: is it a context server of a disaggregated pair?"
        raise PhaseError(Reason.KV_TRANSFER_FAILED, text)
    if not isinstance(params, dict) or type(params.get("ctx_request_id")) is not int:
        raise broken(f"its {FIELD} offer no KV")
    if not ids_of(params.get("first_gen_tokens")):
        raise broken(f"its {FIELD} hold no first token")
    ids = ids_of(answer.get("prompt_token_ids"))
    if not ids:
        raise broken("it does not tell the prompt's ids")
    params = params | {"request_type": "generation_only", "disagg_request_id": number}
    raw = json.dumps({"kind": _KIND, "params": params, "ids": ids}, separators=(",", ":")).encode()
    if len(raw) > MAX_STATE_BYTES:
        raise broken(f"its {FIELD} have more than {MAX_STATE_BYTES} bytes")
    return raw
