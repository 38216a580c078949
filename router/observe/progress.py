"""Where every live request is, derived from facts and actions alone. No metrics, no clock.

The core keeps its own ledger of bookings; this one follows what was commanded and reported, so that
metrics need nothing from the core but its tap.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from router.core.messages import (
    FailRequest,
    FinishRequest,
    KVMoved,
    NotePreempted,
    NoteRetry,
    PhaseFailed,
    PrefillDone,
    RequestArrived,
    StartDecode,
    StartPrefill,
    StopPhase,
)
from router.model import Phase, Priority


class Stage(StrEnum):
    """What a live request is waiting for or doing."""

    QUEUE = "queue"
    PREFILL = "prefill"
    HANDOFF = "handoff"
    DECODE = "decode"


@dataclass(slots=True)
class Journey:
    """One live request. Mutable; lives inside Progress."""

    priority: Priority
    stage: Stage = Stage.QUEUE
    epoch: int = -1
    decode_here: bool = False
    prefill: str = ""
    """Backend of the latest prefill; stays after the prefill ended, to name the source of a handoff."""
    decode: str = ""
    prefilling: bool = False
    decoding: bool = False

    @property
    def is_waiting_again(self) -> bool:
        """Whether an attempt failed and the next one has not begun."""
        return self.stage is Stage.QUEUE and self.epoch > 0


class Progress:
    """The live requests by stage, and the running phases by backend. Bounded by the requests in the core."""

    def __init__(self) -> None:
        self._journeys: dict[str, Journey] = {}
        self.stages: Counter[Stage] = Counter()
        self.queued: Counter[Priority] = Counter()
        self.in_flight: Counter[tuple[str, Phase]] = Counter()

    def of(self, request_id: str, epoch: int | None = None) -> Journey | None:
        """A live request; with an epoch, only if that is the one it is in."""
        journey = self._journeys.get(request_id)
        if journey is not None and epoch is not None and journey.epoch != epoch:
            return None
        return journey

    def take_fact(self, fact: Any) -> None:
        """Follow a fact. Facts of an epoch that is over change nothing."""
        match fact:
            case RequestArrived(request):
                self._arrive(request.id, request.priority)
            case PrefillDone(request_id=rid, epoch=epoch):
                self._prefilled(self.of(rid, epoch))
            case KVMoved(request_id=rid, epoch=epoch):
                if (journey := self.of(rid, epoch)) is not None:
                    self._enter(journey, Stage.DECODE)
            case PhaseFailed(request_id=rid, epoch=epoch, phase=phase):
                self._phase_over(self.of(rid, epoch), phase)
            case _:
                pass

    def take_action(self, action: Any) -> None:
        """Follow an action."""
        match action:
            case StartPrefill() if (journey := self.of(action.request_id)) is not None:
                self._start_prefill(journey, action)
            case StartDecode() if (journey := self.of(action.request_id)) is not None:
                self._start_decode(journey, action)
            case StopPhase() if (journey := self.of(action.request_id, action.epoch)) is not None:
                self._stop(journey, action.backend)
            case NoteRetry() | NotePreempted() if (journey := self.of(action.request_id)) is not None:
                self._halt(journey)
                self._enter(journey, Stage.QUEUE)
            case FinishRequest() | FailRequest():
                self._leave(action.request_id)
            case _:
                pass

    def _arrive(self, request_id: str, priority: Priority) -> None:
        self._leave(request_id)  # a second arrival of an id would leak the first one's counts
        self._journeys[request_id] = Journey(priority)
        self.stages[Stage.QUEUE] += 1
        self.queued[priority] += 1

    def _leave(self, request_id: str) -> None:
        journey = self._journeys.pop(request_id, None)
        if journey is None:
            return
        self._halt(journey)
        self.stages[journey.stage] -= 1
        if journey.stage is Stage.QUEUE:
            self.queued[journey.priority] -= 1

    def _enter(self, journey: Journey, stage: Stage) -> None:
        if journey.stage is stage:
            return
        self.stages[journey.stage] -= 1
        self.stages[stage] += 1
        if journey.stage is Stage.QUEUE:
            self.queued[journey.priority] -= 1
        elif stage is Stage.QUEUE:
            self.queued[journey.priority] += 1
        journey.stage = stage

    def _start_prefill(self, journey: Journey, action: StartPrefill) -> None:
        self._halt(journey)
        journey.epoch, journey.decode_here = action.epoch, action.decode_here
        journey.prefill, journey.decode = action.backend, ""
        journey.prefilling = True
        self._count(journey.prefill, Phase.PREFILL, 1)
        self._enter(journey, Stage.PREFILL)

    def _start_decode(self, journey: Journey, action: StartDecode) -> None:
        self._phase_over(journey, Phase.DECODE)
        journey.epoch = action.epoch
        journey.decode, journey.decoding = action.backend, True
        self._count(journey.decode, Phase.DECODE, 1)
        if not journey.prefilling:
            self._enter(journey, Stage.HANDOFF)

    def _prefilled(self, journey: Journey | None) -> None:
        if journey is None or not journey.prefilling:
            return
        self._phase_over(journey, Phase.PREFILL)
        if not journey.decode_here:
            self._enter(journey, Stage.HANDOFF)
            return
        journey.decode, journey.decoding = journey.prefill, True
        self._count(journey.decode, Phase.DECODE, 1)
        self._enter(journey, Stage.DECODE)

    def _stop(self, journey: Journey, backend: str) -> None:
        if journey.prefill == backend:
            self._phase_over(journey, Phase.PREFILL)
        if journey.decode == backend:
            self._phase_over(journey, Phase.DECODE)

    def _halt(self, journey: Journey) -> None:
        self._phase_over(journey, Phase.PREFILL)
        self._phase_over(journey, Phase.DECODE)

    def _phase_over(self, journey: Journey | None, phase: Phase) -> None:
        if journey is None:
            return
        if phase is Phase.PREFILL and journey.prefilling:
            journey.prefilling = False
            self._count(journey.prefill, phase, -1)
        elif phase is Phase.DECODE and journey.decoding:
            journey.decoding = False
            self._count(journey.decode, phase, -1)

    def _count(self, backend: str, phase: Phase, change: int) -> None:
        """Keep no zeros: a departed backend must leave nothing behind."""
        key = (backend, phase)
        left = self.in_flight[key] + change
        if left:
            self.in_flight[key] = left
        else:
            del self.in_flight[key]
