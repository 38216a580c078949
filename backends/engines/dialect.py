"""What an answer is made of, whatever the engine's words for it; what a dialect has to translate. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from polyphase.v1 import inference_pb2

from backends.engines.failures import PhaseError, broken, error_body
from router.errors import Reason
from router.model import FinishReason

ABORTED: Final = frozenset({"abort", "error", "cancelled"})
"""Ends of an answer that are none: the engine gave it up."""
_LENGTH: Final = frozenset({"length", "limit", "max_tokens"})


@dataclass(frozen=True, slots=True)
class Ask:
    """What to send to an engine."""

    path: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The engine's own count, in tokens."""

    prompt: int
    output: int
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """One event of an answer."""

    text: str = ""
    ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    tokens: Tokens | None = None
    is_last: bool = False


class Dialect(Protocol):
    """The words of one engine for a request and its answer."""

    def ask(self, payload: inference_pb2.GenerateRequest) -> Ask:
        """The request as the engine wants it. Raises PhaseError for one it cannot take."""
        ...

    def delta(self, data: str) -> Delta:
        """One event. Raises PhaseError for an error, and for what cannot be understood."""
        ...


def sampling_of(payload: inference_pb2.GenerateRequest) -> dict[str, Any]:
    """What the request sets of its sampling, by the names most engines share; the rest is their default."""
    sampling = payload.sampling
    body: dict[str, Any] = {}
    if sampling.HasField("temperature"):
        body["temperature"] = round(sampling.temperature, 6)  # 0.7 has more digits in a float of 32 bits
    if sampling.HasField("top_p"):
        body["top_p"] = round(sampling.top_p, 6)
    for name, value in (
        ("top_k", sampling.top_k),
        ("seed", sampling.seed),
        ("stop", list(sampling.stop)),
        ("ignore_eos", sampling.ignore_eos),
    ):
        if value:
            body[name] = value
    return body


def parsed(data: str) -> Mapping[str, Any]:
    """An event that is a JSON object. Raises PhaseError for another, and for an error of the engine's."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise broken("an event is not JSON") from None
    if not isinstance(event, dict):
        raise broken("an event is no JSON object")
    if (failure := error_body(event)) is not None:
        raise failure
    return event


def finish_of(word: Any) -> FinishReason | None:
    """The end that a word stands for; None for no word."""
    if word is None or word == "":
        return None
    if not isinstance(word, str):
        raise broken("its finish reason is no word")
    if word in ABORTED:
        raise PhaseError(Reason.BACKEND_FAILED, "the engine gave the request up in its midst")
    return FinishReason.LENGTH if word in _LENGTH else FinishReason.STOP


def ids_of(value: Any) -> tuple[int, ...]:
    """Token ids, if there are any."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 1 << 31 for item in value):
        raise broken("its token ids are no ids")
    return tuple(value)


def count_of(value: Any) -> int:
    """A number of tokens; 0 for none."""
    if value is None:
        return 0
    if type(value) is not int or value < 0:
        raise broken("its usage holds what is no count")
    return value


def text_of(value: Any) -> str:
    """Some text; empty for none."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise broken("its text is no text")
    return value
