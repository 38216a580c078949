"""GenerateRequest to Request: the one place where what a client sends becomes something the core trusts.

Every rule that is broken is named, not the first one only, so that a caller corrects a request once.
Nothing of the prompt goes into a message.
"""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from polyphase.v1 import common_pb2, inference_pb2

from router.errors import CallerError, Reason, Violation
from router.live.salts import PrefixSalts
from router.model import Priority, Request, Seconds, ServiceLevel

BYTES_PER_TOKEN: Final = 4
"""Assumption: UTF-8 bytes of text per token. A rule of thumb for English prose; other languages and code
take fewer bytes per token, so the estimate is low for them. Workers count exactly."""

_CONTINUES: Final = bytes(1 if byte >= 0x80 else 0 for byte in range(256))
_FIVE_BYTE_VARINT: Final = b"\x01\x01\x01\x01"
_PRIORITIES: Final = {int(priority): priority for priority in Priority} | {0: Priority.NORMAL}


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one request. Each keeps a single request from taking what is meant for many."""

    message_bytes: int = 4 * 1024 * 1024
    """Of one message, as gRPC's default."""
    prompt_tokens: int = 1_048_576
    """Estimates included."""
    max_new_tokens: int = 131_072
    stop_strings: int = 16
    stop_characters: int = 256
    prefix_hashes: int = 65_536
    name_characters: int = 256
    """Of the model, the request id, the tenant, the session key and the workload class."""
    engine_options: int = 16
    engine_option_key_characters: int = 64
    engine_option_value_characters: int = 1024
    temperature: float = 100.0
    token_id: int = (1 << 31) - 1
    """Engines hold token ids as int32."""
    default_deadline_s: Seconds = 300.0
    """From arrival, for a request that names no deadline and comes without one of gRPC."""
    max_deadline_s: Seconds = 3600.0
    """Longer deadlines are cut to this."""


def mint_id() -> str:
    """A request id for a client that gave none."""
    return uuid.uuid4().hex


def validate(
    payload: inference_pb2.GenerateRequest,
    now: Seconds,
    limits: Limits,
    *,
    time_remaining_s: Seconds | None = None,
    mint: Callable[[], str] = mint_id,
    salts: PrefixSalts | None = None,
) -> Request:
    """The core's view of a request that arrived at `now`, on the clock of the core.

    `time_remaining_s` is what is left of the call's own deadline. An empty id is filled in, and `salts`
    changes prefix hashes, both in `payload` as well; None leaves them. Raises CallerError (INVALID_REQUEST)
    with one violation for each field that breaks a rule.
    """
    violations = [
        *_names(payload, limits),
        *_prompt(payload, limits),
        *_output(payload, limits),
        *_sampling(payload, limits),
        *_service_level(payload),
        *_rest(payload, limits),
    ]
    if violations:
        raise invalid(violations)
    if not payload.request_id:
        payload.request_id = mint()
    if salts is not None:
        salts.apply(payload)
    return _request(payload, now + deadline_s(payload, limits, time_remaining_s))


def invalid(violations: list[Violation]) -> CallerError:
    """The error of a request with these violations, at least one."""
    fields = ", ".join(violation.field for violation in violations)
    return CallerError(
        Reason.INVALID_REQUEST,
        f"the request breaks {len(violations)} rule(s) and was not accepted; "
        f"correct {fields} and send it again",
        violations=violations,
    )


def deadline_s(
    payload: inference_pb2.GenerateRequest, limits: Limits, time_remaining_s: Seconds | None
) -> Seconds:
    """Seconds from arrival to the deadline: the request's, else the call's, else the default; all capped."""
    if payload.slo.HasField("deadline_s"):
        wanted = payload.slo.deadline_s
    else:
        wanted = limits.default_deadline_s if time_remaining_s is None else time_remaining_s
    left = math.inf if time_remaining_s is None else time_remaining_s
    return min(wanted, left, limits.max_deadline_s)


def prompt_tokens(payload: inference_pb2.GenerateRequest) -> int:
    """Tokens of the prompt; for text an estimate by BYTES_PER_TOKEN, rounded up."""
    if payload.WhichOneof("prompt") == "text":
        return -(-len(payload.text.encode()) // BYTES_PER_TOKEN)
    return len(payload.tokens.ids)


def _request(payload: inference_pb2.GenerateRequest, deadline: Seconds) -> Request:
    slo = payload.slo
    return Request(
        id=payload.request_id,
        model=payload.model,
        prompt_tokens=prompt_tokens(payload),
        max_new_tokens=payload.max_new_tokens,
        deadline=deadline,
        prompt_is_estimate=payload.WhichOneof("prompt") == "text",
        workload_class=payload.workload_class,
        slo=ServiceLevel(
            ttft_s=slo.ttft_s if slo.HasField("ttft_s") else None,
            tpot_s=slo.tpot_s if slo.HasField("tpot_s") else None,
            jitter_ratio=slo.jitter_ratio if slo.HasField("jitter_ratio") else None,
        ),
        tenant=payload.tenant,
        priority=_PRIORITIES[payload.priority],
        session_key=payload.session_key,
        prefix_hashes=tuple(payload.prefix_hashes),
        max_cost_usd=payload.max_cost_usd if payload.HasField("max_cost_usd") else None,
        max_energy_j=payload.max_energy_j if payload.HasField("max_energy_j") else None,
    )


# --- rules: each yields what is broken -------------------------------------------------------------


def _names(payload: inference_pb2.GenerateRequest, limits: Limits) -> Iterator[Violation]:
    if not payload.model:
        yield Violation("model", "is empty; name a model of the fleet")
    names = (
        ("model", payload.model),
        ("request_id", payload.request_id),
        ("tenant", payload.tenant),
        ("session_key", payload.session_key),
        ("workload_class", payload.workload_class),
    )
    for field, name in names:
        # Names go into logs, metrics and terminals, which control characters could forge or garble.
        if len(name) > limits.name_characters:
            yield Violation(field, f"is {len(name)} characters long; at most {limits.name_characters}")
        elif not name.isprintable():
            yield Violation(field, "has control or other unprintable characters")


def _prompt(payload: inference_pb2.GenerateRequest, limits: Limits) -> Iterator[Violation]:
    kind = payload.WhichOneof("prompt")
    if kind is None:
        yield Violation("prompt", "is missing; send tokens or text")
        return
    count = prompt_tokens(payload)
    if count == 0:
        yield Violation(kind, "is empty; a prompt has at least one token")
    elif count > limits.prompt_tokens:
        about = "about " if kind == "text" else ""
        yield Violation(kind, f"has {about}{count} tokens; at most {limits.prompt_tokens}")
    elif kind == "tokens" and (at := _large_id(payload.tokens, limits.token_id)) is not None:
        yield Violation("tokens.ids", f"has too large an id at position {at}; at most {limits.token_id}")
    if len(payload.prefix_hashes) > limits.prefix_hashes:
        yield Violation(
            "prefix_hashes", f"has {len(payload.prefix_hashes)} entries; at most {limits.prefix_hashes}"
        )


def _large_id(tokens: common_pb2.TokenIds, limit: int) -> int | None:
    """The position of an id above the limit, if there is one: the id itself is part of the prompt.

    Reading every id costs as much as the rest of admission: only a prompt with an id of 28 bits or more, seen
    by the four bytes that say "continues" in its encoding, is read.
    """
    if limit >= 1 << 28 and _FIVE_BYTE_VARINT not in tokens.SerializeToString().translate(_CONTINUES):
        return None
    return next((at for at, token in enumerate(tokens.ids) if token > limit), None)


def _output(payload: inference_pb2.GenerateRequest, limits: Limits) -> Iterator[Violation]:
    wanted = payload.max_new_tokens
    if not 1 <= wanted <= limits.max_new_tokens:
        yield Violation("max_new_tokens", f"is {wanted}; from 1 to {limits.max_new_tokens}")
    elif payload.sampling.min_new_tokens > wanted:
        yield Violation(
            "sampling.min_new_tokens",
            f"is {payload.sampling.min_new_tokens}, above max_new_tokens ({wanted})",
        )


def _sampling(payload: inference_pb2.GenerateRequest, limits: Limits) -> Iterator[Violation]:
    sampling = payload.sampling
    if not 0.0 <= sampling.temperature <= limits.temperature:
        yield Violation(
            "sampling.temperature", f"is {sampling.temperature}; from 0 to {limits.temperature:g}"
        )
    if sampling.HasField("top_p") and not 0.0 < sampling.top_p <= 1.0:
        yield Violation("sampling.top_p", f"is {sampling.top_p}; above 0, at most 1")
    if len(sampling.stop) > limits.stop_strings:
        yield Violation("sampling.stop", f"has {len(sampling.stop)} strings; at most {limits.stop_strings}")
    elif any(not 1 <= len(stop) <= limits.stop_characters for stop in sampling.stop):
        yield Violation("sampling.stop", f"strings have from 1 to {limits.stop_characters} characters")


def _service_level(payload: inference_pb2.GenerateRequest) -> Iterator[Violation]:
    slo = payload.slo
    wanted = (
        ("slo.ttft_s", slo.HasField("ttft_s"), slo.ttft_s),
        ("slo.tpot_s", slo.HasField("tpot_s"), slo.tpot_s),
        ("slo.deadline_s", slo.HasField("deadline_s"), slo.deadline_s),
        ("max_cost_usd", payload.HasField("max_cost_usd"), payload.max_cost_usd),
        ("max_energy_j", payload.HasField("max_energy_j"), payload.max_energy_j),
    )
    for field, is_set, value in wanted:
        # NaN fails both comparisons.
        if is_set and not 0.0 < value <= sys.float_info.max:
            yield Violation(field, f"is {value}; a finite number above 0, or leave it out")
    if slo.HasField("jitter_ratio") and not 1.0 <= slo.jitter_ratio <= sys.float_info.max:
        yield Violation("slo.jitter_ratio", f"is {slo.jitter_ratio}; a finite number of at least 1")


def _rest(payload: inference_pb2.GenerateRequest, limits: Limits) -> Iterator[Violation]:
    if payload.priority not in _PRIORITIES:
        yield Violation("priority", f"has the unknown value {payload.priority}")
    options = payload.engine_options
    if len(options) > limits.engine_options:
        yield Violation("engine_options", f"has {len(options)} entries; at most {limits.engine_options}")
    elif not all(_option_fits(key, options[key], limits) for key in options):
        yield Violation(
            "engine_options",
            f"keys have from 1 to {limits.engine_option_key_characters} printable characters, "
            f"values at most {limits.engine_option_value_characters}",
        )


def _option_fits(key: str, value: str, limits: Limits) -> bool:
    return (
        1 <= len(key) <= limits.engine_option_key_characters
        and key.isprintable()
        and len(value) <= limits.engine_option_value_characters
    )
