"""One sequence inside the engine, and the reasons why one can never run. Pure.

`computed` tokens have their KV; `known` tokens are there to be computed (the prompt and what was
generated). A step computes some of the missing ones; when it computes the last, it samples the next token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import assert_never

from backends.models.kvcache import blocks_for
from backends.models.messages import RunDecode, RunPrefill
from backends.models.metering import Reading
from router.model import BackendSpec, FinishReason, ModelBinding, Phase, PhaseCost, Seconds

SALT = 0x9E3779B97F4A7C15
"""An odd 64-bit constant (the golden ratio's), so that salted hashes of different models do not meet."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable state of one key; only the engine and its decode batch touch it."""

    key: int
    prompt_tokens: int
    output_tokens: int
    length_capped: bool
    hands_over: bool
    """The KV is kept for a peer when the prompt is done."""
    phase: Phase
    arrived: Seconds
    next_index: int = 0
    """Index of the token that is sampled next."""
    hashes: tuple[int, ...] = ()
    computed: int = 0
    published: int = 0
    """Leading hashes whose blocks were published or hit."""
    private: int = 0
    shared: list[int] = field(default_factory=list[int])
    """Hashes of the cached blocks it refers to."""
    cached_tokens: int = 0
    has_emitted: bool = False
    was_preempted: bool = False
    started: Seconds | None = None
    device_s: Seconds = 0.0
    energy_j: float = 0.0
    # Kept by the decode batch (batch.py).
    computed_offset: int = 0
    index_offset: int = 0
    ends_at_step: int = 0
    reading: Reading | None = None
    model: int = 0
    """Position of its model among the backend's."""

    @property
    def known(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return self.prompt_tokens + self.next_index

    @property
    def missing(self) -> int:
        """Known tokens without KV."""
        return self.known - self.computed

    @property
    def finish(self) -> FinishReason:
        """Why the answer will end."""
        return FinishReason.LENGTH if self.length_capped else FinishReason.STOP

    def charge(self, device_s: Seconds, energy_j: float) -> None:
        """Add a share of a step."""
        self.device_s += device_s
        self.energy_j += energy_j

    def settle(self, now: Seconds) -> PhaseCost:
        """The cost since the last settlement; what follows is the next phase, which does not queue."""
        started = now if self.started is None else self.started
        cost = PhaseCost(started - self.arrived, self.device_s, self.energy_j)
        self.arrived = self.started = now
        self.device_s = self.energy_j = 0.0
        return cost


def of_prefill(command: RunPrefill, spec: BackendSpec, now: Seconds) -> Sequence:
    """A sequence that starts from nothing."""
    model = _position(command.model, spec)
    hashes = command.prefix_hashes[: command.prompt_tokens // spec.block_tokens]
    return Sequence(
        key=command.key,
        prompt_tokens=command.prompt_tokens,
        output_tokens=command.output_tokens,
        length_capped=command.length_capped,
        hands_over=not command.decode_here,
        phase=Phase.PREFILL,
        arrived=now,
        # The same text is another KV in another model.
        hashes=tuple([one ^ (model * SALT) for one in hashes]) if model else hashes,
        model=model,
    )


def of_decode(command: RunDecode, spec: BackendSpec, now: Seconds) -> Sequence:
    """A sequence whose KV comes from a peer.

    Sampling token i needs one step over the token before it: with first_index 0 the last token of the
    prompt is computed again, as engines do.
    """
    known = command.prompt_tokens + command.first_index
    return Sequence(
        key=command.key,
        prompt_tokens=command.prompt_tokens,
        output_tokens=command.output_tokens,
        length_capped=command.length_capped,
        hands_over=False,
        phase=Phase.DECODE,
        arrived=now,
        next_index=command.first_index,
        computed=min(command.kv.tokens, known - 1),
        model=_position(command.model, spec),
    )


def _position(model: str, spec: BackendSpec) -> int:
    """Of a model among the backend's; a command that names none means the first."""
    return spec.models.index(model) if model else 0


def refusal(command: RunPrefill | RunDecode, spec: BackendSpec) -> str:
    """Why a command can never run on a backend; empty when it can."""
    needed = Phase.PREFILL if isinstance(command, RunPrefill) else Phase.DECODE
    decodes = isinstance(command, RunDecode) or command.decode_here
    if command.model and command.model not in spec.models:
        return _wrong_model(command.model, spec)
    if needed not in spec.phases or (decodes and Phase.DECODE not in spec.phases):
        missing = needed if needed not in spec.phases else Phase.DECODE
        return f"{spec.id} does not offer {missing}; it offers {', '.join(sorted(spec.phases)) or 'nothing'}"
    return _bad_counts(command) or _too_large(command, spec, decodes)


def _wrong_model(model: str, spec: BackendSpec) -> str:
    served = ", ".join(spec.models)
    match spec.binding:
        case ModelBinding.FIXED:
            return f"{spec.id} has {served} in its silicon and can never run {model}; send it elsewhere"
        case ModelBinding.COMPILED:
            return f"{spec.id} has programs for {served} and none for {model}; send it elsewhere"
        case ModelBinding.LOADABLE:
            return f"{spec.id} serves {served}, not {model}; send it elsewhere"
        case _:
            assert_never(spec.binding)


def _bad_counts(command: RunPrefill | RunDecode) -> str:
    if command.prompt_tokens < 1 or command.output_tokens < 1:
        return (
            f"a prompt of {command.prompt_tokens} and an answer of {command.output_tokens} tokens "
            "cannot run; both must have at least 1"
        )
    if isinstance(command, RunDecode) and not 0 <= command.first_index <= command.output_tokens:
        return f"first_index {command.first_index} is outside the answer of {command.output_tokens} tokens"
    if isinstance(command, RunDecode) and command.kv.tokens < 1:
        return "the KV handle covers no tokens; prefill again"
    return ""


def _too_large(command: RunPrefill | RunDecode, spec: BackendSpec, decodes: bool) -> str:
    total = command.prompt_tokens + (command.output_tokens if decodes else 1)
    advice = "shorten the request, or send it elsewhere"
    if total > spec.max_context_tokens:
        return f"{total} tokens of context exceed the {spec.max_context_tokens} of {spec.id}; {advice}"
    capacity = spec.kv_capacity_tokens // spec.block_tokens
    # The last token of an answer is never computed, so it needs no room.
    if blocks_for(total - 1, spec.block_tokens) > capacity:
        return f"{total} tokens exceed the KV room of {spec.id}, {capacity * spec.block_tokens}; {advice}"
    return ""
