"""One sequence of the reference worker: what is known of it, and what has its KV."""

from __future__ import annotations

from dataclasses import dataclass, field

from backends.models.messages import RunPrefill
from backends.reference.sampler import Sampling
from router.model import FinishReason, Phase, PhaseCost, Seconds


@dataclass(frozen=True, slots=True)
class Job:
    """What a request asks for, as far as computing goes."""

    prompt: tuple[int, ...]
    sampling: Sampling
    max_new_tokens: int


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable state of one key; the scheduler and the engine change it between steps."""

    key: int
    job: Job
    phase: Phase
    handover: RunPrefill | None
    """Its KV is kept for a peer when the prompt is done, under this command's name."""
    arrived: Seconds
    known: list[int]
    """Tokens of the prompt and of the answer so far."""
    table: list[int] = field(default_factory=list[int])
    """Pages of the cache."""
    computed: int = 0
    """Leading tokens with KV."""
    prefill_to: int = 0
    """Tokens that are computed in chunks before it decodes: the prompt, and more after a preemption."""
    computed_again: bool = False
    """It lost its pages once."""
    started: Seconds | None = None
    device_s: Seconds = 0.0
    finish: FinishReason | None = None

    @property
    def missing(self) -> int:
        """Known tokens without KV."""
        return len(self.known) - self.computed

    @property
    def chosen(self) -> int:
        """Tokens of the answer so far; also the index of the next."""
        return len(self.known) - len(self.job.prompt)

    @property
    def decodes(self) -> bool:
        """Whether its next step computes its newest token alone."""
        return self.computed >= self.prefill_to

    def append(self, token: int) -> None:
        """Take the token that was chosen; finds out whether it is the last."""
        self.known.append(token)
        self.conclude()

    def conclude(self) -> None:
        """Set `finish` when the newest token of the answer is the last."""
        if not self.chosen:
            return
        if self.known[-1] in self.job.sampling.stop_ids:
            self.finish = FinishReason.STOP
        elif self.chosen >= self.job.max_new_tokens:
            self.finish = FinishReason.LENGTH

    def settle(self, now: Seconds) -> PhaseCost:
        """The cost since the last settlement; what follows is the next phase, which does not queue."""
        started = now if self.started is None else self.started
        cost = PhaseCost(started - self.arrived, self.device_s)
        self.arrived = self.started = now
        self.device_s = 0.0
        return cost
