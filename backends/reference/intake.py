"""Commands as jobs: what is refused before anything is computed, and what is computed.

A sampling option that is not set is as in the OpenAI API: temperature 1, top_p 1. Draws are seeded, by 0
where the request names no seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from polyphase.v1 import common_pb2, inference_pb2, worker_pb2

from backends.models.messages import FailReason, RunDecode, RunPrefill
from backends.models.sequence import refusal
from backends.reference.kind import Kind
from backends.reference.sampler import Sampling
from backends.reference.sequence import Job
from backends.reference.transfer import identity
from backends.shell import wire
from backends.shell.wire import RefusedCommandError
from router.model import BackendSpec, Seconds

Encode = Callable[[str], Sequence[int]]
"""Text as token ids."""


class Intake:
    """Reads the commands of one worker."""

    def __init__(
        self, spec: BackendSpec, kind: Kind, stop_ids: frozenset[int], encode: Encode | None = None
    ) -> None:
        """`stop_ids` end an answer unless the request ignores them; without `encode` text is refused."""
        self._encode = encode
        self._spec = spec
        self._kind = kind
        self._stop_ids = stop_ids

    def prefill(self, key: int, command: worker_pb2.StartPrefill) -> tuple[RunPrefill, Job]:
        """The prefill of a request. Raises RefusedCommandError when it can never run here."""
        request = command.request
        job = self._job(request)
        made = RunPrefill(
            key=key,
            request_id=request.request_id,
            epoch=command.epoch,
            prompt_tokens=len(job.prompt),
            prefix_hashes=(),
            output_tokens=job.max_new_tokens,
            length_capped=True,
            decode_here=command.decode_here,
            fingerprint=identity(self._kind.revision, job.prompt),
            model=request.model,
        )
        return made, job

    def decode(self, key: int, command: worker_pb2.StartDecode, now: Seconds) -> tuple[RunDecode, Job]:
        """The decode of a request. Raises RefusedCommandError when it can never run here."""
        request = command.request
        job = self._job(request)
        made = RunDecode(
            key=key,
            request_id=request.request_id,
            epoch=command.epoch,
            kv=wire.handle_in(command.kv, now),
            prompt_tokens=len(job.prompt),
            output_tokens=job.max_new_tokens,
            length_capped=True,
            first_index=command.first_index,
            model=request.model,
        )
        return made, job

    def objection(self, command: RunPrefill | RunDecode, job: Job) -> tuple[FailReason, str] | None:
        """Why a command cannot begin, before anything moves; None when it can."""
        if reason := refusal(command, self._spec):
            return FailReason.INVALID, reason
        if isinstance(command, RunPrefill):
            return None
        spec, kv = self._spec, command.kv
        if kv.layout != spec.kv_layout and kv.layout not in spec.kv_accepts:
            accepted = ", ".join((spec.kv_layout, *spec.kv_accepts))
            return FailReason.KV_LAYOUT, f"{spec.id} cannot take over {kv.layout!r}; it takes {accepted}"
        if kv.tokens != len(job.prompt) or kv.prefix_hash != identity(self._kind.revision, job.prompt):
            return FailReason.KV_STALE, "the handle names the KV of another prompt or model; prefill again"
        return None

    def _job(self, request: inference_pb2.GenerateRequest) -> Job:
        if request.model not in self._spec.models:
            raise RefusedCommandError(f"model {request.model[:80]!r} is not served by {self._spec.id}")
        if request.max_new_tokens < 1:
            raise RefusedCommandError("max_new_tokens is 0")
        return Job(self._prompt(request), self._sampling(request.sampling), request.max_new_tokens)

    def _prompt(self, request: inference_pb2.GenerateRequest) -> tuple[int, ...]:
        ids: Sequence[int] = request.tokens.ids
        if request.WhichOneof("prompt") == "text":
            if self._encode is None:
                raise RefusedCommandError(
                    f"{self._spec.id} has no tokenizer and cannot read text. Send the prompt as token ids."
                )
            ids = self._encode(request.text)
        if not ids:
            raise RefusedCommandError("the prompt is empty")
        if (largest := max(ids)) >= self._kind.shape.vocab:
            vocabulary = self._kind.shape.vocab
            raise RefusedCommandError(f"token id {largest} is outside the model's {vocabulary} tokens")
        return tuple(ids)

    def _sampling(self, wanted: common_pb2.SamplingParams) -> Sampling:
        if wanted.stop:
            raise RefusedCommandError(
                f"{self._spec.id} answers in token ids and cannot look for stop strings. Leave them out."
            )
        return Sampling(
            temperature=wanted.temperature if wanted.HasField("temperature") else 1.0,
            top_p=wanted.top_p if wanted.HasField("top_p") else 1.0,
            top_k=wanted.top_k,
            seed=wanted.seed,
            stop_ids=frozenset() if wanted.ignore_eos else self._stop_ids,
            min_new_tokens=wanted.min_new_tokens,
        )
