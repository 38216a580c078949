"""Requests that stay at one engine: prefill and decode in one streamed call."""

from __future__ import annotations

from hashlib import blake2b

from backends.engines.dialect import Delta, Dialect, Tokens
from backends.engines.failures import PhaseError, broken
from backends.engines.http import HttpEngine
from backends.engines.leg import Leg
from router.errors import Reason
from router.model import FinishReason, KVHandle


class Answer:
    """Feeds the events of one answer to its leg."""

    def __init__(self, leg: Leg, dialect: Dialect) -> None:
        self.leg = leg
        self._dialect = dialect
        self._finish: FinishReason | None = None
        self._tokens: Tokens | None = None

    def take(self, data: str) -> bool:
        """One event; whether it was the last."""
        delta = self._dialect.delta(data)
        self.note(delta)
        if delta.text or delta.ids:
            self.leg.take(delta.text, delta.ids)
        if delta.is_last:
            self.end()
        return delta.is_last

    def end(self) -> None:
        """The stream is over, and with it the answer. Raises PhaseError when it was cut off."""
        if self.leg.ended:
            return
        if self._finish is None:
            raise PhaseError(Reason.BACKEND_LOST, "the engine's answer broke off", suspect=True)
        self.leg.finish(self._finish, self._tokens)

    def note(self, delta: Delta) -> None:
        """Keep what the end will need; called for every event before its tokens are taken."""
        if delta.finish is not None:
            self._finish = delta.finish
        elif self._finish is not None and (delta.text or delta.ids):
            raise broken("it went on after its end")
        self._tokens = delta.tokens or self._tokens


class FusedEngine:
    """An engine that keeps every request from the first token to the last. Satisfies ports.Engine."""

    def __init__(self, http: HttpEngine, dialect: Dialect, health_path: str) -> None:
        self._http = http
        self._dialect = dialect
        self._health_path = health_path

    async def probe(self) -> None:
        """Ask for its health."""
        await self._http.probe(self._health_path)

    async def serve(self, leg: Leg, incarnation: str) -> None:
        """A whole request, also where the plan has left decode open: there is no KV to hand over."""
        if leg.kv is not None:
            raise PhaseError(Reason.KV_TRANSFER_FAILED, "this engine takes no KV over")
        await self.whole(leg)

    async def release(self, kv: KVHandle) -> None:
        """There is none."""

    async def whole(self, leg: Leg) -> None:
        """Prefill and decode in one call."""
        ask, answer = self._dialect.ask(leg.payload), Answer(leg, self._dialect)
        await self._http.stream(ask.path, ask.body, trace_of(leg), answer.take)
        answer.end()


def trace_of(leg: Leg) -> str:
    """A name for one attempt, the same at both engines of a pair. Clients choose request ids: not fit for
    a header as they are."""
    return f"pp-{blake2b(leg.id.encode(), digest_size=12).hexdigest()}-{leg.epoch}"
