"""What pairs of engines have in common, whatever their protocol: minted names, handles, second legs."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from backends.engines.dialect import Ask
from backends.engines.failures import PhaseError
from backends.engines.fused import trace_of
from backends.engines.http import HttpEngine
from backends.engines.leg import Leg
from backends.engines.openai import OpenAIDialect
from backends.engines.vllm_pair import HandedOver
from router.errors import Reason
from router.model import BackendSpec, KVHandle, Seconds

_TOP: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Keeper:
    """An engine that hands KV over."""

    spec: BackendSpec
    lease_s: Seconds
    """How long it keeps KV that nobody comes for."""

    def handle(self, leg: Leg, incarnation: str, connector: bytes) -> KVHandle:
        """For the KV of a prompt, from now on."""
        return KVHandle(
            producer=self.spec.id,
            incarnation=incarnation,
            request_id=leg.id,
            epoch=leg.epoch,
            layout=self.spec.kv_layout,
            tokens=leg.flow.request.prompt_tokens,
            prefix_hash=0,
            expires_at=leg.now() + self.lease_s,
            source=self.spec.id,
            connector=connector,
        )


def minted(leg: Leg, incarnation: str) -> int:
    """A number for one handoff that no other has, from 2^62 to 2^63 - 1.

    Engines want 63 bits at most, and TensorRT-LLM 2^42 at least: it counts its own up from below. The
    connection's random incarnation keeps routers, and restarts of one, apart.
    """
    name = f"{incarnation}\n{leg.epoch}\n{leg.id}".encode()
    return _TOP | int.from_bytes(blake2b(name, digest_size=8).digest(), "big") >> 2


async def take_over(
    http: HttpEngine, dialect: OpenAIDialect, ask: Ask, leg: Leg, kv_bytes: float, patience_s: Seconds
) -> None:
    """A second leg from its request to its last token.

    Until the first token the KV is on its way, and an abort could leak it or crash the engine: a stop waits
    for that token, at most `patience_s`. A failure before it means that the KV did not come.
    """
    answer = HandedOver(leg, dialect, int(kv_bytes))
    leg.hold(patience_s)
    try:
        await http.stream(ask.path, ask.body, trace_of(leg), answer.take)
        answer.end()
    except PhaseError as error:
        if answer.has_begun or error.reason is not Reason.BACKEND_FAILED:
            raise
        text = f"the KV did not come: {error.message}"
        raise PhaseError(Reason.KV_TRANSFER_FAILED, text, suspect=error.suspect) from error
