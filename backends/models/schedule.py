"""Who runs in the next step: the places a sequence passes through, and the KV blocks it needs. Pure.

The rules are those of vLLM V1. A step first gives every running sequence its token (or its next prompt
chunk), then admits waiting ones in order of arrival while there are slots (max_num_seqs), tokens
(max_num_batched_tokens) and KV blocks. When a running sequence needs a block and none is left, the sequence
admitted last is preempted: it loses its KV and is computed again later. One rule is stricter than vLLM's
default: the blocks of a whole prompt are reserved at its admission, so that a chunk never fails half way.
What a step may hold depends on the hardware (forming.py): where it is either prompts or decodes, prompts go
first and the two take turns.

With async_scheduling a step is put together when the one before it begins. What arrives, and the room that
ends free, during a step is therefore out of sight of the next one, and counts from the one after it.

One model is in the device at a time. Work for another one waits at the head of its queue until what runs has
ended, and then wants the other model loaded; so requests are served in order of arrival, whatever it costs.

    prefill   waiting -> running (chunking) -> running (batch), or held for a peer
    decode    joining -> (room reserved, KV on its way) -> ready -> running (batch)
"""

from __future__ import annotations

from collections import OrderedDict

from backends.models.batch import DecodeBatch
from backends.models.blocks import Blocks
from backends.models.forming import StepForm
from backends.models.messages import PullKV, RunDecode, RunPrefill
from backends.models.metering import Chunk, Tariff, Work
from backends.models.sequence import Sequence, of_decode, of_prefill
from router.model import BackendSpec, Seconds


class Schedule:
    """The sequences of one engine. It knows no time but the one at which a sequence first runs."""

    def __init__(self, spec: BackendSpec, tariff: Tariff, form: StepForm) -> None:
        self.blocks = Blocks(spec.kv_capacity_tokens // spec.block_tokens, spec.block_tokens)
        self.batch = DecodeBatch(spec.block_tokens, tariff)
        self.sequences: dict[int, Sequence] = {}
        self.running: dict[int, Sequence] = {}
        """In order of admission."""
        self.chunks: dict[int, tuple[Sequence, Chunk]] = {}
        """What the step in progress prefills."""
        self.fresh: list[Sequence] = []
        """Decodes whose first token comes from the step in progress."""
        self.preemptions = 0
        self.model = 0
        """The model in the device, by its position among the backend's."""
        self.wanted: int | None = None
        """The model that has to be loaded before anything can run."""
        self._spec = spec
        self._tariff = tariff
        self._form = form
        self._taken = 0
        """Prompt tokens in `chunks`."""
        self._prompts_turn = True
        """Whether prompts may be in the step."""
        self._prefilled = False
        """Whether the last step of an engine that takes turns was a prefill."""
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
        self._unseen: OrderedDict[int, Sequence] = OrderedDict()
        """Arrived after the next step was put together (async_scheduling)."""
        self._leaving: list[Sequence] = []
        """Ended after the next step was put together; they hold slots and blocks until it is."""
        self._unsettled = False
        """Whether the step that was put together left out somebody whom the next one may take."""

    @property
    def waiting(self) -> int:
        """Sequences that do not run and hold no finished prefill."""
        return len(self._waiting) + len(self._unseen) + len(self._ready) + len(self._pulls)

    @property
    def uncomputed_tokens(self) -> int:
        """Prompt tokens that wait for prefill, or for the rest of it."""
        if not (self._waiting or self._unseen or self._chunking):
            return 0
        queued = (*self._waiting.values(), *self._unseen.values(), *self._chunking.values())
        return sum(sequence.missing for sequence in queued)

    # --- coming and going --------------------------------------------------------------------------

    def add(self, command: RunPrefill | RunDecode, now: Seconds) -> None:
        """Queue a command; its key is not in use."""
        if isinstance(command, RunPrefill):
            sequence = of_prefill(command, self._spec, now)
            hidden = self._spec.async_scheduling and self.running
            (self._unseen if hidden else self._waiting)[command.key] = sequence
        else:
            sequence = self._joining[command.key] = of_decode(command, self._spec, now)
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
        queues = (self._pulls, self._joining, self._ready, self._waiting, self._unseen)
        for place in (*queues, self.running, self._chunking):
            place.pop(key, None)
        self.blocks.free(sequence)

    def retire(self, sequence: Sequence) -> None:
        """Drop a sequence that ended; its room is free once the scheduler can know."""
        if sequence.key not in self.running:
            self.forget(sequence)
            return
        if sequence.key in self.batch.members:
            self.batch.leave(sequence)
        del self.sequences[sequence.key], self.running[sequence.key]
        if self._spec.async_scheduling:
            self._leaving.append(sequence)
        else:
            self.blocks.free(sequence)

    def settle(self) -> None:
        """Let the scheduler see what arrived and ended."""
        if self._leaving:
            for sequence in self._leaving:
                self.blocks.free(sequence)
            self._leaving.clear()
        if self._unseen:
            self._waiting.update(self._unseen)
            self._unseen.clear()

    # --- after a step ------------------------------------------------------------------------------

    def grow(self, after: int, until: int) -> None:
        """Take the blocks of the steps after the next `after` ones, up to the next `until` ones."""
        if not self.decodes:
            return
        taken = self.blocks.pool.allocate(self.batch.growth(after, until))
        assert taken, "a stretch is no longer than its blocks last, and nobody else takes blocks meanwhile"

    def completed(self) -> list[Sequence]:
        """Count the chunks of a step that is over; the sequences that now have all their known tokens."""
        if self.decodes and self.fresh:
            self.fresh = []
        if not self.chunks:
            return []
        done = [sequence for sequence, chunk in self.chunks.values() if self._computed(sequence, chunk)]
        self.chunks, self._taken = {}, 0
        return done

    def _computed(self, sequence: Sequence, chunk: Chunk) -> bool:
        if self.running.get(sequence.key) is not sequence:
            return False  # stopped in the middle of the step
        sequence.computed += chunk.tokens
        self.blocks.publish(sequence)
        if sequence.missing > 0:
            return False
        del self._chunking[sequence.key]
        return True

    def hold(self, sequence: Sequence) -> None:
        """A prefill that hands over runs no more; its blocks stay until it is forgotten."""
        del self.running[sequence.key]

    # --- before a step -----------------------------------------------------------------------------

    @property
    def decodes(self) -> int:
        """Sequences that decode in the step that was put together."""
        return 0 if self.chunks and self._form.takes_turns else len(self.batch.members)

    def plan(self, at: Seconds) -> list[PullKV]:
        """Put the next step together: `chunks`, `fresh`, the batch; with `running` empty there is none."""
        self._unsettled = bool(self._leaving or self._unseen)
        self.wanted = None
        pulls = self._plan_turn(at) if self._form.takes_turns else self._plan_step(at)
        while self._ready and not self.running and self.wanted is None:
            # Those with KV in hand keep each other from running: the last gives its room up.
            self._preempt(next(reversed(self._ready.values())))
            self._admit(at, prompts=not self._form.takes_turns)
            if self._form.takes_turns and not self.running:
                self._take_prompts(at)
        self.settle()
        return pulls

    def _plan_step(self, at: Seconds) -> list[PullKV]:
        """Decodes and prompts in one step."""
        preempted = self._make_room()
        if not self.running:
            self.settle()  # nothing was put together ahead
        pulls = self.reserve()
        for sequence in self._chunking.values():
            self._take_chunk(sequence)
        if preempted and self.running:
            self._unsettled = True  # nobody is admitted in this step, but somebody may be in the next
        elif self._waiting or self._ready:
            self._admit(at)
        return pulls

    def _plan_turn(self, at: Seconds) -> list[PullKV]:
        """Decodes or prompts: after a prefill the decodes go first, otherwise prompts do."""
        if not self.running:
            self.settle()
        pulls = self.reserve()
        self._prompts_turn = not (self._prefilled and self.batch.members)
        if self._prompts_turn:
            self._take_prompts(at)
        if not self.chunks:
            self._unsettled |= self._make_room()  # whoever lost its room may be back with the next step
            self._admit(at, prompts=False)
            if not self.batch.members:
                # Whoever decoded lost its room, or what came from a peer lacks a part of its prompt.
                self._prompts_turn = True
                self._take_prompts(at)
        self._prefilled = bool(self.chunks)
        return pulls

    def _take_prompts(self, at: Seconds) -> None:
        for sequence in self._chunking.values():
            self._take_chunk(sequence)
        self._admit(at, decodes=False)

    def work(self) -> Work:
        """What the step that was put together works on."""
        decodes = self.decodes
        chunks = tuple([chunk for _, chunk in self.chunks.values()]) if self.chunks else ()
        return self._tariff.work(decodes, self.batch.context_tokens if decodes else 0, chunks)

    def uneventful_steps(self, at_most: int) -> int:
        """Equal steps from here: until a sequence ends, the blocks run out, or something is new."""
        if self.chunks or self.fresh or self._unsettled or not self._prompts_turn:
            return 1
        return self.batch.steps_within(self.blocks.pool.available, min(self.batch.steps_left(), at_most))

    def reserve(self) -> list[PullKV]:
        """Give room to decodes whose KV is still at the producer, in order of arrival."""
        pulls: list[PullKV] = []
        if not self._joining:
            return pulls
        while self._joining and len(self._pulls) - len(self._joining) < self._spec.max_num_seqs:
            if self._waiting and next(iter(self._waiting.values())).was_preempted:
                break  # or new decodes would starve the one that lost its room
            key, sequence = next(iter(self._joining.items()))
            if not self.blocks.reserve(sequence):
                break
            del self._joining[key]
            pulls.append(PullKV(key, self._pulls[key].kv))
        return pulls

    def _make_room(self) -> bool:
        """Take the blocks that the batch needs next; preempt from the last admitted until they suffice."""
        preempted = False
        if not self.batch.members:
            return preempted
        while not self.blocks.pool.allocate(self.batch.growth(0, 1)):
            self._preempt(next(reversed(self.running.values())))
            preempted = True
        return preempted

    def _preempt(self, sequence: Sequence) -> None:
        if sequence.key in self.batch.members:
            self.batch.leave(sequence)
        for place in (self.running, self._chunking, self._ready):
            place.pop(sequence.key, None)
        self.blocks.free(sequence)
        sequence.computed, sequence.was_preempted = 0, True
        self._waiting[sequence.key] = sequence
        self._waiting.move_to_end(sequence.key, last=False)
        self.preemptions += 1

    def _admit(self, at: Seconds, *, decodes: bool = True, prompts: bool = True) -> None:
        """Let sequences run in order: first those whose KV came from a peer, then those with prompts."""
        while (queue := self._queue(decodes, prompts)) and self._has_place(queue is self._ready):
            sequence = next(iter(queue.values()))
            if sequence.model != self.model:
                # What runs ends first; then the device is free for the other model.
                self.wanted = None if self.running or self._leaving else sequence.model
                return
            goes_on = queue is self._ready
            if not (self.blocks.complete(sequence) if goes_on else self.blocks.admit(sequence)):
                return
            self._start(sequence, goes_on)
            del queue[sequence.key]
            self.running[sequence.key] = sequence
            if sequence.started is None:
                sequence.started = at

    def _queue(self, decodes: bool, prompts: bool) -> OrderedDict[int, Sequence] | None:
        """Where the next one comes from; prompts do not overtake a decode that needs another model."""
        if not self._ready:
            return self._waiting if prompts else None
        if decodes:
            return self._ready
        return self._waiting if next(iter(self._ready.values())).model == self.model else None

    def _has_place(self, decodes: bool) -> bool:
        """Whether one more sequence, that goes on with decode or begins with its prompt, fits the step."""
        taken = len(self.running) + len(self._leaving)
        if taken + (0 if decodes else len(self._ready)) >= self._form.slots:
            return False
        return (decodes and not self._form.shares_budget) or self._room() > 0

    def _start(self, sequence: Sequence, goes_on: bool) -> None:
        """With KV from a peer and one token missing it decodes; otherwise it needs a prefill first."""
        if goes_on and sequence.missing == 1:
            self.batch.join(sequence)
            self.fresh.append(sequence)
            return
        self._chunking[sequence.key] = sequence
        self._take_chunk(sequence)

    def _take_chunk(self, sequence: Sequence) -> None:
        if (tokens := min(sequence.missing, self._room())) > 0:
            chunk = Chunk(tokens, sequence.computed, self._form.padded(tokens))
            self.chunks[sequence.key] = (sequence, chunk)
            self._taken += tokens

    def _room(self) -> int:
        """Prompt tokens that may still join the step that is being put together."""
        if not self._prompts_turn:
            return 0
        return self._form.room(len(self.batch.members), len(self.chunks), self._taken)
