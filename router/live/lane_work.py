"""What runs on one lane: the table from sequence numbers to flows, and the reading of a worker's frames.

Every token of the fleet passes through `LaneWork.take`, so its loop does nothing but a lookup and a call.
It translates and checks; it does no I/O, never waits, and decides nothing: facts go to the core.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from polyphase.v1 import common_pb2, worker_pb2

from router import wire
from router.core.messages import (
    MAX_BLOCKS_A_FACT,
    BackendReported,
    DecodeDone,
    Fact,
    KVBlocksChanged,
    KVMoved,
    PhaseFailed,
    PrefillDone,
    StartDecode,
    StartPrefill,
    StopPhase,
)
from router.errors import BackendError, Reason
from router.grpc_options import MAX_MESSAGE_BYTES
from router.live.flow import Flow, TokenCounts
from router.live.legs import Leg, Legs, StallWatch
from router.model import KVHandle, Phase, Seconds

log = logging.getLogger(__name__)

REPORT_INTERVAL_S: Final[Seconds] = 0.05
"""At most one load report per lane becomes a fact in this time: a policy gains nothing from fresher ones."""
MAX_COMMAND_BYTES: Final = MAX_MESSAGE_BYTES - 4096
"""A larger command would be refused by the worker's message limit, which would take the whole lane down."""
_MAX_REMINDED: Final = 1024


class LaneHooks(Protocol):
    """Hears what the core is not told; metrics."""

    def stray_tokens(self, backend: str, fault: str, count: int = 1) -> None:
        """Tokens were dropped: "zombie" (nobody waits), "duplicate", or missed: "gap"."""
        ...

    def bad_report(self, backend: str) -> None:
        """A load report held a negative or non-finite number and was dropped."""
        ...


class NoHooks:
    """Hears nothing."""

    def stray_tokens(self, backend: str, fault: str, count: int = 1) -> None:
        """Ignored."""

    def bad_report(self, backend: str) -> None:
        """Ignored."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The worker at the other end of a lane, as it introduced itself."""

    backend: str
    incarnation: str
    address: str


class BrokenFrameError(Exception):
    """A frame that cannot be read as a whole; nothing of this worker can be trusted any more."""


class LaneWork:
    """The sequences of one connected lane. A lane that breaks drops it whole: `send` is the lane's outbox."""

    def __init__(
        self,
        peer: Peer,
        tell: Callable[[Fact], None],
        send: Callable[[bytes], None],
        patience_s: Seconds,
        hooks: LaneHooks,
        counts: TokenCounts,
    ) -> None:
        """`counts` are those of the flows: what they refuse in a frame here is this worker's fault."""
        self._peer = peer
        self._tell = tell
        self._send = send
        self._stalls = StallWatch(patience_s)
        self._hooks = hooks
        self._counts = counts
        self._legs = Legs()
        self._reminded: set[int] = set()
        self._next_report: Seconds = 0.0
        self._warned = False

    def __len__(self) -> int:
        """Phases at work on the lane."""
        return len(self._legs)

    # --- commands ---

    def start_prefill(self, action: StartPrefill, flow: Flow) -> None:
        """Send the prompt. Tokens that come back belong to the flow, in the action's epoch."""
        leg = self._legs.add(Leg(flow, action.epoch, Phase.PREFILL, action.decode_here))
        start = worker_pb2.StartPrefill(
            seq=leg.seq, epoch=action.epoch, request=flow.payload, decode_here=action.decode_here
        )
        self._start(leg, worker_pb2.Command(start_prefill=start))

    def start_decode(self, action: StartDecode, flow: Flow, now: Seconds) -> None:
        """Send the KV handle; the worker pulls the KV and goes on at the flow's next index."""
        leg = self._legs.add(Leg(flow, action.epoch, Phase.DECODE, decode_here=False))
        start = worker_pb2.StartDecode(
            seq=leg.seq,
            epoch=action.epoch,
            request=flow.payload,
            kv=wire.kv_handle_to_proto(action.kv, now),
            first_index=flow.next_index,
        )
        self._start(leg, worker_pb2.Command(start_decode=start))

    def stop_phase(self, action: StopPhase) -> None:
        """Stop an epoch here, if it is still at work."""
        if (leg := self._legs.find(action.request_id, action.epoch)) is not None:
            self._stop(leg)

    def release_kv(self, handle: KVHandle, now: Seconds) -> None:
        """Free KV that this worker holds and nobody will pull."""
        self._release(wire.kv_handle_to_proto(handle, now))

    def _start(self, leg: Leg, command: worker_pb2.Command) -> None:
        raw = _encode(command)
        if len(raw) <= MAX_COMMAND_BYTES:
            self._send(raw)
            return
        self._legs.remove(leg)
        text = f"the request takes {len(raw)} bytes on the wire; a worker accepts {MAX_COMMAND_BYTES}"
        self._fail(leg, Reason.REQUEST_TOO_LARGE, text, retryable=False)

    def _stop(self, leg: Leg) -> None:
        self._legs.remove(leg)
        self._remind(leg.seq)

    def _remind(self, seq: int) -> None:
        """Tell the worker to stop a sequence: once, and again when it still sends after the next sweep."""
        if len(self._reminded) < _MAX_REMINDED and seq not in self._reminded:
            self._reminded.add(seq)
            self._send(_encode(worker_pb2.Command(stop_phase=worker_pb2.StopPhase(seq=seq))))

    def _release(self, kv: common_pb2.KVHandle) -> None:
        self._send(_encode(worker_pb2.Command(release_kv=worker_pb2.ReleaseKV(kv=kv))))

    # --- frames ---

    def take(self, frame: worker_pb2.LaneResponse, now: Seconds) -> None:
        """Read one frame. Raises BrokenFrameError when its columns do not fit together."""
        events = frame.events
        # The KV is there before the first decoded token, but a frame has no order among tokens and events.
        closing = [event for event in events if not self._opens(event, now)] if events else ()
        if frame.seqs:
            self._take_tokens(frame.seqs, frame.tokens, frame.indices, now)
        for event in closing:
            self._take_event(event, now)
        if frame.HasField("load"):
            self._take_load(frame.load, now)
        if frame.HasField("kv_blocks"):
            self._take_blocks(frame.kv_blocks)

    def _take_blocks(self, blocks: worker_pb2.KVBlocks) -> None:
        if max(len(blocks.stored), len(blocks.removed)) > MAX_BLOCKS_A_FACT:
            raise BrokenFrameError(f"a frame has more than {MAX_BLOCKS_A_FACT} stored or removed KV blocks")
        backend, boot = self._peer.backend, self._peer.incarnation
        stored, removed = tuple(blocks.stored), tuple(blocks.removed)
        self._tell(KVBlocksChanged(backend, boot, stored, removed, blocks.cleared))

    def _take_tokens(
        self, seqs: Sequence[int], tokens: Sequence[int], indices: Sequence[int], now: Seconds
    ) -> None:
        if not len(seqs) == len(tokens) == len(indices):
            raise BrokenFrameError("the token columns of a frame differ in length")
        leg_of = self._legs.by_seq.get
        duplicates, gaps, zombies = self._counts.duplicated, self._counts.skipped, 0
        for seq, token, index in zip(seqs, tokens, indices, strict=True):
            leg = leg_of(seq)
            if leg is not None:
                leg.accept(leg.epoch, index, token, now)
            else:
                zombies += 1
                self._remind(seq)
        self._note_strays("zombie", zombies)
        self._note_strays("duplicate", self._counts.duplicated - duplicates)
        self._note_strays("gap", self._counts.skipped - gaps)

    def _note_strays(self, fault: str, count: int) -> None:
        if count:
            self._hooks.stray_tokens(self._peer.backend, fault, count)

    def _opens(self, event: worker_pb2.PhaseEvent, now: Seconds) -> bool:
        """Take an event that comes before the tokens of its frame; False for one that comes after them."""
        kind = event.WhichOneof("event")
        if kind == "kv_moved" or (kind == "prefill_done" and not event.prefill_done.HasField("kv")):
            self._take_event(event, now)
            return True
        return False

    def _take_event(self, event: worker_pb2.PhaseEvent, now: Seconds) -> None:
        leg = self._legs.by_seq.get(event.seq)
        if leg is None or not leg.current:
            self._bury(event, leg)
            return
        try:
            self._read_event(leg, event, now)
        except BackendError as error:
            self._break(leg, error.message)

    def _read_event(self, leg: Leg, event: worker_pb2.PhaseEvent, now: Seconds) -> None:
        match event.WhichOneof("event"):
            case "prefill_done":
                self._prefill_done(leg, event.prefill_done, now)
            case "kv_moved":
                self._kv_moved(leg, event.kv_moved, now)
            case "decode_done":
                self._decode_done(leg, event.decode_done)
            case "failed":
                self._legs.remove(leg)
                reason, text = wire.failure_from_proto(event.failed)
                retryable = event.failed.reason != worker_pb2.PhaseFailed.REASON_INVALID
                self._fail(leg, reason, text, retryable)
            case _:
                self._break(leg, "it sent an event without content")

    def _prefill_done(self, leg: Leg, done: worker_pb2.PrefillDone, now: Seconds) -> None:
        cost = wire.cost_from_proto(done.cost)
        has_kv = done.HasField("kv")
        if leg.phase is not Phase.PREFILL or has_kv == leg.decode_here:
            self._break(leg, "its PrefillDone does not fit the command")
            return
        kv = self._own_handle(leg, done.kv, now) if has_kv else None
        leg.flow.last_progress = now
        if has_kv:
            self._legs.remove(leg)
        else:
            leg.phase = Phase.DECODE
        self._tell(PrefillDone(leg.flow.id, leg.epoch, cost, done.cached_tokens, kv))

    def _own_handle(self, leg: Leg, proto: common_pb2.KVHandle, now: Seconds) -> KVHandle:
        """The handle of this leg's KV. A foreign one would hand another request's cache over: refuse it."""
        if not proto.source:
            proto.source = self._peer.address
        kv = wire.kv_handle_from_proto(proto, now)
        if (kv.request_id, kv.epoch) != (leg.flow.id, leg.epoch):
            raise _broken(f"its KV handle is of request {kv.request_id[:64]!r}, epoch {kv.epoch}")
        if (kv.producer, kv.incarnation) != (self._peer.backend, self._peer.incarnation):
            raise _broken(
                f"its KV handle names {kv.producer[:64]!r}, boot {kv.incarnation[:64]!r}, as producer"
            )
        return kv

    def _kv_moved(self, leg: Leg, moved: worker_pb2.KVMoved, now: Seconds) -> None:
        if leg.moved or leg.phase is not Phase.DECODE:
            self._break(leg, "it reported a KV move that was not asked for")
            return
        if not 0.0 <= moved.transfer_s < float("inf"):
            raise _broken(f"transfer_s is {moved.transfer_s}")
        leg.moved = True
        leg.flow.last_progress = now
        self._tell(KVMoved(leg.flow.id, leg.epoch, moved.bytes, moved.transfer_s))

    def _decode_done(self, leg: Leg, done: worker_pb2.DecodeDone) -> None:
        got = leg.flow.next_index
        cost, reason = wire.cost_from_proto(done.cost), wire.finish_from_proto(done.reason)
        if leg.phase is not Phase.DECODE or not leg.moved:
            self._break(leg, "it ended a decode that had not begun")
        elif done.output_tokens != got:
            self._break(leg, f"it ended after {done.output_tokens} tokens, of which {got} came")
        else:
            self._legs.remove(leg)
            self._tell(DecodeDone(leg.flow.id, leg.epoch, cost, got, reason))

    def _bury(self, event: worker_pb2.PhaseEvent, leg: Leg | None) -> None:
        """An event of work that was given up: its KV must not wait for its lease to run out."""
        kind = event.WhichOneof("event")
        if kind == "prefill_done" and event.prefill_done.HasField("kv"):
            self._release(event.prefill_done.kv)
        if leg is not None and kind in ("decode_done", "failed"):
            self._legs.remove(leg)

    def _take_load(self, load: common_pb2.LoadReport, now: Seconds) -> None:
        if now < self._next_report:
            return
        try:
            snapshot = wire.load_from_proto(load, now)
        except BackendError as error:
            self._refuse_load(error)
            return
        self._next_report = now + REPORT_INTERVAL_S
        self._stalls.reported(snapshot)
        self._tell(BackendReported(self._peer.backend, snapshot))

    def _refuse_load(self, error: BackendError) -> None:
        """Dropped, counted, and logged once per connection: such a worker reports twenty times a second."""
        self._hooks.bad_report(self._peer.backend)
        if not self._warned:
            self._warned = True
            log.warning("load reports of %s are dropped: %s", self._peer.backend, error.message)

    # --- failures ---

    def _break(self, leg: Leg, what: str) -> None:
        self._stop(leg)
        self._fail(leg, Reason.BACKEND_BROKE_CONTRACT, f"{self._peer.backend} broke the protocol: {what}")

    def _fail(self, leg: Leg, reason: Reason, text: str, retryable: bool = True) -> None:
        if reason is Reason.BACKEND_BROKE_CONTRACT:
            log.error("request %s: %s", leg.flow.id, text)
        self._tell(
            PhaseFailed(leg.flow.id, leg.epoch, leg.phase, self._peer.backend, reason, text, retryable)
        )

    def sweep(self, now: Seconds) -> None:
        """Once a second: fail decodes without progress, and stop work that nobody listens to."""
        self._reminded.clear()
        for leg in self._legs:
            if not leg.current:
                self._stop(leg)
            elif leg.decodes and self._stalls.has_stalled(leg, now):
                self._give_up(leg, now)

    def _give_up(self, leg: Leg, now: Seconds) -> None:
        self._stop(leg)
        silent_s = now - leg.flow.last_progress
        text = f"{self._peer.backend} sent no token for {silent_s:.1f} s; its work was stopped"
        self._fail(leg, Reason.BACKEND_STALLED, text)


def _encode(command: worker_pb2.Command) -> bytes:
    """One command as a LaneRequest. Such requests can be joined byte by byte: protobuf merges them."""
    return worker_pb2.LaneRequest(commands=(command,)).SerializeToString()


def _broken(what: str) -> BackendError:
    return BackendError(Reason.BACKEND_BROKE_CONTRACT, what)
