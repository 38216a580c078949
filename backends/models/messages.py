"""The vocabulary of a worker as a machine: commands go in, events come out (backends/models/worker.py).

A `key` names one sequence on one worker. Whoever drives the worker chooses it and never uses it twice; it may
be the wire's `seq`, as long as two routers cannot choose the same one. A key ends exactly once: with
PrefillFinished (unless the command said decode_here), DecodeFinished or Failed, or silently with Stop.

All times are seconds on the worker's own clock. KVHandle.expires_at inside a worker is on that clock too:
the driver converts lease durations at the wire. Values only; no I/O.
"""

from __future__ import annotations

from enum import StrEnum

from router.model import FinishReason, KVHandle, PhaseCost, Seconds
from router.value import value


class FailReason(StrEnum):
    """Why a worker gave up a key or refused KV; mirrors worker.proto PhaseFailed.Reason."""

    INVALID = "invalid"
    """The command can never run here."""
    CAPACITY = "capacity"
    """No room at this time."""
    KV_STALE = "kv_stale"
    """Unknown, consumed, expired, released, or from another incarnation."""
    KV_LAYOUT = "kv_layout"
    """The decode side cannot take the producer's layout over."""
    KV_TRANSFER = "kv_transfer"
    """The transfer broke off."""
    DRAINING = "draining"
    INTERNAL = "internal"


# --- commands --------------------------------------------------------------------------------------


@value
class RunPrefill:
    """Compute the KV of a prompt; with decode_here go on to decode, otherwise hold the KV for a peer."""

    key: int
    request_id: str
    epoch: int
    prompt_tokens: int
    """At least 1."""
    prefix_hashes: tuple[int, ...]
    """One per full block of the prompt, chained; the block size is the worker's block_tokens."""
    output_tokens: int
    """Tokens the whole answer will have, at least 1; already capped at max_new_tokens."""
    length_capped: bool
    """The cap ended the answer: it finishes with LENGTH rather than STOP."""
    decode_here: bool
    fingerprint: int
    """Identity of the KV that this prefill produces, opaque to the machine; its low 64 bits travel."""
    model: str = ""
    """One of the backend's; empty means the first of them."""


@value
class RunDecode:
    """Reserve room, have the KV pulled, then decode from first_index on."""

    key: int
    request_id: str
    epoch: int
    kv: KVHandle
    prompt_tokens: int
    """At least 1."""
    output_tokens: int
    """Tokens of the whole answer, those before first_index included."""
    length_capped: bool
    first_index: int
    """0, or 1 when the prefill produced the first token; at most output_tokens."""
    model: str = ""
    """One of the backend's; empty means the first of them."""


@value
class Stop:
    """Drop whatever the key stands for and free its room at once: queued, running, pulling, or held KV.

    A key that is unknown or over is ignored: stops and ends cross on the way.
    """

    key: int


@value
class Release:
    """Free KV that nobody will pull. A handle that names no held KV is ignored."""

    kv: KVHandle


@value
class ServeKV:
    """A peer asks for KV held here. Answered once: KVServed, KVRefused, or silence after AbortServe."""

    pull: int
    """Chosen by the driver, never used twice; a namespace of its own beside keys."""
    kv: KVHandle
    consumer: str


@value
class AbortServe:
    """The peer of a pull went away: stop the transfer and free the KV. A pull that is over is ignored."""

    pull: int


@value
class KVArrived:
    """The KV asked for by PullKV is here, complete."""

    key: int
    moved_bytes: int
    transfer_s: Seconds
    fingerprint: int
    """As the producer sent it; another one than the handle's means foreign KV and fails the key."""


@value
class KVPullFailed:
    """The KV asked for by PullKV will not come."""

    key: int
    reason: FailReason
    message: str


WorkerCommand = RunPrefill | RunDecode | Stop | Release | ServeKV | AbortServe | KVArrived | KVPullFailed

# --- events ----------------------------------------------------------------------------------------


@value
class StepTokens:
    """Tokens of one engine step, in columns: keys[i] produced its token indices[i]."""

    at: Seconds
    """When the model's step ended: at most `now`, earlier when the driver is late."""
    keys: tuple[int, ...]
    indices: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    """Their ids, from a worker that knows them; a model of hardware does not."""


@value
class PrefillFinished:
    """The KV of the prompt is complete. With kv the key is over; without, its decode goes on here."""

    key: int
    cost: PhaseCost
    cached_tokens: int
    kv: KVHandle | None


@value
class PullKV:
    """Room is reserved: fetch the KV now, then answer with KVArrived or KVPullFailed."""

    key: int
    kv: KVHandle


@value
class KVTaken:
    """The decode side holds the KV and will decode."""

    key: int
    moved_bytes: int
    transfer_s: Seconds


@value
class KVServed:
    """The last byte of a pull left this worker; its copy is gone. Send the fingerprint to the peer."""

    pull: int
    moved_bytes: int
    transfer_s: Seconds
    fingerprint: int


@value
class KVRefused:
    """A pull is over without KV."""

    pull: int
    reason: FailReason
    message: str


@value
class DecodeFinished:
    """The last token is out; the key is over."""

    key: int
    cost: PhaseCost
    output_tokens: int
    """Of the answer as a whole."""
    reason: FinishReason


@value
class Failed:
    """The key is over without the rest of its work; its room is free."""

    key: int
    reason: FailReason
    message: str


WorkerEvent = StepTokens | PrefillFinished | PullKV | KVTaken | KVServed | KVRefused | DecodeFinished | Failed
