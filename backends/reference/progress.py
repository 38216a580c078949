"""What a step meant for its sequences: who has a token, whose prompt is done, who is over."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows

from backends.models.messages import (
    DecodeFinished,
    PrefillFinished,
    RunPrefill,
    StepTokens,
    WorkerEvent,
)
from backends.reference.scheduler import Scheduler, Task
from backends.reference.sequence import Sequence
from router.model import KVHandle, Phase, Seconds

Mint = Callable[[RunPrefill, Seconds], KVHandle]
Events = list[WorkerEvent]


class Progress:
    """Turns tokens of steps into events. In front of a step's tokens come the prefills that go on to decode
    here, behind them all other ends."""

    def __init__(self, scheduler: Scheduler, mint: Mint) -> None:
        self._scheduler = scheduler
        self._mint = mint

    def stepped(self, tasks: Rows[Task], tokens: Rows[int], now: Seconds) -> Events:
        """Count a step that is over; `tokens` are those of the tasks that choose."""
        before: Events = []
        after: Events = []
        shown: list[tuple[int, int, int]] = []
        chosen = iter(tokens)
        for task in tasks:
            token = next(chosen) if task.chooses else None
            sequence = task.sequence
            if self._scheduler.sequences.get(sequence.key) is not sequence:
                continue  # stopped in the middle of the step
            sequence.computed += task.tokens
            if token is None:
                continue
            if sequence.phase is Phase.PREFILL and sequence.handover is None:
                before.append(PrefillFinished(sequence.key, sequence.settle(now), 0, None))
                sequence.phase = Phase.DECODE
            shown.append((sequence.key, sequence.chosen, token))
            sequence.append(token)
            self._go_on(sequence, now, after)
        return [*before, *_columns(now, shown), *after]

    def finish(self, sequence: Sequence, now: Seconds) -> DecodeFinished:
        """The answer of a sequence is complete."""
        assert sequence.finish is not None, "only what is over is finished"
        self._scheduler.remove(sequence.key)
        return DecodeFinished(sequence.key, sequence.settle(now), sequence.chosen, sequence.finish)

    def _go_on(self, sequence: Sequence, now: Seconds, events: Events) -> None:
        """A sequence has a new token: it is held for a peer, or over, or decodes on."""
        if sequence.handover is not None:
            handle = self._mint(sequence.handover, now)
            events.append(PrefillFinished(sequence.key, sequence.settle(now), 0, handle))
            self._scheduler.hold(sequence)
        elif sequence.finish is not None:
            events.append(self.finish(sequence, now))


def _columns(now: Seconds, shown: Rows[tuple[int, int, int]]) -> Events:
    if not shown:
        return []
    keys, indices, tokens = zip(*shown, strict=True)
    return [StepTokens(now, keys, indices, tokens)]
