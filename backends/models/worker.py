"""WorkerMachine: everything a worker does, without I/O. The mock worker is this machine behind gRPC.

It is a batch engine, the links that its transfers share, and the KV it holds for peers. A driver hands it
commands, wakes it at its deadline, and carries its events out (docs/guides/write-a-backend.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import assert_never

from backends.models.custody import FINGERPRINT_MASK, Custody, Held, connector_of
from backends.models.engine import BatchEngine, EngineEvent
from backends.models.intake import Intake
from backends.models.link import CancelTransfer, KVLink, StartTransfer, TransferDone, exposed_bytes
from backends.models.messages import (
    AbortServe,
    Failed,
    FailReason,
    KVArrived,
    KVPullFailed,
    KVRefused,
    KVServed,
    KVTaken,
    PrefillFinished,
    PullKV,
    Release,
    RunDecode,
    RunPrefill,
    ServeKV,
    Stop,
    WorkerCommand,
    WorkerEvent,
)
from router.model import BackendSnapshot, BackendSpec, KVHandle, Seconds

Events = list[WorkerEvent]
LEASE_S = 30.0
"""How long KV waits for its consumer; several times the slowest transfer that is worth making."""


class WorkerMachine:
    """One worker from boot to end."""

    def __init__(
        self,
        spec: BackendSpec,
        incarnation: str,
        rng: Random,
        now: Seconds,
        *,
        lease_s: Seconds = LEASE_S,
        source: str = "",
        emit_tokens: bool = True,
    ) -> None:
        """Boot at `now`. `source` is the address minted into handles. Raise ConfigError for a wrong spec."""
        self.spec = spec
        self.incarnation = incarnation
        self._lease_s = lease_s
        self._source = source
        self._engine = BatchEngine(spec, rng, now, emit_tokens=emit_tokens)
        self._link = KVLink(spec.link)
        self._intake = Intake(spec)
        self._custody = Custody(spec.id, incarnation)
        self._handing_over: dict[int, RunPrefill] = {}
        """Prefills whose KV a peer will pull."""
        self._pulling: dict[int, KVHandle] = {}
        """Decodes that wait for KV which the driver is fetching."""

    # --- the machine -------------------------------------------------------------------------------

    def handle(self, message: WorkerCommand, now: Seconds) -> Sequence[WorkerEvent]:
        """Take a command; what happened by `now` comes first."""
        events: Events = list(self.advance(now))
        match message:
            case RunPrefill() | RunDecode():
                self._run(message, now, events)
            case Stop(key=key):
                self._stop(key, now, events)
            case Release(kv=kv):
                self._release(kv, now, events)
            case ServeKV():
                self._serve(message, now, events)
            case AbortServe(pull=pull):
                self._abort(pull, now, events)
            case KVArrived():
                self._take(message, now, events)
            case KVPullFailed(key=key, reason=reason, message=text):
                self._pull_failed(key, reason, text, now, events)
            case _:
                assert_never(message)
        return events

    def advance(self, now: Seconds) -> Sequence[WorkerEvent]:
        """Everything that the models have happen by `now`, each at its own time."""
        events: Events = []
        while (due := self.deadline()) is not None and due <= now:
            self._translate(self._engine.advance(due), due, events)
            if self._pulling or self._custody.held:
                self._advance_kv(due, events)
        return events

    def deadline(self) -> Seconds | None:
        """The next end of a step, transfer or lease."""
        due = self._engine.deadline()
        if not self._pulling and not self._custody.held:
            return due  # no KV comes or goes, so there is neither transfer nor lease
        for other in (self._link.deadline(), self._intake.deadline(), self._custody.next_expiry()):
            if other is not None and (due is None or other < due):
                due = other
        return due

    def snapshot(self, now: Seconds) -> BackendSnapshot:
        """The worker's account of itself, held KV included."""
        return self._engine.snapshot(now)

    def take_kv_changes(self) -> tuple[list[int], list[int]]:
        """Blocks of the prefix cache stored and evicted since the last call; at the first, all there are.

        Hashes are those of the commands where the worker serves one model; those of further models are marked
        (sequence.py) and mean nothing outside. A block that came and went between two calls is among the
        evicted.
        """
        return self._engine.take_kv_changes()

    # --- running -----------------------------------------------------------------------------------

    def _run(self, command: RunPrefill | RunDecode, now: Seconds, events: Events) -> None:
        if command.key in self._engine:
            # Both uses end: which of them the driver means cannot be told.
            self._stop(command.key, now, events)
            reason = f"key {command.key} is in use; a key names one sequence"
            events.append(Failed(command.key, FailReason.INVALID, reason))
            return
        if isinstance(command, RunPrefill):
            if not command.decode_here:
                self._handing_over[command.key] = command
        elif not self._accepts(command.kv):
            events.append(Failed(command.key, FailReason.KV_LAYOUT, self._layout_text(command.kv)))
            return
        self._translate(self._engine.handle(command, now), now, events)

    def _accepts(self, kv: KVHandle) -> bool:
        return kv.layout == self.spec.kv_layout or kv.layout in self.spec.kv_accepts

    def _layout_text(self, kv: KVHandle) -> str:
        accepted = ", ".join((self.spec.kv_layout, *self.spec.kv_accepts))
        return f"{self.spec.id} cannot take over KV of layout {kv.layout!r}; it takes {accepted}"

    def _stop(self, key: int, now: Seconds, events: Events) -> None:
        self._handing_over.pop(key, None)
        self._forget_pull(key, now)
        if (held := self._custody.of_key(key)) is not None:
            self._drop(held, "its prefill was stopped", now, events)
        else:
            self._free(key, now, events)

    def _free(self, key: int, now: Seconds, events: Events) -> None:
        self._translate(self._engine.handle(Stop(key), now), now, events)

    def _translate(self, produced: Iterable[EngineEvent], now: Seconds, events: Events) -> None:
        """What the engine reports, as the worker reports it."""
        for event in produced:
            match event:
                case PrefillFinished(key=key) if key in self._handing_over:
                    events.append(self._mint(event, self._handing_over.pop(key), now))
                case PullKV(key=key, kv=kv):
                    self._pulling[key] = kv
                    self._intake.expect(key, kv, now)
                    events.append(event)
                case Failed(key=key):
                    self._handing_over.pop(key, None)
                    events.append(event)
                case _:
                    events.append(event)

    def _mint(self, event: PrefillFinished, command: RunPrefill, now: Seconds) -> PrefillFinished:
        fingerprint = command.fingerprint & FINGERPRINT_MASK
        handle = KVHandle(
            producer=self.spec.id,
            incarnation=self.incarnation,
            request_id=command.request_id,
            epoch=command.epoch,
            layout=self.spec.kv_layout,
            tokens=command.prompt_tokens,
            prefix_hash=fingerprint,
            expires_at=now + self._lease_s,
            source=self._source,
            connector=connector_of(command.key),
        )
        self._custody.hold(Held(command.key, handle, fingerprint, event.cost.device_s))
        return PrefillFinished(event.key, event.cost, event.cached_tokens, handle)

    def _advance_kv(self, due: Seconds, events: Events) -> None:
        for done in self._link.advance(due):
            self._served(done, due, events)
        for arrived in self._intake.advance(due):
            self._admit(arrived, due, events)
        for held in self._custody.expired(due):
            self._free(held.key, due, events)

    # --- KV that comes in --------------------------------------------------------------------------

    def _take(self, arrived: KVArrived, now: Seconds, events: Events) -> None:
        kv = self._pulling.get(arrived.key)
        if kv is None:
            return  # stopped while the KV was on its way
        if arrived.fingerprint & FINGERPRINT_MASK != kv.prefix_hash:
            reason = f"the KV that came for request {kv.request_id} is not the one its handle names"
            self._forget_pull(arrived.key, now)
            self._fail(arrived.key, FailReason.KV_STALE, reason, now, events)
            return
        self._intake.arrive(arrived, now)
        for usable in self._intake.advance(now):
            self._admit(usable, now, events)

    def _admit(self, arrived: KVArrived, now: Seconds, events: Events) -> None:
        """KV that can be used: its decode may run."""
        del self._pulling[arrived.key]
        events.append(KVTaken(arrived.key, arrived.moved_bytes, arrived.transfer_s))
        self._translate(self._engine.handle(arrived, now), now, events)

    def _pull_failed(self, key: int, reason: FailReason, text: str, now: Seconds, events: Events) -> None:
        if self._forget_pull(key, now):
            self._fail(key, reason, text, now, events)

    def _forget_pull(self, key: int, now: Seconds) -> bool:
        """Wait for KV no longer; False if nobody did."""
        self._intake.drop(key, now)
        return self._pulling.pop(key, None) is not None

    def _fail(self, key: int, reason: FailReason, text: str, now: Seconds, events: Events) -> None:
        events.append(Failed(key, reason, text))
        self._free(key, now, events)

    # --- KV that goes out --------------------------------------------------------------------------

    def _serve(self, command: ServeKV, now: Seconds, events: Events) -> None:
        if self._custody.of_pull(command.pull) is not None:
            raise ValueError(f"pull {command.pull} is under way; a pull's number may not be used twice")
        held = self._custody.claim(command.kv, command.pull)
        if isinstance(held, str):
            events.append(KVRefused(command.pull, FailReason.KV_STALE, held))
            return
        moved_bytes = round(held.handle.tokens * self.spec.kv_bytes_per_token)
        left_bytes = exposed_bytes(moved_bytes, held.prefill_s, self.spec.link)
        for done in self._link.handle(StartTransfer(command.pull, left_bytes), now):
            self._served(done, now, events)

    def _served(self, done: TransferDone, now: Seconds, events: Events) -> None:
        held = self._custody.of_pull(done.transfer)
        assert held is not None, "a transfer that was not cancelled has its KV"
        self._custody.drop(held)
        moved_bytes = round(held.handle.tokens * self.spec.kv_bytes_per_token)
        events.append(KVServed(done.transfer, moved_bytes, done.took_s, held.fingerprint))
        self._free(held.key, now, events)

    def _abort(self, pull: int, now: Seconds, events: Events) -> None:
        if (held := self._custody.of_pull(pull)) is not None:
            self._link.handle(CancelTransfer(pull), now)
            self._custody.drop(held)
            self._free(held.key, now, events)

    def _release(self, kv: KVHandle, now: Seconds, events: Events) -> None:
        held = self._custody.find(kv)
        if isinstance(held, Held):
            self._drop(held, "it was released", now, events)

    def _drop(self, held: Held, why: str, now: Seconds, events: Events) -> None:
        """Free held KV; a pull of it ends without."""
        if held.pull is not None:
            self._link.handle(CancelTransfer(held.pull), now)
            text = f"the KV of request {held.handle.request_id} is gone: {why}"
            events.append(KVRefused(held.pull, FailReason.KV_STALE, text))
        self._custody.drop(held)
        self._free(held.key, now, events)
