"""One lane as its router has it: sends commands, follows every sequence, keeps the last load report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from polyphase.v1 import common_pb2, worker_pb2

from backends.conformance.channels import connected
from backends.conformance.journal import Journal, Rule
from backends.conformance.patience import within
from backends.conformance.sequence import OPENING, Kind, Sequence
from backends.conformance.verdicts import Target, ViolationError, expect
from backends.shell.status import reason_of
from router.model import Seconds

METHOD: Final = "/polyphase.v1.WorkerService/Lane"
T = TypeVar("T")


class Lane:
    """A stream to one worker. Belongs to the loop it was made in; `open_lane` makes and ends it."""

    def __init__(self, call: Any, target: Target, journal: Journal, patience_s: Seconds) -> None:
        self.target = target
        self.welcome: worker_pb2.Welcome | None = None
        self.sequences: dict[int, Sequence] = {}
        self.last: common_pb2.LoadReport | None = None
        self.reports = 0
        """Load reports so far."""
        self.ended = False
        self.error: grpc.aio.AioRpcError | None = None
        self._call = call
        self._journal = journal
        self._patience_s = patience_s
        self._changed = asyncio.Event()
        self._writing = asyncio.Lock()

    # --- what a router does ---

    async def send(self, *commands: worker_pb2.Command) -> None:
        """Send commands in one message, and follow what they start."""
        for command in commands:
            self._follow(command)
        await self.send_raw(worker_pb2.LaneRequest(commands=commands).SerializeToString())

    async def send_raw(self, message: bytes) -> None:
        """Send whatever it is. A lane that ended takes it silently: its end shows where it matters."""
        try:
            async with self._writing, asyncio.timeout(self._patience_s):
                await self._call.write(message)
        except TimeoutError:
            raise ViolationError(f"{self.target} took no message for {self._patience_s:g} s") from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return

    async def half_close(self) -> None:
        """Say that nothing more will come."""
        await self._call.done_writing()

    async def read(self) -> None:
        """Take frames until the lane ends."""
        try:
            async for raw in self._call:
                self._take(worker_pb2.LaneResponse.FromString(raw))
                self._changed.set()
        except grpc.aio.AioRpcError as error:
            self.error = error
        except DecodeError:
            self._journal.note(Rule.COLUMNS, False, "a frame cannot be parsed")
        self.ended = True
        self._changed.set()

    @property
    def kv_used(self) -> int:
        """KV tokens in use, by the last report."""
        return 0 if self.last is None else self.last.kv_used_tokens

    @property
    def work(self) -> int:
        """Sequences that run or wait, by the last report."""
        return 0 if self.last is None else self.last.running + self.last.waiting

    @property
    def progress(self) -> tuple[int, float]:
        """What changes while work gets on."""
        load = self.last or common_pb2.LoadReport()
        return load.running + load.waiting, load.busy_prefill_s + load.busy_decode_s

    @property
    def code(self) -> str:
        """The status with which the worker ended the lane; empty while it has not."""
        if self.error is None:
            return "OK" if self.ended else ""
        return str(self.error.code().name)

    @property
    def end(self) -> str:
        """How the lane ended, in words."""
        if self.error is None:
            return self.code or "no end"
        reason = reason_of(self.error)
        return f"{self.code}{' ' if reason else ''}{reason} ({self.error.details()})"

    # --- waiting ---

    async def until(self, holds: Callable[[], T | None], what: str) -> T:
        """Wait until something holds of what came, and give it back. Raises ViolationError when the lane ends
        or time runs out before."""
        try:
            return await within(self._found(holds, what), self._patience_s)
        except TimeoutError:
            message = f"{self.target}: {what} did not come within {self._patience_s:g} s"
            raise ViolationError(message) from None

    async def _found(self, holds: Callable[[], T | None], what: str) -> T:
        while not (found := holds()):
            expect(not self.ended, f"the lane to {self.target} ended with {self.end}, without {what}")
            self._changed.clear()
            await self._changed.wait()
        return found

    async def until_end(self) -> None:
        """Wait until the worker has ended the lane."""
        await self.until(lambda: self.ended, "its end")

    async def until_reports(self, count: int) -> None:
        """Wait for so many further load reports."""
        wanted = self.reports + count
        await self.until(lambda: self.reports >= wanted, f"{count} load reports")

    async def prefill_done(self, seq: int) -> worker_pb2.PrefillDone:
        """Of a sequence that must not fail."""
        return await self._of(seq, lambda one: one.prefill_done, "prefill_done")

    async def kv_moved(self, seq: int) -> worker_pb2.KVMoved:
        """Of a sequence that must not fail."""
        return await self._of(seq, lambda one: one.kv_moved, "kv_moved")

    async def decode_done(self, seq: int) -> worker_pb2.DecodeDone:
        """Of a sequence that must not fail."""
        return await self._of(seq, lambda one: one.decode_done, "decode_done")

    async def tokens(self, seq: int, count: int) -> None:
        """Wait until a sequence that must not fail has so many tokens."""
        await self._of(seq, lambda one: len(one.tokens) >= count or None, f"token {count}")

    async def failed(self, seq: int) -> worker_pb2.PhaseFailed:
        """Of a sequence that must fail."""
        one = self.sequences[seq]
        await self.until(lambda: one.ended, f"the failure of {one.name}")
        expect(one.failed is not None, f"{self.target} ran {one.name}, which must fail")
        assert one.failed is not None
        return one.failed

    async def _of(self, seq: int, find: Callable[[Sequence], T | None], what: str) -> T:
        one = self.sequences[seq]

        def found() -> T | None:
            if (got := find(one)) is None and one.failed is not None:
                raise ViolationError(f"{self.target} failed {one.name}: {described(one.failed)}")
            return got

        return await self.until(found, f"{what} of {one.name}")

    # --- following ---

    def _follow(self, command: worker_pb2.Command) -> None:
        match command.WhichOneof("command"):
            case "start_prefill":
                kind = Kind.HERE if command.start_prefill.decode_here else Kind.PREFILL
                self._begin(command.start_prefill, kind, 0)
            case "start_decode":
                self._begin(command.start_decode, Kind.DECODE, command.start_decode.first_index)
            case "stop_phase" if command.stop_phase.seq in self.sequences:
                self.sequences[command.stop_phase.seq].stopped = True
            case _:
                pass

    def _begin(
        self, start: worker_pb2.StartPrefill | worker_pb2.StartDecode, kind: Kind, first_index: int
    ) -> None:
        first = self.welcome is not None and self.welcome.spec.connector.first_token_from_prefill
        name = f"{kind} {start.request.request_id} (seq {start.seq})"
        self.sequences[start.seq] = Sequence(name, kind, first_index, first, self._journal)

    def _take(self, frame: worker_pb2.LaneResponse) -> None:
        if frame.HasField("welcome"):
            self.welcome = self.welcome or frame.welcome
        closing = [event for event in frame.events if not self._opens(event)]
        self._take_tokens(frame)
        for event in closing:
            self._event(event)
        if frame.HasField("load"):
            self._journal.load(self.last, frame.load)
            self.last = frame.load
            self.reports += 1

    def _opens(self, event: worker_pb2.PhaseEvent) -> bool:
        """Take an event that comes before the tokens of its frame."""
        kind = event.WhichOneof("event")
        if kind not in OPENING or (kind == "prefill_done" and event.prefill_done.HasField("kv")):
            return False
        self._event(event)
        return True

    def _take_tokens(self, frame: worker_pb2.LaneResponse) -> None:
        lengths = len(frame.seqs), len(frame.tokens), len(frame.indices)
        self._journal.note(Rule.COLUMNS, len(set(lengths)) == 1, f"columns of {lengths} entries")
        for seq, token, index in zip(frame.seqs, frame.tokens, frame.indices, strict=False):
            if (one := self._known(seq)) is not None:
                one.token(index, token)

    def _event(self, event: worker_pb2.PhaseEvent) -> None:
        if (one := self._known(event.seq)) is not None:
            one.event(event)

    def _known(self, seq: int) -> Sequence | None:
        one = self.sequences.get(seq)
        self._journal.note(Rule.COLUMNS, one is not None, f"seq {seq} was never started on this lane")
        return one


@asynccontextmanager
async def open_lane(
    target: Target,
    journal: Journal,
    patience_s: Seconds,
    router: str = "conformance",
    first: bytes | None = None,
) -> AsyncIterator[Lane]:
    """A lane that was greeted, or has ended. Ends it, as a router does that dies, when left.

    `first` goes out in the place of the hello.
    """
    async with connected(target.address) as channel:
        call = channel.stream_stream(METHOD)()
        lane = Lane(call, target, journal, patience_s)
        reader = asyncio.create_task(lane.read())
        try:
            hello = worker_pb2.Hello(backend=target.backend, router=router)
            greeting = worker_pb2.LaneRequest(hello=hello).SerializeToString()
            await lane.send_raw(greeting if first is None else first)
            await lane.until(lambda: lane.welcome is not None or lane.ended, "its welcome")
            yield lane
        finally:
            # A call that is dropped without cancel() is never cancelled: the worker would go on for ever.
            call.cancel()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


def described(failure: worker_pb2.PhaseFailed) -> str:
    """A failure in words."""
    return f"{reason_name(failure)} ({failure.message})"


def reason_name(failure: worker_pb2.PhaseFailed) -> str:
    """The reason without its prefix, as in KV_STALE; a number that is none of them in digits."""
    known = worker_pb2.PhaseFailed.Reason.DESCRIPTOR.values_by_number.get(failure.reason)
    return str(failure.reason) if known is None else str(known.name).removeprefix("REASON_")
