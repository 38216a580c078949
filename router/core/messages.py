"""What goes into the core (facts, past tense) and what comes out (actions, imperative).

Tokens are neither: they pass the core by. A phase of a request is named by (request_id, epoch);
facts of an epoch that is over are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from router.core.ports import Policy
from router.errors import Reason
from router.model import (
    BackendSnapshot,
    BackendSpec,
    Decision,
    FinishReason,
    KVHandle,
    Phase,
    PhaseCost,
    Report,
    Request,
    Seconds,
    Usage,
)
from router.prices import Prices
from router.value import value

MAX_BLOCKS_A_FACT: Final = 4096
"""Of KV blocks stored, and of blocks removed: bounds the time that one fact takes."""

# --- facts -----------------------------------------------------------------------------------------


@value
class RequestArrived:
    """A validated request. Its id is not in use."""

    request: Request


@value
class RequestCancelled:
    """Nobody waits for the answer any more: the client cancelled, left, or stopped reading."""

    request_id: str
    reason: Reason = Reason.CANCELLED


@value
class PrefillDone:
    """The KV of the prompt is complete. `kv` is None when decode goes on at the same backend."""

    request_id: str
    epoch: int
    cost: PhaseCost
    cached_tokens: int = 0
    kv: KVHandle | None = None


@value
class KVMoved:
    """The decode backend holds the KV; the producer's copy is gone."""

    request_id: str
    epoch: int
    moved_bytes: int
    transfer_s: Seconds = 0.0


@value
class FirstToken:
    """The first token of the request reached the client's stream. Ends the possibility of a retry."""

    request_id: str
    epoch: int


@value
class DecodeDone:
    """The last token is out."""

    request_id: str
    epoch: int
    cost: PhaseCost
    output_tokens: int
    reason: FinishReason
    overran: bool = False
    """The backend did not stop at max_new_tokens; the driver cut the rest off and wants it stopped."""
    counted: Usage | None = None
    """As the backend counts: where a prompt came as text, ours is an estimate."""


@value
class PhaseFailed:
    """A backend gave up a phase, broke its contract, or made no progress."""

    request_id: str
    epoch: int
    phase: Phase
    backend: str
    reason: Reason
    message: str = ""
    retryable: bool = True
    """False when no backend could do better, as with a request that is invalid."""


@value
class BackendJoined:
    """A backend is connected. The same id with another incarnation is a restart: what ran there is lost."""

    spec: BackendSpec
    incarnation: str
    address: str = ""


@value
class BackendLost:
    """The lane to a backend broke. Its work and its KV are gone; it may come back."""

    backend: str
    message: str = ""


@value
class BackendRemoved:
    """A backend left for good; nothing of it is kept."""

    backend: str


@value
class BackendCordoned:
    """An operator stopped new work for a backend, or allowed it again. Draining ends in removal."""

    backend: str
    cordoned: bool = True
    draining: bool = False


@value
class BackendReported:
    """A load report came in."""

    backend: str
    snapshot: BackendSnapshot


@value
class KVBlocksChanged:
    """An engine said what changed in its prefix cache. Of a backend that never says so, what it holds is
    inferred.

    Hashes are those of Request.prefix_hashes as the router sent them to the worker: an adapter of an engine
    that hashes blocks itself translates, and leaves out blocks that it cannot name. A hash is in `stored` or
    in `removed`, not in both. Whoever missed events says `cleared`, with all that it knows to be there.
    """

    backend: str
    incarnation: str
    """Events of another boot of the backend than the one that joined are void."""
    stored: tuple[int, ...] = ()
    """At most MAX_BLOCKS_A_FACT, and so `removed`; more come as several facts."""
    removed: tuple[int, ...] = ()
    cleared: bool = False
    """All blocks went before any of `stored` came."""


@value
class PolicyReplaced:
    """Another policy takes over for the next decision. `text` rebuilds it in a replay."""

    policy: Policy
    text: str = ""


@value
class PolicyOverran:
    """The policy took longer than its budget for one decision, as measured by the driver."""

    duration_s: Seconds


@value
class PricesRevised:
    """The prices that a policy asked for (core.ports.PriceTaker) were worked out."""

    prices: Prices


@value
class DrainStarted:
    """The daemon stops: new requests are refused, queued and running ones end."""


Fact = (
    RequestArrived
    | RequestCancelled
    | PrefillDone
    | KVMoved
    | FirstToken
    | DecodeDone
    | PhaseFailed
    | BackendJoined
    | BackendLost
    | BackendRemoved
    | BackendCordoned
    | BackendReported
    | KVBlocksChanged
    | PolicyReplaced
    | PolicyOverran
    | PricesRevised
    | DrainStarted
)

# --- actions ---------------------------------------------------------------------------------------


@value
class StartPrefill:
    """Compute the KV of the prompt on a backend; with decode_here, go on to decode there."""

    request_id: str
    epoch: int
    backend: str
    decode_here: bool


@value
class StartDecode:
    """Pull the KV to a backend and decode there."""

    request_id: str
    epoch: int
    backend: str
    kv: KVHandle


@value
class StopPhase:
    """Stop whatever a backend does for an epoch of a request and free its KV."""

    request_id: str
    epoch: int
    backend: str


@value
class ReleaseKV:
    """Free KV that nobody will pull."""

    backend: str
    kv: KVHandle


@value
class FinishRequest:
    """The request ended well. Every request gets this or FailRequest, once."""

    request_id: str
    report: Report


@value
class FailRequest:
    """The request ended without (the rest of) its answer."""

    request_id: str
    reason: Reason
    message: str
    retry_after_s: Seconds
    """0 means that a retry is useless."""
    report: Report


@value
class NoteDecision:
    """A plan was booked, or a late binding."""

    request_id: str
    decision: Decision


@value
class NoteRetry:
    """A phase failed and the request starts anew elsewhere."""

    request_id: str
    phase: Phase
    backend: str
    reason: Reason


@value
class NotePreempted:
    """A request gave up its place before its first token to one of a higher class; it waits anew, first in
    its line. No attempt of it is counted."""

    request_id: str
    backend: str
    by: str
    """The request that wants the place."""


@value
class NotePolicyFault:
    """A policy raised, overran, or gave an answer that cannot be done; the fallback decided."""

    policy: str
    fault: str
    """raised, slow, unknown_backend, wrong_phase, wrong_model, layout_mismatch, not_ready, bypassed."""
    message: str = ""


Action = (
    StartPrefill
    | StartDecode
    | StopPhase
    | ReleaseKV
    | FinishRequest
    | FailRequest
    | NoteDecision
    | NoteRetry
    | NotePreempted
    | NotePolicyFault
)

Actions = Sequence[Action]
