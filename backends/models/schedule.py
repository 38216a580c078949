"""Who runs in the next step: the places a sequence passes through, and the KV blocks it needs. Pure.

The rules are those of vLLM V1. A step first gives every running sequence its token (or its next prompt
chunk), then admits waiting ones in order of arrival while there are slots (max_num_seqs), tokens
(max_num_batched_tokens) and KV blocks. When a running sequence needs a block and none is left, the sequence
admitted last is preempted: it loses its KV and is computed again later. One rule is stricter than vLLM's
default: the blocks of a whole prompt are reserved at its admission, so that a chunk never fails half way.

    prefill   waiting -> running (chunking) -> running (batch), or held for a peer
    decode    joining -> (room reserved, KV on its way) -> ready -> running (batch)
"""

from __future__ import annotations

from collections import OrderedDict

from backends.models.batch import DecodeBatch
from backends.models.kvcache import BlockPool, blocks_for
from backends.models.messages import PullKV, RunDecode, RunPrefill
from backends.models.metering import Chunk, Tariff, Work
from backends.models.sequence import Sequence, of_decode, of_prefill
from router.model import BackendSpec, Seconds


class Schedule:
    """The sequences of one engine. It knows no time but the one at which a sequence first runs."""

    def __init__(self, spec: BackendSpec, tariff: Tariff) -> None:
        self.pool = BlockPool(spec.kv_capacity_tokens // spec.block_tokens)
        self.batch = DecodeBatch(spec.block_tokens, tariff)
        self.sequences: dict[int, Sequence] = {}
        self.running: dict[int, Sequence] = {}
        """In order of admission."""
        self.chunks: dict[int, tuple[Sequence, Chunk]] = {}
        """What the step in progress prefills."""
        self.fresh: list[Sequence] = []
        """Decodes whose first token comes from the step in progress."""
        self.preemptions = 0
        self._spec = spec
        self._tariff = tariff
        self._pulls: dict[int, RunDecode] = {}
        """Commands whose KV is not here yet."""
        self._joining: OrderedDict[int, Sequence] = OrderedDict()
        """Decodes without room, in order of arrival."""
        self._ready: OrderedDict[int, Sequence] = OrderedDict()
        """Decodes whose KV is here, in order of its arrival; they go before all that wait."""
        self._waiting: OrderedDict[int, Sequence] = OrderedDict()
        """First the preempted, then the others in order of arrival; none has blocks."""
        self._chunking: dict[int, Sequence] = {}
        """Running sequences whose known tokens are not all computed."""

    @property
    def waiting(self) -> int:
        """Sequences that do not run and hold no finished prefill."""
        return len(self._waiting) + len(self._ready) + len(self._pulls)

    @property
    def uncomputed_tokens(self) -> int:
        """Prompt tokens that wait for prefill, or for the rest of it."""
        return sum(sequence.missing for sequence in (*self._waiting.values(), *self._chunking.values()))

    # --- coming and going --------------------------------------------------------------------------

    def add(self, command: RunPrefill | RunDecode, now: Seconds) -> None:
        """Queue a command; its key is not in use."""
        if isinstance(command, RunPrefill):
            sequence = of_prefill(command, self._spec.block_tokens, now)
            self._waiting[command.key] = sequence
        else:
            sequence = self._joining[command.key] = of_decode(command, now)
            self._pulls[command.key] = command
        self.sequences[command.key] = sequence

    def loaded(self, key: int) -> Sequence | None:
        """The KV of a reserved decode is here: it runs once there is a slot. None if nobody waits for it."""
        if key in self._joining or self._pulls.pop(key, None) is None:
            return None
        sequence = self._ready[key] = self.sequences[key]
        return sequence

    def forget(self, sequence: Sequence, grown: int = 0) -> None:
        """Drop a sequence from wherever it is and free its blocks, those of `grown` steps ahead included."""
        key = sequence.key
        if key in self.batch.members:
            self.batch.leave(sequence, grown)
        del self.sequences[key]
        places = (self._pulls, self._joining, self._ready, self._waiting, self.running, self._chunking)
        for place in places:
            place.pop(key, None)
        self._free(sequence)

    def _free(self, sequence: Sequence) -> None:
        self.pool.free(sequence.private)
        self.pool.release(sequence.shared)
        sequence.private, sequence.shared, sequence.published = 0, [], 0

    # --- after a step ------------------------------------------------------------------------------

    def grow(self, after: int, until: int) -> None:
        """Take the blocks of the steps after the next `after` ones, up to the next `until` ones."""
        taken = self.pool.allocate(self.batch.growth(after, until))
        assert taken, "a stretch is no longer than its blocks last, and nobody else takes blocks meanwhile"

    def completed(self) -> list[Sequence]:
        """Count the chunks of a step that is over; the sequences that now have all their known tokens."""
        done = [sequence for sequence, chunk in self.chunks.values() if self._computed(sequence, chunk)]
        self.chunks, self.fresh = {}, []
        return done

    def _computed(self, sequence: Sequence, chunk: Chunk) -> bool:
        if self.running.get(sequence.key) is not sequence:
            return False  # stopped in the middle of the step
        sequence.computed += chunk.tokens
        self._publish(sequence)
        if sequence.missing > 0:
            return False
        del self._chunking[sequence.key]
        return True

    def _publish(self, sequence: Sequence) -> None:
        """Full blocks of the prompt become part of the prefix cache."""
        full = min(len(sequence.hashes), sequence.computed // self._spec.block_tokens)
        for one in sequence.hashes[sequence.published : full]:
            if self.pool.publish(one):
                sequence.private -= 1
                sequence.shared.append(one)
        sequence.published = max(sequence.published, full)

    def hold(self, sequence: Sequence) -> None:
        """A prefill that hands over runs no more; its blocks stay until it is forgotten."""
        del self.running[sequence.key]

    # --- before a step -----------------------------------------------------------------------------

    def plan(self, at: Seconds) -> list[PullKV]:
        """Put the next step together: `chunks`, `fresh`, the batch; with `running` empty there is none."""
        preempted = self._make_room()
        pulls = self.reserve()
        for sequence in self._chunking.values():
            self._take_chunk(sequence)
        if not preempted or not self.running:
            self._admit(at)
        while self._ready and not self.running:
            # Those with KV in hand keep each other from running: the last gives its room up.
            self._preempt(next(reversed(self._ready.values())))
            self._admit(at)
        return pulls

    def work(self) -> Work:
        """What the step that was put together works on."""
        chunks = tuple([chunk for _, chunk in self.chunks.values()])
        return self._tariff.work(len(self.batch), self.batch.context_tokens, chunks)

    def uneventful_steps(self, at_most: int) -> int:
        """Equal steps from here: until a sequence ends, the blocks run out, or something is new."""
        if self.chunks or self.fresh:
            return 1
        return self.batch.steps_within(self.pool.available, min(self.batch.steps_left(), at_most))

    def reserve(self) -> list[PullKV]:
        """Give room to decodes whose KV is still at the producer, in order of arrival."""
        pulls: list[PullKV] = []
        while self._joining and len(self._pulls) - len(self._joining) < self._spec.max_num_seqs:
            if self._waiting and next(iter(self._waiting.values())).was_preempted:
                break  # or new decodes would starve the one that lost its room
            key, sequence = next(iter(self._joining.items()))
            blocks = blocks_for(sequence.computed, self._spec.block_tokens)
            if not self.pool.allocate(blocks):
                break
            del self._joining[key]
            sequence.private = blocks
            pulls.append(PullKV(key, self._pulls[key].kv))
        return pulls

    def _make_room(self) -> bool:
        """Take the blocks that the batch needs next; preempt from the last admitted until they suffice."""
        preempted = False
        while not self.pool.allocate(self.batch.growth(0, 1)):
            self._preempt(next(reversed(self.running.values())))
            preempted = True
        return preempted

    def _preempt(self, sequence: Sequence) -> None:
        if sequence.key in self.batch.members:
            self.batch.leave(sequence)
        for place in (self.running, self._chunking, self._ready):
            place.pop(sequence.key, None)
        self._free(sequence)
        sequence.computed, sequence.was_preempted = 0, True
        self._waiting[sequence.key] = sequence
        self._waiting.move_to_end(sequence.key, last=False)
        self.preemptions += 1

    def _admit(self, at: Seconds) -> None:
        while len(self.running) < self._spec.max_num_seqs and self._budget() > 0:
            queue = self._ready or self._waiting
            sequence = next(iter(queue.values()), None)
            if sequence is None:
                return
            if not (self._admit_ready(sequence) if queue is self._ready else self._admit_new(sequence)):
                return
            del queue[sequence.key]
            self.running[sequence.key] = sequence
            if sequence.started is None:
                sequence.started = at

    def _admit_ready(self, sequence: Sequence) -> bool:
        """Let a sequence run whose KV came from a peer."""
        blocks = blocks_for(sequence.known, self._spec.block_tokens) - sequence.private
        if not self.pool.allocate(blocks):
            return False
        sequence.private += blocks
        if sequence.missing > 1:
            self._start_chunks(sequence)
        else:
            self.batch.join(sequence)
            self.fresh.append(sequence)
        return True

    def _admit_new(self, sequence: Sequence) -> bool:
        """Reserve the blocks of all known tokens, less those found in the prefix cache."""
        size = self._spec.block_tokens
        # One token at least is computed, or there would be nothing to sample the next one from.
        hits = self.pool.match(sequence.hashes, (sequence.known - 1) // size)
        cached = sequence.hashes[:hits]
        blocks = blocks_for(sequence.known, size) - hits
        if blocks + self.pool.idle_among(cached) > self.pool.available:
            return False
        self.pool.acquire(cached)
        self.pool.allocate(blocks)
        sequence.shared, sequence.private, sequence.published = list(cached), blocks, hits
        sequence.computed = hits * size
        if not sequence.was_preempted:
            sequence.cached_tokens = sequence.computed
        self._start_chunks(sequence)
        return True

    def _start_chunks(self, sequence: Sequence) -> None:
        self._chunking[sequence.key] = sequence
        self._take_chunk(sequence)

    def _take_chunk(self, sequence: Sequence) -> None:
        if (tokens := min(sequence.missing, self._budget())) > 0:
            self.chunks[sequence.key] = (sequence, Chunk(tokens, sequence.computed))

    def _budget(self) -> int:
        """Tokens left for the step that is being put together."""
        taken = sum(chunk.tokens for _, chunk in self.chunks.values())
        return self._spec.max_num_batched_tokens - len(self.batch) - taken
