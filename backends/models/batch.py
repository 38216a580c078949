"""The decoding sequences of an engine, kept so that a step costs the same however many they are. Pure.

Every member takes part in every step, so all of them advance with one step counter: a member's context, token
index and end are the counter plus a constant. New KV blocks are needed when a context crosses a block
boundary; members are counted by the counter's residue at which theirs does.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Items

from backends.models.kvcache import blocks_for
from backends.models.metering import Bill, Meter, Tariff
from backends.models.sequence import Sequence


class DecodeBatch:
    """Members in order of joining."""

    __slots__ = (
        "_block", "_columns", "_crossings", "_ends", "_offsets", "_tariff", "members", "meter", "step",
    )  # fmt: skip

    def __init__(self, block_tokens: int, tariff: Tariff) -> None:
        self.members: dict[int, Sequence] = {}
        self.step = 0
        """Steps since the batch was last empty."""
        self._block = block_tokens
        self._tariff = tariff
        self.meter = Meter()
        self._offsets = 0
        self._crossings = [0] * block_tokens
        self._ends: list[tuple[int, int]] = []
        self._columns: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __len__(self) -> int:
        return len(self.members)

    @property
    def context_tokens(self) -> int:
        """Sum of the contexts of the next step; a context includes the token that is computed."""
        return len(self.members) * (self.step + 1) + self._offsets

    def tokens_of(self, ahead: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Keys, and the indices of their tokens, of the step that is `ahead` steps from the next."""
        if self._columns is None:
            offsets = tuple([member.index_offset for member in self.members.values()])
            self._columns = (tuple(self.members), offsets)
        keys, offsets = self._columns
        step = self.step + ahead
        return keys, tuple([step + offset for offset in offsets])

    def join(self, sequence: Sequence) -> None:
        """Take part from the next step on. One token of the sequence is missing, at least one is to come."""
        if not self.members:
            self._restart()
        sequence.computed_offset = sequence.computed - self.step
        sequence.index_offset = sequence.next_index - self.step
        sequence.ends_at_step = self.step + sequence.output_tokens - sequence.next_index
        sequence.reading = self.meter.read()
        self.members[sequence.key] = sequence
        self._columns = None
        self._offsets += sequence.computed_offset
        self._crossings[-sequence.computed_offset % self._block] += 1
        heapq.heappush(self._ends, (sequence.ends_at_step, sequence.key))

    def leave(self, sequence: Sequence, grown: int = 0) -> None:
        """Take no part any more; blocks were taken for `grown` steps ahead of the counter."""
        del self.members[sequence.key]
        self._columns = None
        self._offsets -= sequence.computed_offset
        self._crossings[-sequence.computed_offset % self._block] -= 1
        sequence.computed = self.step + sequence.computed_offset
        sequence.next_index = self.step + sequence.index_offset
        sequence.private = blocks_for(sequence.computed + grown, self._block) - len(sequence.shared)
        assert sequence.reading is not None, "a member has a reading from joining on"
        sequence.charge(*self.meter.owed(sequence.reading, sequence.computed_offset + 1))
        sequence.reading = None

    def advance(self, bill: Bill) -> Items[Sequence]:
        """Count steps that are over; return the members that thereby have all their tokens."""
        self._tariff.meter(self.meter, bill, self.step)
        self.step += bill.span.steps
        if not self._ends or self._ends[0][0] > self.step:
            return ()
        ended: dict[int, Sequence] = {}  # one that left and joined anew between two steps is listed twice
        while self._next_end() == self.step:
            _, key = heapq.heappop(self._ends)
            ended[key] = self.members[key]
        return tuple(ended.values())

    def steps_left(self) -> int:
        """Steps until the next member ends; there must be a member."""
        return self._next_end() - self.step

    def growth(self, after: int, until: int) -> int:
        """Blocks that the steps after the next `after` ones, up to the next `until` ones, will need."""
        if until - after == 1:
            return self._crossings[(self.step + after) % self._block]
        rounds, rest = divmod(until - after, self._block)
        first, crossings = (self.step + after) % self._block, self._crossings
        partial = sum(crossings[first : first + rest]) + sum(crossings[: max(0, first + rest - self._block)])
        return rounds * len(self.members) + partial

    def steps_within(self, blocks: int, steps: int) -> int:
        """How many steps, of at most `steps`, need no more than `blocks` blocks beyond the next step's."""
        if len(self.members) * (steps // self._block + 1) <= blocks or self.growth(1, steps) <= blocks:
            return steps
        enough, wanting = 1, steps
        while wanting - enough > 1:
            middle = (enough + wanting) // 2
            if self.growth(1, middle) <= blocks:
                enough = middle
            else:
                wanting = middle
        return enough

    def _next_end(self) -> int:
        """Step at which the next member ends, or -1; entries of members that left go away."""
        while self._ends:
            step, key = self._ends[0]
            member = self.members.get(key)
            if member is not None and member.ends_at_step == step:
                return step
            heapq.heappop(self._ends)
        return -1

    def _restart(self) -> None:
        """Begin the counters anew, or the meter would lose precision over weeks."""
        self.step = 0
        self.meter.reset()
        self._ends.clear()
