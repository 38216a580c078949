"""llama.cpp's own words for a completion: unlike its OpenAI API they carry token ids both ways. Pure.

Read in llama.cpp's tools/server/README.md: POST /completion with `prompt` as text or ids, `n_predict`,
`return_tokens`; events have `content`, `tokens` and `stop`, the last one `stop_type` and the counts.
"""

from __future__ import annotations

from typing import Any

from polyphase.v1 import inference_pb2

from backends.engines.dialect import Ask, Delta, Tokens, count_of, ids_of, parsed, sampling_of, text_of
from backends.engines.failures import PhaseError, broken
from router.errors import Reason
from router.model import FinishReason


class LlamaCppDialect:
    """Translates both ways. Satisfies Dialect."""

    def ask(self, payload: inference_pb2.GenerateRequest) -> Ask:
        """The request, streamed."""
        if payload.engine_options:
            text = "this backend's engine takes no engine_options; leave them out, or name another backend"
            raise PhaseError(Reason.INVALID_REQUEST, text)
        if payload.sampling.min_new_tokens:
            text = "llama.cpp knows no min_new_tokens; leave it out, or name another backend"
            raise PhaseError(Reason.INVALID_REQUEST, text)
        is_text = payload.WhichOneof("prompt") == "text"
        body: dict[str, Any] = {
            "prompt": payload.text if is_text else list(payload.tokens.ids),
            "n_predict": payload.max_new_tokens,
            "stream": True,
            "return_tokens": True,
            "cache_prompt": True,
        }
        return Ask("/completion", body | sampling_of(payload))

    def delta(self, data: str) -> Delta:
        """One event of the stream."""
        event = parsed(data)
        text, ids = text_of(event.get("content")), ids_of(event.get("tokens"))
        if event.get("stop") is not True:
            return Delta(text=text, ids=ids)
        output, cached = count_of(event.get("tokens_predicted")), count_of(event.get("tokens_cached"))
        tokens = Tokens(count_of(event.get("tokens_evaluated")), output, cached)
        return Delta(text=text, ids=ids, finish=_finish(event), tokens=tokens, is_last=True)


def _finish(event: Any) -> FinishReason:
    match event.get("stop_type"):
        case "limit":
            return FinishReason.LENGTH
        case "eos" | "word":
            return FinishReason.STOP
        case _:
            raise broken("it ended for no known reason")
