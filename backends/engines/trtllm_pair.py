"""One TensorRT-LLM of a context/generation pair, or a server that does whole requests.

KV is fetched by the generation server; TensorRT-LLM has no call to free KV that nobody fetches, so such KV
ends with the context server's own timeout. The first token is computed by the context server and comes out
of the generation server: it is delivered from there, once.
"""

from __future__ import annotations

from backends.engines.dialect import finish_of, ids_of
from backends.engines.failures import PhaseError
from backends.engines.fused import FusedEngine, trace_of
from backends.engines.http import HttpEngine
from backends.engines.leg import Leg
from backends.engines.openai import OpenAIDialect, first_of, text_in, usage_of
from backends.engines.takeover import Keeper, minted, take_over
from backends.engines.trtllm import NOT_OVER, context_ask, generation_ask, kept_in
from router.errors import Reason
from router.model import FinishReason, KVHandle


class TrtllmPairEngine:
    """Satisfies ports.Engine."""

    def __init__(self, http: HttpEngine, dialect: OpenAIDialect, keeper: Keeper, health_path: str) -> None:
        self._http = http
        self._dialect = dialect
        self._keeper = keeper
        self._fused = FusedEngine(http, dialect, health_path)

    async def probe(self) -> None:
        """Ask for its health."""
        await self._fused.probe()

    async def serve(self, leg: Leg, incarnation: str) -> None:
        """A context for another server, a generation out of another's, or both here."""
        if leg.kv is not None and leg.kv.producer != self._keeper.spec.id:
            ask = generation_ask(self._dialect.ask(leg.payload), leg.kv.connector)
            kv_bytes = leg.kv.tokens * self._keeper.spec.kv_bytes_per_token
            await take_over(self._http, self._dialect, ask, leg, kv_bytes, self._keeper.lease_s)
        elif leg.kv is not None or leg.decode_here or leg.payload.max_new_tokens == 1:
            # A server does not fetch from itself: it computes the prompt again, or finds it in its cache.
            await self._fused.whole(leg)
        else:
            await self._context(leg, incarnation)

    async def release(self, kv: KVHandle) -> None:
        """There is no call for it: the context server's timeout frees the KV."""

    async def _context(self, leg: Leg, incarnation: str) -> None:
        number = minted(leg, incarnation)
        ask = context_ask(self._dialect.ask(leg.payload), number)
        answer = await self._http.post(ask.path, ask.body, trace_of(leg))
        choice = first_of(answer.get("choices") if isinstance(answer, dict) else None)
        finish = choice.get("finish_reason")
        if finish is None:
            raise PhaseError(Reason.BACKEND_BROKE_CONTRACT, "the engine's answer has no finish reason")
        if finish in NOT_OVER:
            connector = kept_in(answer, choice, number)
            leg.prefilled(self._keeper.handle(leg, incarnation, connector))
            return
        finish_of(finish)  # raises for an answer that the engine gave up
        leg.take(text_in(choice), ids_of(choice.get("token_ids")))
        leg.finish(FinishReason.STOP, usage_of(answer.get("usage")))
