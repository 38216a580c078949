"""One SGLang of a prefill/decode pair. It does one phase only: the one it was started for.

Prefill ends only when decode has taken the KV, so its handle is given out before its request is sent, and
decode starts beside it. Either may fail while the other waits, which an SGLang does for minutes: a prefill
that fails ends the attempt and stops its decode, and KV that is released stops its prefill. Once decode has
a token, what becomes of prefill's call is of no consequence.
"""

from __future__ import annotations

from backends.engines.dialect import Delta
from backends.engines.failures import PhaseError
from backends.engines.fused import trace_of
from backends.engines.http import HttpEngine
from backends.engines.leg import Leg
from backends.engines.openai import OpenAIDialect
from backends.engines.sglang import Bootstrap, decode_ask, meeting, prefill_ask
from backends.engines.takeover import Keeper, minted, take_over
from router.errors import Reason
from router.model import KVHandle, Phase, Seconds


class SglangPairEngine:
    """Satisfies ports.Engine."""

    def __init__(
        self,
        http: HttpEngine,
        dialect: OpenAIDialect,
        keeper: Keeper,
        bootstrap: Bootstrap,
        health_path: str,
        abort_patience_s: Seconds,
    ) -> None:
        self._http = http
        self._dialect = dialect
        self._keeper = keeper
        self._bootstrap = bootstrap
        self._health_path = health_path
        self._abort_patience_s = abort_patience_s
        self._prefills: dict[tuple[str, int], Leg] = {}
        """Calls under way, by request and epoch."""

    async def probe(self) -> None:
        """Ask for its health."""
        await self._http.probe(self._health_path)

    async def serve(self, leg: Leg, incarnation: str) -> None:
        """A prefill for another engine, or a decode of another's KV."""
        phase = Phase.PREFILL if leg.kv is None else Phase.DECODE
        if leg.decode_here or self._keeper.spec.phases != {phase}:
            text = "an SGLang of a pair does one phase only; name it in spec.phases"
            raise PhaseError(Reason.BACKEND_FAILED, text)
        if leg.kv is None:
            await self._prefill(leg, incarnation)
        else:
            ask = decode_ask(self._dialect.ask(leg.payload), leg.kv.connector)
            kv_bytes = leg.kv.tokens * self._keeper.spec.kv_bytes_per_token
            await take_over(self._http, self._dialect, ask, leg, kv_bytes, self._abort_patience_s)

    async def release(self, kv: KVHandle) -> None:
        """Close the prefill's call, whereupon the engine aborts it and tells decode."""
        if (leg := self._prefills.get((kv.request_id, kv.epoch))) is not None:
            leg.stop()

    async def _prefill(self, leg: Leg, incarnation: str) -> None:
        connector = meeting(self._bootstrap, minted(leg, incarnation))
        ask = prefill_ask(self._dialect.ask(leg.payload), connector)
        progress = Progress(self._dialect)
        self._prefills[leg.id, leg.epoch] = leg
        leg.prefilled(self._keeper.handle(leg, incarnation, connector))
        try:
            await self._http.stream(ask.path, ask.body, trace_of(leg), progress.take)
            progress.check()
        except PhaseError:
            if not leg.flow.next_index:
                raise
        finally:
            del self._prefills[leg.id, leg.epoch]


class Progress:
    """Reads a prefill's answer for how it ends; decode computes its token again."""

    def __init__(self, dialect: OpenAIDialect) -> None:
        self._dialect = dialect
        self._finished = False

    def take(self, data: str) -> bool:
        """One event; whether it was the last. Raises PhaseError for an error, and for an abort."""
        delta: Delta = self._dialect.delta(data)
        self._finished = self._finished or delta.finish is not None
        return delta.is_last

    def check(self) -> None:
        """Raises PhaseError for an answer that was cut off."""
        if not self._finished:
            raise PhaseError(Reason.BACKEND_LOST, "the engine's answer broke off", suspect=True)
