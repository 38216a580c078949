"""BatchEngine: continuous batching on modelled hardware, as a machine. No I/O, no clock.

Who runs is the schedule's business (schedule.py), how long it takes and who pays the tariff's (metering.py).
The next step starts when the model says that the last one ended, however late the driver calls. Steps that
bring no event form a stretch (stretch.py). With emit_tokens the driver is woken for each step; without, it
is woken only at the end of a stretch, and only the first token of a sequence is shown. Times, costs and ends
are the same.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from random import Random
from typing import assert_never

from backends.models.account import Account, Overhead
from backends.models.forming import form_of
from backends.models.laws import law_of
from backends.models.loading import Loading, check_loading, switch_s
from backends.models.messages import (
    DecodeFinished,
    Failed,
    FailReason,
    KVArrived,
    PrefillFinished,
    PullKV,
    RunDecode,
    RunPrefill,
    StepTokens,
    Stop,
)
from backends.models.metering import Bill, Reading, Tariff
from backends.models.power import check_power, idle_j
from backends.models.schedule import Schedule
from backends.models.sequence import Sequence, refusal
from backends.models.stretch import Cap, Noise, Stretch
from router.errors import ConfigError
from router.model import BackendSnapshot, BackendSpec, Phase, Seconds

EngineCommand = RunPrefill | RunDecode | KVArrived | Stop
EngineEvent = StepTokens | PrefillFinished | PullKV | DecodeFinished | Failed
Events = list[EngineEvent]
Columns = tuple[tuple[int, ...], tuple[int, ...]]
NO_TOKENS: Columns = ((), ())


def check_engine(spec: BackendSpec) -> None:
    """Raise ConfigError when an engine cannot run with these limits."""
    if spec.block_tokens < 1 or spec.kv_capacity_tokens < spec.block_tokens:
        raise ConfigError(
            f"{spec.id}: kv_capacity_tokens must hold at least one block of block_tokens >= 1 tokens."
        )
    if not 1 <= spec.max_num_seqs <= spec.max_num_batched_tokens:
        raise ConfigError(
            f"{spec.id}: max_num_seqs must be from 1 to max_num_batched_tokens "
            f"({spec.max_num_batched_tokens}); otherwise a full batch has no token for some sequence."
        )
    form_of(spec)
    law_of(spec)
    check_loading(spec)
    check_power(spec.power)


class BatchEngine:
    """One backend's scheduler and device.

    A prefill that hands over ends with PrefillFinished whose kv is None: the engine keeps its blocks under
    the key until Stop. PullKV says that blocks are reserved for a RunDecode; KVArrived lets it run.
    """

    def __init__(self, spec: BackendSpec, rng: Random, now: Seconds, *, emit_tokens: bool = True) -> None:
        """Boot at `now`. Raise ConfigError for a spec that cannot run."""
        check_engine(spec)
        self.spec = spec
        self._tariff = Tariff(law_of(spec), spec.power, spec.kv_bytes_per_token)
        self._noise = Noise(spec.step, rng)
        self._cap = Cap.of(spec.power)
        self._schedule = Schedule(spec, self._tariff, form_of(spec))
        self._emit_tokens = emit_tokens
        self._stretch: Stretch | None = None
        self._loading: Loading | None = None
        self._gone: list[tuple[Reading, int]] = []
        """Decodes that were stopped in the stretch in progress: what they owe of it is on nobody's bill."""
        self._due: Seconds | None = None
        self._boot = now
        self._account = Account()

    def __contains__(self, key: int) -> bool:
        """Whether a key is queued, running, or holds KV."""
        return key in self._schedule.sequences

    # --- the machine -------------------------------------------------------------------------------

    def handle(self, message: EngineCommand, now: Seconds) -> Items[EngineEvent]:
        """Take a command; steps that ended by `now` come first."""
        events: Events = list(self.advance(now))
        self._interrupt(now)
        match message:
            case RunPrefill() | RunDecode():
                self._accept(message, now, events)
            case KVArrived(key=key):
                self._loaded(key, now, events)
            case Stop(key=key):
                self._stop(key)
            case _:
                assert_never(message)
        if self._stretch is None and self._loading is None:
            self._begin(now, events)
        else:
            events.extend(self._schedule.reserve())
        self._arm()
        return events

    def advance(self, now: Seconds) -> Items[EngineEvent]:
        """Everything that the model has happen by `now`, in order."""
        events: Events = []
        while (due := self._due) is not None and due <= now:
            if self._loading is not None:
                self._change_models(self._loading, events)
            else:
                self._pass_step(due, events)
            self._arm()
        return events

    def deadline(self) -> Seconds | None:
        """The end of the step in progress, or of the stretch when tokens are not wanted."""
        return self._due

    def _arm(self) -> None:
        """Find the deadline anew; whatever is under way changed."""
        if (stretch := self._stretch) is not None:
            self._due = stretch.end_of(self._following(stretch))
        else:
            self._due = None if self._loading is None else self._loading.ends

    def _following(self, stretch: Stretch) -> int:
        """Steps of the stretch that will be over at the deadline."""
        return stretch.shown + 1 if self._emit_tokens else stretch.steps

    def take_kv_changes(self) -> tuple[list[int], list[int]]:
        """Blocks of the prefix cache, stored and evicted, as BlockPool.take_changes."""
        return self._schedule.blocks.pool.take_changes()

    def snapshot(self, now: Seconds) -> BackendSnapshot:
        """The engine's account of itself; the step in progress counts when it is over."""
        schedule, account, loading = self._schedule, self._account, self._loading
        blocks = schedule.blocks.pool.used
        stretch = self._stretch
        if stretch is not None and not stretch.work.chunks and (done := stretch.done_by(now)):
            # Also where all its steps are over and a late driver has not ended it: counters never go back.
            blocks += schedule.batch.growth(stretch.grown, max(stretch.grown, min(done + 1, stretch.steps)))
            account = account.ahead(self._tariff.bill(stretch.work, stretch.span(done)))
        loaded_s = account.busy_loading_s + (0.0 if loading is None else max(0.0, now - loading.began))
        idle_s = max(0.0, now - self._boot - account.busy_prefill_s - account.busy_decode_s)
        return BackendSnapshot(
            observed_at=now,
            running=len(schedule.running),
            waiting=schedule.waiting,
            waiting_prefill_tokens=schedule.uncomputed_tokens,
            kv_used_tokens=blocks * self.spec.block_tokens,
            busy_prefill_s=account.busy_prefill_s,
            busy_decode_s=account.busy_decode_s,
            energy_j=account.energy_j + idle_j(self.spec.power, idle_s),
            preemptions=schedule.preemptions,
            steps=account.steps,
            decode_sequences=account.decode_sequences,
            context_tokens=float(account.context_tokens),
            prefill_tokens=account.prefill_tokens,
            attention_pairs=account.attention_pairs,
            loading="" if loading is None else self.spec.models[loading.model],
            busy_loading_s=loaded_s,
            busy_attention_s=account.busy_attention_s,
            busy_ffn_s=account.busy_ffn_s,
            busy_transfer_s=account.busy_transfer_s,
        )

    def overhead(self, now: Seconds) -> Overhead:
        """What no request is charged for; with what they are charged it is the whole."""
        account = self._account
        idle_s = max(0.0, now - self._boot - account.busy_prefill_s - account.busy_decode_s)
        return Overhead(account.dropped_s, idle_s, account.dropped_j + idle_j(self.spec.power, idle_s))

    # --- commands ----------------------------------------------------------------------------------

    def _accept(self, command: RunPrefill | RunDecode, now: Seconds, events: Events) -> None:
        key = command.key
        if key in self:
            # Both uses end: which of them the driver means cannot be told.
            self._stop(key)
            reason = f"key {key} is in use; a key names one sequence"
            events.append(Failed(key, FailReason.INVALID, reason))
        elif reason := refusal(command, self.spec):
            events.append(Failed(key, FailReason.INVALID, reason))
        else:
            self._schedule.add(command, now)

    def _loaded(self, key: int, now: Seconds, events: Events) -> None:
        sequence = self._schedule.loaded(key)
        if sequence is not None and sequence.next_index >= sequence.output_tokens:
            self._finish(sequence, now, events)  # the prefill produced the only token

    def _stop(self, key: int) -> None:
        if (sequence := self._schedule.sequences.get(key)) is not None:
            batch = self._schedule.batch
            if self._stretch is not None and self._stretch.work.decodes and key in batch.members:
                self._gone.append((batch.meter.read(), sequence.computed_offset + 1))
            self._schedule.forget(sequence, self._stretch.grown if self._stretch else 0)
            self._account.drop(sequence.device_s, sequence.energy_j)

    def _interrupt(self, now: Seconds) -> None:
        """Let the stretch end with the step in progress, so that what comes now can join the next step."""
        if (stretch := self._stretch) is not None and stretch.steps > 1:
            self._noise.interrupted()
            stretch.steps = min(stretch.steps, stretch.done_by(now) + 1)
            self._grow(stretch)

    def _grow(self, stretch: Stretch) -> None:
        if stretch.steps > stretch.grown:
            self._schedule.grow(stretch.grown, stretch.steps)
            stretch.grown = stretch.steps

    # --- steps -------------------------------------------------------------------------------------

    def _begin(self, at: Seconds, events: Events) -> None:
        """Start the next step, or a stretch of them; with nothing to run the engine is idle."""
        schedule = self._schedule
        if not schedule.sequences:
            schedule.settle()
            return
        if pulls := schedule.plan(at):
            events.extend(pulls)
        if schedule.running:
            steps = schedule.uneventful_steps(self._noise.lookahead)
            work = schedule.work()
            self._stretch = Stretch(at, work, min(steps, work.price.steps), self._noise, self._cap)
        elif schedule.wanted is not None:
            self._loading = Loading(schedule.wanted, at, at + switch_s(self.spec))

    def _change_models(self, loading: Loading, events: Events) -> None:
        self._loading = None
        self._account.busy_loading_s += loading.ends - loading.began
        self._schedule.model = loading.model
        self._begin(loading.ends, events)

    def _pass_step(self, at: Seconds, events: Events) -> None:
        """The step, or the stretch, that is over at `at`."""
        stretch = self._stretch
        assert stretch is not None, "a deadline without loading is that of a stretch"
        if self._following(stretch) < stretch.steps:
            self._show_step(stretch, at, events)
        else:
            self._end_stretch(stretch, at, events)
            self._begin(at, events)

    def _show_step(self, stretch: Stretch, at: Seconds, events: Events) -> None:
        if stretch.work.decodes:
            keys, indices = self._schedule.batch.tokens_of(stretch.shown)
            if keys:
                events.append(StepTokens(at, keys, indices))
        stretch.shown += 1

    def _end_stretch(self, stretch: Stretch, at: Seconds, events: Events) -> None:
        """Book the stretch and report its last step: prefills that go on, tokens, other ends."""
        schedule = self._schedule
        self._grow(stretch)
        bill = self._tariff.bill(stretch.work, stretch.span(stretch.steps))
        self._book(bill)
        keys, indices = self._last_tokens(stretch)
        ended = self._advance_batch(bill) if bill.work.decodes else ()
        self._noise.consume(stretch.steps)
        self._stretch = None
        done = schedule.completed()
        if done:
            self._report_prefills(done, at, events, hands_over=False)
            more_keys, more_indices = self._sample(done)
            keys, indices = keys + more_keys, indices + more_indices
        if keys:
            events.append(StepTokens(at, keys, indices))
        if done:
            self._go_on(done, at, events)
        for sequence in ended:
            self._finish(sequence, at, events)

    def _advance_batch(self, bill: Bill) -> Items[Sequence]:
        ended = self._schedule.batch.advance(bill)
        for reading, offset in self._gone:
            self._account.drop(*self._schedule.batch.meter.owed(reading, offset))
        self._gone.clear()
        return ended

    def _go_on(self, done: Items[Sequence], at: Seconds, events: Events) -> None:
        """Sequences with all their known tokens decode, are held, or were that short."""
        self._report_prefills(done, at, events, hands_over=True)
        for sequence in done:
            if sequence.hands_over:
                continue
            if sequence.next_index < sequence.output_tokens:
                self._schedule.batch.join(sequence)
            else:
                self._finish(sequence, at, events)

    def _last_tokens(self, stretch: Stretch) -> Columns:
        """What the decode batch shows of the last step of a stretch, before it is counted."""
        batch, fresh = self._schedule.batch, self._schedule.fresh
        if not stretch.work.decodes:
            return NO_TOKENS
        if self._emit_tokens:
            return batch.tokens_of(stretch.steps - 1)
        if not fresh:
            return NO_TOKENS
        shown = [one for one in fresh if one.key in batch.members and not one.has_emitted]
        for sequence in shown:
            sequence.has_emitted = True
        step = batch.step + stretch.steps - 1
        return tuple([s.key for s in shown]), tuple([step + s.index_offset for s in shown])

    def _sample(self, done: Items[Sequence]) -> Columns:
        """The tokens of sequences whose known tokens are all computed, as far as they are to be shown."""
        shown: list[tuple[int, int]] = []
        for sequence in done:
            if sequence.hands_over and not self.spec.connector.first_token_from_prefill:
                continue
            if self._emit_tokens or not sequence.has_emitted:
                shown.append((sequence.key, sequence.next_index))
            sequence.next_index += 1
            sequence.has_emitted = True
        return tuple([key for key, _ in shown]), tuple([index for _, index in shown])

    def _report_prefills(
        self, done: Items[Sequence], at: Seconds, events: Events, *, hands_over: bool
    ) -> None:
        """PrefillFinished comes before the first token where decode goes on, after it where it does not."""
        for sequence in done:
            if sequence.hands_over is hands_over and sequence.phase is Phase.PREFILL:
                cost = sequence.settle(at)
                events.append(PrefillFinished(sequence.key, cost, sequence.cached_tokens, None))
                sequence.phase = Phase.DECODE
                if hands_over:
                    self._schedule.hold(sequence)

    def _finish(self, sequence: Sequence, at: Seconds, events: Events) -> None:
        self._schedule.retire(sequence)
        cost = sequence.settle(at)
        events.append(DecodeFinished(sequence.key, cost, sequence.output_tokens, sequence.finish))

    def _book(self, bill: Bill) -> None:
        """Book device time and energy, and charge the chunks; decodes are charged by their meter."""
        if not bill.work.chunks:
            self._account.book(bill, 0.0)
            return
        prefill_s, others = 0.0, bill.work.decodes
        for sequence, chunk in self._schedule.chunks.values():
            share_s, joule = self._tariff.chunk_share(bill, chunk)
            if sequence.key in self._schedule.running:
                sequence.charge(share_s, joule)
            else:
                self._account.drop(share_s, joule)  # stopped in the middle of the step
            if sequence.phase is Phase.PREFILL:
                prefill_s += share_s
            else:
                others += 1
        # What is all of a step is all of it to the last bit.
        self._account.book(bill, prefill_s if others else bill.time_s)
