"""What the model tests share: a round-numbered backend, short commands, and a driver that is a loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

from backends.models.engine import BatchEngine
from backends.models.messages import RunDecode, RunPrefill, StepTokens
from backends.models.worker import WorkerMachine
from router.model import (
    BackendKind,
    BackendSpec,
    ConnectorFlags,
    KVHandle,
    LinkParameters,
    Phase,
    PowerParameters,
    SchedulerKind,
    Seconds,
    StepParameters,
)

Event = TypeVar("Event")

STEP = StepParameters(
    base_s=0.010,
    per_sequence_s=0.001,
    per_context_token_s=0.00001,
    prefill_base_s=0.002,
    prefill_floor_s=0.006,
    per_prefill_token_s=0.0001,
    per_attention_pair_s=0.000001,
)
"""Round numbers, so that times can be worked by hand."""


def backend(backend_id: str = "b", step: StepParameters = STEP, **fields: Any) -> BackendSpec:
    """Blocks of 4 tokens, room for 25 blocks, first token from prefill."""
    spec = BackendSpec(
        id=backend_id,
        kind=BackendKind.GPU,
        device="model",
        models=("m",),
        phases=frozenset(Phase),
        step=step,
        kv_bytes_per_token=1000.0,
        kv_capacity_tokens=100,
        block_tokens=4,
        kv_layout="a",
        max_num_seqs=4,
        max_num_batched_tokens=16,
        link=LinkParameters(0.001, 1e6),
        connector=ConnectorFlags(first_token_from_prefill=True),
    )
    return replace(spec, **fields)


KINDS: dict[str, dict[str, Any]] = {
    "continuous": {},
    "async": {"async_scheduling": True},
    "bucketed": {"scheduler": SchedulerKind.BUCKETED, "prompt_buckets": (4, 8, 16), "batch_buckets": (2, 4)},
    "slots": {"scheduler": SchedulerKind.SLOTS},
    "single": {"scheduler": SchedulerKind.SINGLE, "max_num_seqs": 1},
    "two models": {"models": ("m", "n"), "load_s": 0.2},
}
"""Backends of every way to form steps."""

WATTS = PowerParameters(
    idle_w=10, joule_per_byte=1e-6, joule_per_flop=1e-9, cap_w=1e9, weight_bytes=1e5, flop_per_token=1e6
)


def prefill(key: int, prompt: int = 8, output: int = 4, **fields: Any) -> RunPrefill:
    """A prefill that goes on to decode, unless told otherwise."""
    command = RunPrefill(
        key=key,
        request_id=f"r{key}",
        epoch=1,
        prompt_tokens=prompt,
        prefix_hashes=(),
        output_tokens=output,
        length_capped=False,
        decode_here=True,
        fingerprint=1000 + key,
    )
    return replace(command, **fields)


def decode(key: int, kv: KVHandle, output: int = 4, **fields: Any) -> RunDecode:
    """A decode whose first token the prefill produced."""
    command = RunDecode(
        key=key,
        request_id=kv.request_id,
        epoch=kv.epoch,
        kv=kv,
        prompt_tokens=kv.tokens,
        output_tokens=output,
        length_capped=False,
        first_index=1,
    )
    return replace(command, **fields)


def foreign(tokens: int = 8, **fields: Any) -> KVHandle:
    """A handle of some other worker."""
    handle = KVHandle("p", "boot-p", "r1", 1, "a", tokens, 77, 30.0, "host:1", b"1")
    return replace(handle, **fields)


def engine(spec: BackendSpec, *, emit_tokens: bool = True, seed: int = 0) -> BatchEngine:
    """An engine that boots at 0."""
    return BatchEngine(spec, Random(seed), 0.0, emit_tokens=emit_tokens)


def worker(spec: BackendSpec, *, emit_tokens: bool = True, seed: int = 0, **fields: Any) -> WorkerMachine:
    """A worker that boots at 0."""
    return WorkerMachine(spec, f"boot-{spec.id}", Random(seed), 0.0, emit_tokens=emit_tokens, **fields)


def run(machine: BatchEngine | WorkerMachine, commands: Iterable[tuple[Seconds, Any]] = ()) -> list[Any]:
    """Give commands at their times, wake the machine exactly at its deadlines, until it is idle."""
    events: list[Any] = []
    for at, command in commands:
        events += until(machine, at)
        events += machine.handle(command, at)
    while (due := machine.deadline()) is not None:
        events += machine.advance(due)
    return events


def until(machine: BatchEngine | WorkerMachine, limit: Seconds) -> list[Any]:
    """Wake the machine at its deadlines up to `limit`."""
    events: list[Any] = []
    while (due := machine.deadline()) is not None and due <= limit:
        events += machine.advance(due)
    return events


def of(events: Sequence[Any], kind: type[Event]) -> list[Event]:
    """Events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def tokens_of(events: Sequence[Any], key: int) -> list[tuple[Seconds, int]]:
    """Times and indices of one key's tokens, in order."""
    return [
        (step.at, index)
        for step in of(events, StepTokens)
        for one, index in zip(step.keys, step.indices, strict=True)
        if one == key
    ]
