"""What an engine's refusals and failures mean for a request. Pure.

Nothing an engine says is passed on verbatim: engines quote the prompt in their messages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from router.errors import Reason

_STATUSES: Final[Mapping[int, tuple[Reason, str]]] = {
    400: (Reason.INVALID_REQUEST, "it does not accept the request; its own log says why"),
    401: (Reason.BACKEND_FAILED, "check the backend's api_key_file or api_key_env"),
    403: (Reason.BACKEND_FAILED, "check the backend's api_key_file or api_key_env"),
    404: (Reason.BACKEND_FAILED, "check the backend's url and model name"),
    408: (Reason.BACKEND_STALLED, "it took too long"),
    413: (Reason.REQUEST_TOO_LARGE, "shorten the prompt"),
    422: (Reason.INVALID_REQUEST, "it does not accept the request; its own log says why"),
    429: (Reason.QUEUE_FULL, "it has no room at this time"),
    503: (Reason.QUEUE_FULL, "it has no room at this time"),
    504: (Reason.BACKEND_STALLED, "it took too long"),
}
_CALLERS: Final = frozenset({Reason.INVALID_REQUEST, Reason.REQUEST_TOO_LARGE})
"""No backend could do better."""
MAX_KIND: Final = 64
_TOO_LONG: Final = re.compile(
    r"maximum context length|max_model_len|context[_ ]length|context window|longer than the maximum"
    r"|exceed_context_size|max_seq_len|max_total_tokens",
    re.IGNORECASE,
)
"""Words by which vLLM, SGLang, llama.cpp, TGI and hosted services say that a prompt does not fit."""
_KIND: Final = re.compile(r"[A-Za-z][A-Za-z0-9_. -]*")


class PhaseError(Exception):
    """A phase failed at its engine."""

    def __init__(
        self, reason: Reason, message: str, *, retryable: bool = True, suspect: bool = False
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable
        """Whether another backend could do better."""
        self.suspect = suspect
        """Whether the engine itself may be gone; then it is probed at once."""


def broken(what: str) -> PhaseError:
    """The engine's answer cannot be understood."""
    return PhaseError(Reason.BACKEND_BROKE_CONTRACT, f"the engine's answer cannot be used: {what}")


def refusal(status: int, body: Any = None) -> PhaseError:
    """The meaning of an HTTP status, or of the code in an error object, at which an engine gave up a request.

    `body` is the parsed answer, if it could be parsed; only its error type is quoted.
    """
    error = _error_in(body)
    said = f"the engine answered {status}{_kind(error)}"
    if status in (400, 413, 422, 500) and _TOO_LONG.search(str(error.get("message", ""))):
        # vLLM has answered 500 to a prompt that is too long: an engine in good health, and no retry helps.
        text = f"{said}: the prompt with its answer exceeds the engine's context; shorten either"
        return PhaseError(Reason.REQUEST_TOO_LARGE, text, retryable=False)
    reason, advice = _STATUSES.get(status, (Reason.BACKEND_FAILED, "its own log says why"))
    return PhaseError(reason, f"{said}: {advice}", retryable=reason not in _CALLERS)


def error_body(body: Any) -> PhaseError | None:
    """The failure that an answer with status 200 holds, if it holds one."""
    if not isinstance(body, dict) or not (body.get("error") or body.get("object") == "error"):
        return None
    code = _error_in(body).get("code")
    return refusal(code if isinstance(code, int) and 400 <= code < 600 else 500, body)


def _error_in(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        return {}
    inner = body.get("error")
    if isinstance(inner, dict):
        return inner
    return {**body, "message": inner} if isinstance(inner, str) else body


def _kind(error: dict[str, Any]) -> str:
    kind = error.get("type")
    if not isinstance(kind, str) or len(kind) > MAX_KIND or not _KIND.fullmatch(kind):
        return ""
    return f" ({kind})"
