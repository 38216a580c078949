"""One phase of a request at an engine: what the adapter that carries it out may ask, and must say.

An adapter says what happened (`prefilled`, `begin`, `take`, `finish`); a leg turns it into facts and tokens,
keeps their order, and accounts for the time. It does no I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from polyphase.v1 import inference_pb2

from backends.engines.dialect import Tokens
from backends.engines.failures import broken
from backends.engines.meter import ShareMeter
from router.core.messages import DecodeDone, Fact, KVMoved, PrefillDone
from router.live.flow import Flow
from router.model import FinishReason, KVHandle, Phase, PhaseCost, Seconds, Usage


class StopAskedError(Exception):
    """The leg was to be stopped while it could not be; it ends now."""


class Leg:
    """A phase at work. Made and ended by EngineWork; an adapter uses it from the leg's own task."""

    def __init__(
        self,
        flow: Flow,
        epoch: int,
        phase: Phase,
        meter: ShareMeter,
        tell: Callable[[Fact], None],
        now: Callable[[], Seconds],
        *,
        decode_here: bool = False,
        kv: KVHandle | None = None,
    ) -> None:
        self.flow = flow
        self.epoch = epoch
        self.phase = phase
        """PREFILL until `begin`, also where decode goes on at the same engine."""
        self.decode_here = decode_here
        """For a prefill: the request stays. Without it, the KV is to be handed over."""
        self.kv = kv
        """For a decode: what to take over."""
        self.ended = False
        """A last word was said; nothing more may be."""
        self.task: asyncio.Task[None] | None = None
        self.now = now
        """The loop's time."""
        self._tell = tell
        self._meter = meter
        self._reading = meter.enter(phase, now())
        self._open = True
        self._begun = False
        self._patience_s: Seconds | None = None
        self._stop_asked = False

    # --- what is wanted ---

    @property
    def id(self) -> str:
        """The request's id."""
        return self.flow.id

    @property
    def payload(self) -> inference_pb2.GenerateRequest:
        """What the client wants."""
        return self.flow.payload

    @property
    def current(self) -> bool:
        """Whether anybody still waits for what this leg produces."""
        return self.flow.epoch == self.epoch

    # --- what happened ---

    def prefilled(self, kv: KVHandle) -> None:
        """The KV of the prompt is there, or will be when the other side comes for it, and is ours to give.

        The adapter may go on with the leg, as engines do whose prefill waits for its decode.
        """
        self._progress()
        cost = self._leave()
        self._tell(PrefillDone(self.flow.id, self.epoch, cost, kv=kv))

    def begin(self, cached_tokens: int = 0, moved_bytes: int = 0) -> None:
        """Decode has begun here; `take` says so by itself. For a decode: the KV was taken over."""
        if self._begun:
            return
        self._begun = True
        self._progress()
        if self.phase is Phase.PREFILL:
            cost = self._leave()
            self._reading, self._open, self.phase = (
                self._meter.enter(Phase.DECODE, self.now()),
                True,
                Phase.DECODE,
            )
            self._tell(PrefillDone(self.flow.id, self.epoch, cost, cached_tokens))
        else:
            self._tell(KVMoved(self.flow.id, self.epoch, moved_bytes))

    def take(self, text: str, ids: Sequence[int]) -> None:
        """Some of the answer, from decode: the ids of its tokens, or else text of one token or more."""
        self.begin()
        self.deliver(text, ids)

    def deliver(self, text: str, ids: Sequence[int]) -> None:
        """As `take`, from prefill: of engines whose first token comes with the KV.

        Text is delivered to those who sent text: the others have no use for it.
        """
        self._progress()
        flow, now = self.flow, self.now()
        wants_text = self.payload.WhichOneof("prompt") == "text"
        if ids and not (text and wants_text):
            flow.accept_run(self.epoch, flow.next_index, ids, now)
        elif ids or text:
            # What an engine held back for a stop string comes after the last token: it is none of its own.
            count = len(ids) or min(1, flow.max_new_tokens - flow.next_index)
            flow.accept_text(self.epoch, flow.next_index, text, ids, count, now)

    def finish(self, reason: FinishReason, tokens: Tokens | None = None) -> None:
        """The last token is out. `tokens` is the engine's count; without it, what was delivered counts."""
        if self.ended:
            raise broken("it ended an answer twice")
        self.begin()
        self._progress()
        self.ended = True
        cost, output, counted = self._leave(), self.flow.next_index, None
        if tokens is not None and tokens.output > 0:
            output, counted = tokens.output, Usage(tokens.prompt, tokens.cached, tokens.output)
        self._tell(DecodeDone(self.flow.id, self.epoch, cost, output, reason, counted=counted))

    # --- stopping ---

    def stop(self) -> None:
        """Nobody waits any more: cancel the leg's task, now or as soon as that does no harm."""
        if self.task is None or self.task.done():
            return
        if self._patience_s is None:
            self.task.cancel()
        elif not self._stop_asked:
            self.task.get_loop().call_later(self._patience_s, self.task.cancel)
        self._stop_asked = True

    def hold(self, patience_s: Seconds) -> None:
        """From here on an abort would harm the engine: a stop waits for `let_go`, but no longer than this."""
        self._patience_s = patience_s

    def let_go(self) -> None:
        """An abort does no harm any more. Raises StopAskedError when the leg was to be stopped meanwhile."""
        self._patience_s = None
        if self._stop_asked:
            raise StopAskedError

    def close(self) -> None:
        """The leg is over, whatever became of it: it takes no share of the engine's time any more."""
        self._leave()

    # --- time ---

    def _progress(self) -> None:
        self._meter.alive(self.now())

    def _leave(self) -> PhaseCost:
        if not self._open:
            return PhaseCost()
        self._open = False
        return PhaseCost(device_s=self._meter.leave(self.phase, self._reading, self.now()))
