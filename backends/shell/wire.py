"""Protobuf commands as worker commands, worker events as protobuf events.

The machine knows no prompt: what the shell needs of one (its length and its fingerprint) is taken here,
and the prompt itself is forgotten. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from polyphase.v1 import common_pb2, inference_pb2, worker_pb2

from backends.models.messages import (
    DecodeFinished,
    FailReason,
    KVTaken,
    PrefillFinished,
    RunDecode,
    RunPrefill,
)
from backends.models.tokens import kv_fingerprint, prompt_fingerprint
from router.errors import BackendError
from router.model import BackendSpec, KVHandle, Seconds
from router.wire import (
    MAX_FAILURE_MESSAGE,
    cost_to_proto,
    finish_to_proto,
    kv_handle_from_proto,
    kv_handle_to_proto,
    prompt_bytes,
    prompt_length,
)

OUTPUT_OPTION: Final = "mock.output_tokens"
"""Key of GenerateRequest.engine_options that holds the true length of the answer, in decimal."""

_FAILURES: Final[Mapping[FailReason, worker_pb2.PhaseFailed.Reason]] = {
    FailReason.INVALID: worker_pb2.PhaseFailed.REASON_INVALID,
    FailReason.CAPACITY: worker_pb2.PhaseFailed.REASON_CAPACITY,
    FailReason.KV_STALE: worker_pb2.PhaseFailed.REASON_KV_STALE,
    FailReason.KV_LAYOUT: worker_pb2.PhaseFailed.REASON_KV_LAYOUT,
    FailReason.KV_TRANSFER: worker_pb2.PhaseFailed.REASON_KV_TRANSFER,
    FailReason.DRAINING: worker_pb2.PhaseFailed.REASON_DRAINING,
    FailReason.INTERNAL: worker_pb2.PhaseFailed.REASON_INTERNAL,
}


class RefusedCommandError(Exception):
    """A command that this worker does not start; by default because it can never run here."""

    def __init__(self, message: str, reason: FailReason = FailReason.INVALID) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    """What the shell works out of a request before the machine sees it."""

    prompt_tokens: int
    prompt_fp: int
    seed: int
    output_tokens: int
    length_capped: bool


def answer_to(request: inference_pb2.GenerateRequest, spec: BackendSpec) -> Answer:
    """Size up a request. Raises RefusedCommandError when the worker can never run it."""
    if request.model not in spec.models:
        raise RefusedCommandError(f"model {request.model[:80]!r} is not served by {spec.id}")
    prompt_tokens = prompt_length(request)
    if prompt_tokens < 1:
        raise RefusedCommandError("the prompt is empty")
    limit = request.max_new_tokens
    if limit < 1:
        raise RefusedCommandError("max_new_tokens is 0")
    output_tokens = min(_true_length(request) or limit, limit)
    return Answer(
        prompt_tokens=prompt_tokens,
        prompt_fp=prompt_fingerprint(request.model, prompt_bytes(request)),
        seed=request.sampling.seed,
        output_tokens=output_tokens,
        length_capped=output_tokens == limit,
    )


def _true_length(request: inference_pb2.GenerateRequest) -> int | None:
    text = request.engine_options.get(OUTPUT_OPTION)  # .get does not insert, unlike []
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) > 0):
        raise RefusedCommandError(f"engine option {OUTPUT_OPTION} is {text[:20]!r}, not a count from 1 on")
    return int(text)


def run_prefill(key: int, command: worker_pb2.StartPrefill, answer: Answer) -> RunPrefill:
    """The prefill of a request."""
    request = command.request
    return RunPrefill(
        key=key,
        request_id=request.request_id,
        epoch=command.epoch,
        prompt_tokens=answer.prompt_tokens,
        prefix_hashes=tuple(request.prefix_hashes),
        output_tokens=answer.output_tokens,
        length_capped=answer.length_capped,
        decode_here=command.decode_here,
        fingerprint=kv_fingerprint(answer.prompt_fp),
        model=request.model,
    )


def run_decode(key: int, command: worker_pb2.StartDecode, answer: Answer, now: Seconds) -> RunDecode:
    """The decode of a request. Raises RefusedCommandError when the handle or first_index makes no sense."""
    if command.first_index > answer.output_tokens:
        raise RefusedCommandError(
            f"first_index {command.first_index} lies behind the answer's {answer.output_tokens} tokens"
        )
    check_owner(command)
    return RunDecode(
        key=key,
        request_id=command.request.request_id,
        epoch=command.epoch,
        kv=handle_in(command.kv, now),
        prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        length_capped=answer.length_capped,
        first_index=command.first_index,
        model=command.request.model,
    )


# --- KV handles ------------------------------------------------------------------------------------


def check_owner(command: worker_pb2.StartDecode) -> None:
    """Raise RefusedCommandError for the handle of another request: its KV is sound, and not this answer's."""
    owner = command.kv.request_id
    if owner != command.request.request_id:
        raise RefusedCommandError(
            f"the handle is of request {owner[:64]!r}; prefill again", FailReason.KV_STALE
        )


def handle_in(proto: common_pb2.KVHandle, now: Seconds) -> KVHandle:
    """A handle as received. Raises RefusedCommandError when it cannot be read."""
    try:
        return kv_handle_from_proto(proto, now)
    except BackendError as error:
        raise RefusedCommandError(f"the KV handle cannot be read: {error.message}") from error


# --- events ----------------------------------------------------------------------------------------


def prefill_done(seq: int, event: PrefillFinished, now: Seconds) -> worker_pb2.PhaseEvent:
    """PrefillDone, with the handle when the KV waits for a peer."""
    done = worker_pb2.PrefillDone(cost=cost_to_proto(event.cost), cached_tokens=event.cached_tokens)
    if event.kv is not None:
        done.kv.CopyFrom(kv_handle_to_proto(event.kv, now))
    return worker_pb2.PhaseEvent(seq=seq, prefill_done=done)


def kv_moved(seq: int, event: KVTaken) -> worker_pb2.PhaseEvent:
    """KVMoved."""
    moved = worker_pb2.KVMoved(bytes=event.moved_bytes, transfer_s=event.transfer_s)
    return worker_pb2.PhaseEvent(seq=seq, kv_moved=moved)


def decode_done(seq: int, event: DecodeFinished) -> worker_pb2.PhaseEvent:
    """DecodeDone."""
    done = worker_pb2.DecodeDone(
        cost=cost_to_proto(event.cost),
        output_tokens=event.output_tokens,
        reason=finish_to_proto(event.reason),
    )
    return worker_pb2.PhaseEvent(seq=seq, decode_done=done)


def failed(seq: int, reason: FailReason, message: str) -> worker_pb2.PhaseEvent:
    """PhaseFailed."""
    failure = worker_pb2.PhaseFailed(reason=_FAILURES[reason], message=message[:MAX_FAILURE_MESSAGE])
    return worker_pb2.PhaseEvent(seq=seq, failed=failure)
