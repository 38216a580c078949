"""One vLLM of a prefill/decode pair: either leg of a split request, or a whole one.

Rules of the handoff. KV that prefill keeps is leased: the handle expires a little before the engine's lease
does, so that blocks which may serve another prompt are never asked for. A prefill that is given up is
aborted, which frees its blocks. A decode is not aborted before its first token: until then its blocks are
being written to from outside. A lease's time later it is aborted all the same. KV that nobody will pull is
released through a decode engine, or by its lease.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from backends.engines.dialect import Delta, finish_of, ids_of
from backends.engines.failures import PhaseError, broken
from backends.engines.fused import Answer, FusedEngine, trace_of
from backends.engines.http import HttpEngine
from backends.engines.leg import Leg
from backends.engines.nixl import FIELD, Hosts, connector_of, decode_ask, prefill_ask, release_ask
from backends.engines.openai import OpenAIDialect, first_of, text_in, usage_of
from router.errors import Reason
from router.model import FinishReason, KVHandle, Seconds

LEASE_MARGIN_S: Final[Seconds] = 1.0
"""The lease began before the answer reached us, by the time the answer took."""


@dataclass(frozen=True, slots=True)
class Custody:
    """How an engine holds KV for others."""

    backend: str
    layout: str
    kv_bytes_per_token: float
    lease_s: Seconds
    hosts: Hosts
    release_model: str
    """Begins the name of a model that no engine serves."""


class PairEngine:
    """Satisfies ports.Engine."""

    def __init__(
        self,
        http: HttpEngine,
        dialect: OpenAIDialect,
        custody: Custody,
        health_path: str,
        releaser: HttpEngine | None,
    ) -> None:
        """`releaser` is a decode engine by which KV held here can be freed."""
        self._http = http
        self._dialect = dialect
        self._custody = custody
        self._fused = FusedEngine(http, dialect, health_path)
        self._releaser = releaser

    async def probe(self) -> None:
        """Ask for its health."""
        await self._fused.probe()

    async def serve(self, leg: Leg, incarnation: str) -> None:
        """A prefill for another engine, a decode of another's KV, or both legs here."""
        if leg.kv is not None and leg.kv.producer == self._custody.backend:
            # An engine does not pull from itself: it computes the prompt again, or finds it in its cache.
            await self._fused.whole(leg)
            await self.release(leg.kv)
        elif leg.kv is not None:
            await self._decode(leg, leg.kv)
        elif leg.decode_here or leg.payload.max_new_tokens == 1:
            await self._fused.whole(leg)
        else:
            await self._prefill(leg, incarnation)

    async def release(self, kv: KVHandle) -> None:
        """Have the blocks freed now rather than when their lease ends."""
        if self._releaser is None:
            return
        ask = release_ask(kv.connector, self._custody.release_model)
        try:
            await self._releaser.post(ask.path, ask.body, "")
        except PhaseError as error:
            if error.suspect:
                raise  # it never saw the request
            return
        raise broken("it served a model that does not exist")

    # --- first leg ---

    async def _prefill(self, leg: Leg, incarnation: str) -> None:
        ask = prefill_ask(self._dialect.ask(leg.payload))
        answer = await self._http.post(ask.path, ask.body, trace_of(leg))
        choice = first_of(answer.get("choices") if isinstance(answer, dict) else None)
        connector = connector_of(answer, self._custody.hosts)
        finish = finish_of(choice.get("finish_reason"))
        if finish is FinishReason.STOP:
            await self._keep(leg, choice, answer, self._handle(leg, incarnation, connector or b""))
        elif connector is None:
            text = f"the engine gave no {FIELD}: is it started with a KV connector that hands over?"
            raise PhaseError(Reason.KV_TRANSFER_FAILED, text)
        else:
            leg.prefilled(self._handle(leg, incarnation, connector))

    async def _keep(self, leg: Leg, choice: Mapping[str, Any], answer: Any, kv: KVHandle) -> None:
        """The first token was the last one: there is nothing to decode, and nothing to hand over."""
        leg.take(text_in(choice), ids_of(choice.get("token_ids")))
        leg.finish(FinishReason.STOP, usage_of(answer.get("usage")))
        if kv.connector:
            await self.release(kv)

    def _handle(self, leg: Leg, incarnation: str, connector: bytes) -> KVHandle:
        custody = self._custody
        return KVHandle(
            producer=custody.backend,
            incarnation=incarnation,
            request_id=leg.id,
            epoch=leg.epoch,
            layout=custody.layout,
            tokens=leg.flow.request.prompt_tokens,
            prefix_hash=0,
            expires_at=leg.now() + custody.lease_s - LEASE_MARGIN_S,
            source=custody.backend,
            connector=connector,
        )

    # --- second leg ---

    async def _decode(self, leg: Leg, kv: KVHandle) -> None:
        ask = decode_ask(self._dialect.ask(leg.payload), kv.connector)
        answer = HandedOver(leg, self._dialect, int(kv.tokens * self._custody.kv_bytes_per_token))
        leg.hold(self._custody.lease_s)
        try:
            await self._http.stream(ask.path, ask.body, trace_of(leg), answer.take)
            answer.end()
        except PhaseError as error:
            if answer.has_begun or error.reason is not Reason.BACKEND_FAILED:
                raise
            raise PhaseError(
                Reason.KV_TRANSFER_FAILED, f"the KV did not come: {error.message}", suspect=error.suspect
            ) from error


class HandedOver(Answer):
    """An answer out of KV that another engine computed: its first token says that the KV is there."""

    def __init__(self, leg: Leg, dialect: OpenAIDialect, moved_bytes: int) -> None:
        super().__init__(leg, dialect)
        self._moved_bytes = moved_bytes
        self.has_begun = False
        """The KV was taken over."""

    def note(self, delta: Delta) -> None:
        """As Answer; with the first token the leg may be stopped again."""
        super().note(delta)
        if not self.has_begun and (delta.ids or delta.text or delta.finish is not None):
            self.has_begun = True
            self.leg.let_go()
            self.leg.begin(moved_bytes=self._moved_bytes)
