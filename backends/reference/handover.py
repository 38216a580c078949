"""KV that leaves this worker and KV that comes to it: handles, leases, chunks.

Custody decides who may have what (backends/models/custody.py); here its decisions meet the pages. Everything
but reading and writing pages happens on the loop, so that a check and what follows from it are one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from backends.models.custody import FINGERPRINT_MASK, Custody, Held, connector_of
from backends.models.messages import FailReason, KVArrived, RunDecode, RunPrefill
from backends.models.shape import ModelShape
from backends.reference.device import Device
from backends.reference.kind import Kind
from backends.reference.runner import Runner
from backends.reference.sequence import Sequence
from backends.reference.transfer import Inflow, Manifest, runs
from backends.shell.wire import RefusedCommandError
from router.model import BackendSpec, KVHandle, Seconds

LEASE_S: Final[Seconds] = 30.0
"""How long KV waits for its consumer; as the mock's."""
MAX_WRITES: Final = 16
"""Chunks of one pull that wait to be written; more let the peer wait, so that memory stays bounded."""


class Outflow:
    """KV that is held for peers, and goes to them."""

    def __init__(
        self,
        spec: BackendSpec,
        incarnation: str,
        source: str,
        kind: Kind,
        runner: Runner,
        device: Device,
    ) -> None:
        self.custody = Custody(spec.id, incarnation)
        self._spec = spec
        self._incarnation = incarnation
        self._source = source
        self._kind = kind
        self._runner = runner
        self._device = device

    def mint(self, command: RunPrefill, now: Seconds) -> KVHandle:
        """Hold the KV of a prefill that is done."""
        handle = KVHandle(
            producer=self._spec.id,
            incarnation=self._incarnation,
            request_id=command.request_id,
            epoch=command.epoch,
            layout=self._spec.kv_layout,
            tokens=command.prompt_tokens,
            prefix_hash=command.fingerprint & FINGERPRINT_MASK,
            expires_at=now + LEASE_S,
            source=self._source,
            connector=connector_of(command.key),
        )
        self.custody.hold(Held(command.key, handle, handle.prefix_hash))
        return handle

    async def chunks(self, pull: int, held: Held, sequence: Sequence) -> AsyncGenerator[bytes, None]:
        """The KV of a claimed handle; ends early when it is no longer the pull's.

        One chunk is read ahead while the one before is on its way.
        """
        manifest = self._manifest(sequence)
        table = tuple(sequence.table)
        chunk = manifest.pack()
        for layer, start, end in runs(manifest):
            following = self._device.export(partial(self._runner.read, table, layer, start, end))
            yield chunk
            chunk = await following
            # Its pages may be another's by now, and what was read theirs.
            if self.custody.of_pull(pull) is not held:
                return
        yield chunk

    def _manifest(self, sequence: Sequence) -> Manifest:
        shape, prompt = self._kind.shape, len(sequence.job.prompt)
        return Manifest(
            self._kind.precision,
            shape.layers,
            shape.kv_heads,
            shape.head_dim,
            prompt,
            tuple(sequence.known[prompt:]),
        )


@dataclass(slots=True)
class _Pull:
    """One decode that waits for its KV."""

    command: RunDecode
    sequence: Sequence
    inflow: Inflow
    writes: deque[asyncio.Future[None]]


class Inflows:
    """KV that comes from peers, by the key of the decode that wants it."""

    def __init__(self, shape: ModelShape, runner: Runner, device: Device) -> None:
        self._shape = shape
        self._runner = runner
        self._device = device
        self._pulls: dict[int, _Pull] = {}

    def expect(self, command: RunDecode, sequence: Sequence) -> None:
        """KV will come for a decode."""
        inflow = Inflow(self._shape, command.kv.tokens)
        self._pulls[command.key] = _Pull(command, sequence, inflow, deque())

    def drop(self, key: int) -> bool:
        """Expect it no longer; False if nobody did."""
        return self._pulls.pop(key, None) is not None

    def handle_of(self, key: int) -> KVHandle:
        """Of a decode that waits."""
        return self._pulls[key].command.kv

    async def store(self, key: int, chunk: bytes, failed: Callable[[Exception], None]) -> None:
        """Have a chunk written to the decode's pages. Raises RefusedCommandError for one that is wrong.

        It is written before any step that begins later, or `failed` is told before such a step is over. Only
        a peer that is too fast waits here.
        """
        pull = self._pulls.get(key)
        if pull is None:
            raise RefusedCommandError("nobody waits for this KV any more", FailReason.KV_TRANSFER)
        cells = pull.inflow.take(chunk)
        if cells is None:
            return
        table = tuple(pull.sequence.table)
        write = self._device.compute(partial(self._runner.write, table, cells))
        pull.writes.append(write)
        write.add_done_callback(lambda done: _tell(done, failed))
        if len(pull.writes) >= MAX_WRITES:
            await pull.writes.popleft()

    def finish(self, arrived: KVArrived) -> Sequence | RefusedCommandError | None:
        """The pull of a key is over: its sequence is ready, or why it never is; None if nobody waits.

        What was handed to the device is written before the next step.
        """
        pull = self._pulls.pop(arrived.key, None)
        if pull is None:
            return None
        command, inflow = pull.command, pull.inflow
        if arrived.fingerprint & FINGERPRINT_MASK != command.kv.prefix_hash:
            text = f"the KV that came for request {command.request_id} is not the one its handle names"
            return RefusedCommandError(text, FailReason.KV_STALE)
        if not inflow.complete or inflow.manifest is None:
            return RefusedCommandError("the KV that came has a part missing", FailReason.KV_TRANSFER)
        return self._resumed(command, pull.sequence, inflow.manifest.chosen)

    def _resumed(
        self, command: RunDecode, sequence: Sequence, chosen: tuple[int, ...]
    ) -> Sequence | RefusedCommandError:
        tokens = chosen[: command.first_index]
        if len(tokens) < command.first_index or any(token >= self._shape.vocab for token in tokens):
            text = f"decode goes on from token {command.first_index}, and the KV brought {len(chosen)} tokens"
            return RefusedCommandError(text, FailReason.KV_TRANSFER)
        sequence.known.extend(tokens)
        # Without a token after the prompt, its last one is computed again to choose the first.
        sequence.computed = sequence.prefill_to = min(command.kv.tokens, len(sequence.known) - 1)
        sequence.conclude()
        return sequence


def _tell(done: asyncio.Future[None], failed: Callable[[Exception], None]) -> None:
    error = None if done.cancelled() else done.exception()
    if isinstance(error, Exception):
        failed(error)
