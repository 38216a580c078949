"""The life of one request, as a table.

Two rules. Every change of stage goes through `Flight.step`, which looks it up in TRANSITIONS; and this file
does not know why a change happens, only that it may.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from router.core.fleet import Booking
from router.core.places import NOTHING, Held
from router.core.timeline import Timeline
from router.model import Decision, KVHandle, Phase, PhaseUse, Request, Usage


class Stage(StrEnum):
    """Where a request is."""

    QUEUED = "queued"
    PREFILL = "prefill"
    BINDING = "binding"
    """Prefill is done, its KV is held at the producer, and decode has no place yet."""
    HANDOFF = "handoff"
    DECODE = "decode"
    ENDED = "ended"


class Step(StrEnum):
    """What moves a request on."""

    PLANNED = "planned"
    PREFILLED_HERE = "prefilled_here"
    PREFILLED = "prefilled"
    BOUND = "bound"
    KV_MOVED = "kv_moved"
    RETRIED = "retried"
    ENDED = "ended"


TRANSITIONS: Final[dict[Stage, dict[Step, Stage]]] = {
    Stage.QUEUED: {
        Step.PLANNED: Stage.PREFILL,
        Step.ENDED: Stage.ENDED,
    },
    Stage.PREFILL: {
        Step.PREFILLED_HERE: Stage.DECODE,
        Step.PREFILLED: Stage.BINDING,
        Step.RETRIED: Stage.QUEUED,
        Step.ENDED: Stage.ENDED,
    },
    Stage.BINDING: {
        Step.BOUND: Stage.HANDOFF,
        Step.RETRIED: Stage.QUEUED,
        Step.ENDED: Stage.ENDED,
    },
    Stage.HANDOFF: {
        Step.KV_MOVED: Stage.DECODE,
        Step.RETRIED: Stage.QUEUED,
        Step.ENDED: Stage.ENDED,
    },
    Stage.DECODE: {
        Step.RETRIED: Stage.QUEUED,
        Step.ENDED: Stage.ENDED,
    },
    Stage.ENDED: {},
}


@dataclass(slots=True)
class Flight:
    """One live request: its stage, its attempt, and everything it holds. Owned and changed by the core."""

    request: Request
    timeline: Timeline
    stage: Stage = Stage.QUEUED
    epoch: int = 0
    """Attempt number; 0 before the first. Facts of another epoch are stale."""
    prefill: str = ""
    decode: str | None = None
    """Backend of decode; None while it is unbound."""
    expected_output_tokens: int = 0
    kv: KVHandle | None = None
    """Held at the producer, not moved yet."""
    prefill_booking: Booking | None = None
    decode_booking: Booking | None = None
    decision: Decision | None = None
    cached_tokens: int = 0
    counted: Usage | None = None
    """By the backend, where it counts."""
    output_tokens: int = 0
    busy_mark_s: float = 0.0
    """Busy time its worker had reported when the phase began, or when it was last looked at."""
    avoid: tuple[str, ...] = ()
    """Backends that failed this request."""
    preemptions: int = 0
    """Attempts that gave way to a higher class; they count as none."""
    held: Held = NOTHING
    """What it holds of its model's fleet."""
    charged: float = 0.0
    """What its tenant was charged for this attempt, in tokens (fairness.py)."""
    offer_at: float = float("inf")
    """When it is offered again by its policy's wish."""
    uses: list[PhaseUse] = field(default_factory=list[PhaseUse])

    def step(self, step: Step) -> None:
        """Move to the next stage; a step that the table does not allow is a bug of the core."""
        after = TRANSITIONS[self.stage].get(step)
        assert after is not None, f"request {self.request.id}: no {step} in stage {self.stage}"
        self.stage = after

    @property
    def attempts(self) -> int:
        """Attempts that were made, or are being made."""
        return self.epoch - self.preemptions

    @property
    def token_out(self) -> bool:
        """Whether the client has seen a token; then the request cannot start anew."""
        return self.timeline.first_token is not None

    def working_at(self) -> tuple[Phase, str] | None:
        """The phase that is under way and its backend; None while nothing runs."""
        match self.stage:
            case Stage.PREFILL:
                return Phase.PREFILL, self.prefill
            case Stage.HANDOFF | Stage.DECODE:
                assert self.decode is not None
                return Phase.DECODE, self.decode
            case Stage.QUEUED | Stage.BINDING | Stage.ENDED:
                return None
