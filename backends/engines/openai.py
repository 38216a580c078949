"""The OpenAI API's words for a request and its answer: completions and chat completions, streamed. Pure.

Spoken by vLLM, SGLang, llama.cpp, TGI and hosted services. Fields beyond the API (token ids, top_k, ...) are
sent only where the configuration says the engine knows them, or the request asks for them: an engine that
does not know them refuses the request, and says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from polyphase.v1 import inference_pb2

from backends.engines.dialect import (
    Ask,
    Delta,
    Tokens,
    count_of,
    finish_of,
    ids_of,
    parsed,
    sampling_of,
    text_of,
)
from backends.engines.failures import PhaseError, broken
from router.errors import Reason

_END: Final = "[DONE]"
_RESERVED: Final = frozenset(
    {"model", "prompt", "messages", "stream", "stream_options", "n", "best_of", "max_tokens"}
    | {"max_completion_tokens", "kv_transfer_params", "return_token_ids", "echo", "use_beam_search"}
    | {"bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key", "routed_dp_rank"}
    | {"disagg_prefill_dp_rank", "disaggregated_params", "prompt_token_ids"}
)
"""Options a client may not set: they would change whose request it is, or how its answer is read."""


@dataclass(frozen=True, slots=True)
class OpenAIWords:
    """How one server speaks the API."""

    api: Literal["completions", "chat"] = "completions"
    model: str = ""
    """What the server calls the model; empty: as the request does."""
    token_ids: bool = False
    """It takes prompts as ids, and tells the ids of its tokens (vLLM's return_token_ids)."""
    usage: bool = True
    """It counts tokens at the end of a stream when asked to (stream_options)."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    pass_options: tuple[str, ...] = ()
    """Keys of engine_options that clients may set; put into the body, as JSON where they are JSON."""


class OpenAIDialect:
    """Translates both ways. Satisfies Dialect."""

    def __init__(self, words: OpenAIWords) -> None:
        self._words = words

    def ask(self, payload: inference_pb2.GenerateRequest) -> Ask:
        """The request, streamed."""
        words = self._words
        body: dict[str, Any] = {"model": words.model or payload.model, "stream": True}
        body |= self._prompt(payload) | sampling_of(payload) | self._options(payload)
        body[words.max_tokens_field] = payload.max_new_tokens
        if payload.sampling.min_new_tokens:
            body["min_tokens"] = payload.sampling.min_new_tokens
        if words.usage:
            body["stream_options"] = {"include_usage": True}
        if words.token_ids:
            body["return_token_ids"] = True
        path = "/v1/chat/completions" if words.api == "chat" else "/v1/completions"
        return Ask(path, body)

    def delta(self, data: str) -> Delta:
        """One event of the stream."""
        if data == _END:
            return Delta(is_last=True)
        event = parsed(data)
        tokens = usage_of(event.get("usage"))
        choices = event.get("choices")
        if not choices:
            return Delta(tokens=tokens)
        choice = first_of(choices)
        return Delta(
            text=text_in(choice),
            ids=ids_of(choice.get("token_ids")),
            finish=finish_of(choice.get("finish_reason")),
            tokens=tokens,
        )

    def _prompt(self, payload: inference_pb2.GenerateRequest) -> dict[str, Any]:
        if payload.WhichOneof("prompt") == "text":
            if self._words.api == "completions":
                return {"prompt": payload.text}
            return {"messages": [{"role": "user", "content": payload.text}]}
        if not self._words.token_ids or self._words.api == "chat":
            raise PhaseError(
                Reason.INVALID_REQUEST,
                "the engine takes prompts as text only; send text, or name a backend that takes token ids",
            )
        return {"prompt": list(payload.tokens.ids)}

    def _options(self, payload: inference_pb2.GenerateRequest) -> dict[str, Any]:
        unknown = [key for key in payload.engine_options if key not in self._words.pass_options]
        if unknown:
            text = f"engine_options holds {min(unknown)!r}, which this backend's pass_options does not allow"
            raise PhaseError(Reason.INVALID_REQUEST, text)
        return {key: _json_or_text(value) for key, value in payload.engine_options.items()}


def check_options(names: tuple[str, ...]) -> str:
    """What is wrong with a list of options that clients may set; empty for nothing."""
    reserved = sorted(_RESERVED.intersection(names))
    return f"{reserved[0]!r} is the router's own to set" if reserved else ""


def usage_of(usage: Any) -> Tokens | None:
    """The engine's counts, if it gives any."""
    if usage is None:
        return None
    if not isinstance(usage, dict):
        raise broken("its usage is no object")
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return Tokens(count_of(prompt), count_of(output), count_of(cached))


def first_of(choices: Any) -> Mapping[str, Any]:
    """The one choice of an answer."""
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise broken("it has not exactly one choice")
    return choices[0]


def text_in(choice: Mapping[str, Any]) -> str:
    """The text of a choice, be it of a completion, of a chat, or of a delta of either."""
    message = choice.get("delta", choice.get("message"))
    return text_of(message.get("content") if isinstance(message, dict) else choice.get("text"))


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
