"""Who runs in the next step, and in which pages. Pure: no tensors, no clock.

The rules are those of the mock's engine (backends/models/schedule.py), which are vLLM V1's: a step gives
every decoding sequence its token, then goes on with prompts that were begun, then admits waiting ones in
order of arrival while there are places, tokens and pages. Pages for a whole prompt are taken at its
admission, so that a chunk never fails half way. When a decode needs a page and none is left, the sequence
admitted last loses its own and is computed again later.

    prefill   waiting -> running, or held for a peer
    decode    joining -> (room reserved) pulling -> ready -> running
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from backends.reference.cache import FreeBlocks
from backends.reference.sequence import Sequence
from router.model import Seconds

Queue = OrderedDict[int, Sequence]


@dataclass(frozen=True, slots=True)
class Task:
    """What one sequence computes in a step."""

    sequence: Sequence
    tokens: int
    start: int
    decodes: bool

    @property
    def chooses(self) -> bool:
        """Whether all its known tokens are computed then, so that the next one can be chosen."""
        return self.start + self.tokens == len(self.sequence.known)


class Scheduler:
    """The sequences of one incarnation."""

    def __init__(self, blocks: FreeBlocks, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.blocks = blocks
        self.sequences: dict[int, Sequence] = {}
        self.running: Queue = OrderedDict()
        """In order of admission."""
        self.preemptions = 0
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._waiting: Queue = OrderedDict()
        """First the preempted, then the others in order of arrival; none has pages."""
        self._joining: Queue = OrderedDict()
        """Decodes without room for their KV."""
        self._pulling: Queue = OrderedDict()
        """Decodes whose KV is on its way."""
        self._ready: Queue = OrderedDict()
        """Decodes whose KV is here; they go before all that wait."""

    @property
    def waiting(self) -> int:
        """Sequences that do not run and hold no finished prefill."""
        return len(self._waiting) + len(self._joining) + len(self._pulling) + len(self._ready)

    @property
    def uncomputed_tokens(self) -> int:
        """Prompt tokens that wait for prefill, or for the rest of it."""
        chunking = [sequence for sequence in self.running.values() if not sequence.decodes]
        return sum(sequence.missing for sequence in (*self._waiting.values(), *chunking))

    # --- coming and going --------------------------------------------------------------------------

    def add(self, sequence: Sequence, *, from_peer: bool) -> None:
        """Queue a sequence; its key is not in use."""
        self.sequences[sequence.key] = sequence
        (self._joining if from_peer else self._waiting)[sequence.key] = sequence

    def reserve(self) -> list[Sequence]:
        """Give room to decodes whose KV is at a peer, in order of arrival; their KV may be pulled now."""
        reserved: list[Sequence] = []
        while self._joining and len(self._pulling) + len(self._ready) < self._max_num_seqs:
            key, sequence = next(iter(self._joining.items()))
            preempted_first = self._waiting and next(iter(self._waiting.values())).computed_again
            if preempted_first or not self.blocks.extend(sequence.table, len(sequence.job.prompt)):
                break  # new decodes must not starve the one that lost its room
            self._pulling[key] = self._joining.pop(key)
            reserved.append(sequence)
        return reserved

    def arrived(self, key: int) -> None:
        """The KV of a reserved decode is here: it runs once there is a place."""
        self._ready[key] = self._pulling.pop(key)

    def hold(self, sequence: Sequence) -> None:
        """A prefill that hands over runs no more; its pages stay until it is removed."""
        self.running.pop(sequence.key, None)

    def remove(self, key: int) -> Sequence | None:
        """Forget a sequence wherever it is; its pages are free at once."""
        sequence = self.sequences.pop(key, None)
        if sequence is None:
            return None
        for place in (self.running, self._waiting, self._joining, self._pulling, self._ready):
            place.pop(key, None)
        self.blocks.give_back(sequence.table)
        return sequence

    # --- a step ------------------------------------------------------------------------------------

    def plan(self, now: Seconds) -> list[Task]:
        """Put the next step together; empty when nothing can run."""
        preempted = self._make_room()
        tasks = [_task(sequence, 1) for sequence in self.running.values() if sequence.decodes]
        budget = self._max_num_batched_tokens - len(tasks)
        for sequence in self.running.values():
            if not sequence.decodes and budget > 0:
                tasks.append(_task(sequence, min(sequence.missing, budget)))
                budget -= tasks[-1].tokens
        if not preempted:
            self._admit(tasks, budget, now)
        while not tasks and self._ready and not self.running:
            # Those with KV in hand keep each other from running: the last gives its room up.
            self._preempt(next(reversed(self._ready.values())))
            self._admit(tasks, budget, now)
        return tasks

    def _make_room(self) -> bool:
        """Take the pages that decodes need next; preempt from the last admitted until they suffice."""
        preempted = False
        for sequence in tuple(self.running.values()):
            while sequence.key in self.running and sequence.decodes:
                if self.blocks.extend(sequence.table, len(sequence.known)):
                    break
                self._preempt(next(reversed(self.running.values())))
                preempted = True
        return preempted

    def _preempt(self, sequence: Sequence) -> None:
        self.running.pop(sequence.key, None)
        self._ready.pop(sequence.key, None)
        self.blocks.give_back(sequence.table)
        sequence.computed, sequence.computed_again = 0, True
        sequence.prefill_to = len(sequence.known)
        self._waiting[sequence.key] = sequence
        self._waiting.move_to_end(sequence.key, last=False)
        self.preemptions += 1

    def _admit(self, tasks: list[Task], budget: int, now: Seconds) -> None:
        """Let sequences run in order: first those whose KV came from a peer, then those with prompts."""
        while (queue := self._ready or self._waiting) and len(self.running) < self._max_num_seqs:
            key, sequence = next(iter(queue.items()))
            if budget <= 0 or not self.blocks.extend(sequence.table, len(sequence.known)):
                return
            self.running[key] = queue.pop(key)
            if sequence.started is None:
                sequence.started = now
            tasks.append(_task(sequence, min(sequence.missing, budget)))
            budget -= tasks[-1].tokens


def _task(sequence: Sequence, tokens: int) -> Task:
    return Task(sequence, tokens, sequence.computed, sequence.decodes)
