"""The reference engine behind the shell: commands in, steps on the device, events out.

Bookkeeping happens on the loop, between steps; the device's thread only computes. A sequence can therefore be
stopped at any time: its pages are free when the command was read, and what a step in progress still finds
out about it is dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Rows
from contextlib import aclosing
from typing import assert_never

from polyphase.v1 import worker_pb2

from backends.models.custody import Held
from backends.models.messages import (
    AbortServe,
    Failed,
    FailReason,
    KVArrived,
    KVPullFailed,
    KVRefused,
    KVServed,
    KVTaken,
    PullKV,
    Release,
    RunDecode,
    RunPrefill,
    ServeKV,
    Stop,
    WorkerCommand,
)
from backends.reference.account import account_of, snapshot
from backends.reference.attention import Part
from backends.reference.device import Device
from backends.reference.handover import Inflows, Outflow
from backends.reference.intake import Intake
from backends.reference.progress import Events, Progress
from backends.reference.runner import Runner, Step
from backends.reference.scheduler import Scheduler, Task
from backends.reference.sequence import Job, Sequence
from backends.shell import port
from backends.shell.wire import RefusedCommandError
from router.model import BackendSnapshot, BackendSpec, Phase, Seconds

log = logging.getLogger(__name__)


class Engine:
    """One incarnation of a reference worker; implements backends.shell.port.Worker."""

    def __init__(
        self,
        spec: BackendSpec,
        intake: Intake,
        scheduler: Scheduler,
        outflow: Outflow,
        inflows: Inflows,
        runner: Runner,
        device: Device,
        deliver: port.Deliver,
        failed: port.Failed,
    ) -> None:
        self._spec = spec
        self._intake = intake
        self._scheduler = scheduler
        self._outflow = outflow
        self._inflows = inflows
        self._runner = runner
        self._device = device
        self._deliver = deliver
        self._failed = failed
        self._account = account_of(spec)
        self._progress = Progress(scheduler, outflow.mint)
        self._jobs: dict[int, Job] = {}
        """Of commands that are about to be handled."""
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._lease: asyncio.TimerHandle | None = None
        self._closed = False
        self._steps = device.start(self._run())

    # --- what the shell calls ----------------------------------------------------------------------

    def prefill(self, key: int, command: worker_pb2.StartPrefill) -> RunPrefill:
        """The prefill of a request. Raises RefusedCommandError when it can never run here."""
        made, self._jobs[key] = self._intake.prefill(key, command)
        return made

    def decode(self, key: int, command: worker_pb2.StartDecode, now: Seconds) -> RunDecode:
        """The decode of a request. Raises RefusedCommandError when it can never run here."""
        made, self._jobs[key] = self._intake.decode(key, command, now)
        return made

    def handle(self, commands: Rows[WorkerCommand]) -> None:
        """Take commands; what follows at once is delivered before it returns."""
        if self._closed:
            return
        events: Events = []
        for command in commands:
            self._take(command, events)
        self._tell(events)

    def snapshot(self, now: Seconds) -> BackendSnapshot:
        """The worker's account of itself."""
        return snapshot(self._account, self._scheduler, now)

    async def chunks(self, pull: int) -> AsyncGenerator[bytes, None]:
        """The KV of a pull. Once the last chunk was taken, the copy here is gone."""
        custody = self._outflow.custody
        held = custody.of_pull(pull)
        if held is None:
            return
        began = self._loop.time()
        async with aclosing(self._outflow.chunks(pull, held, self._scheduler.sequences[held.key])) as chunks:
            async for chunk in chunks:
                yield chunk
        if custody.of_pull(pull) is held and not self._closed:
            moved_bytes = round(held.handle.tokens * self._spec.kv_bytes_per_token)
            self._forget(held.key)
            self._tell([KVServed(pull, moved_bytes, self._loop.time() - began, held.fingerprint)])

    async def store(self, key: int, chunk: bytes) -> None:
        """A chunk of KV that was asked for. Raises RefusedCommandError when it is wrong."""
        await self._inflows.store(key, chunk, self._fail)

    def close(self) -> None:
        """Stop at once. A step in progress runs to its end, unheard."""
        self._closed = True
        self._steps.cancel()
        if self._lease is not None:
            self._lease.cancel()

    # --- commands ----------------------------------------------------------------------------------

    def _take(self, command: WorkerCommand, events: Events) -> None:
        match command:
            case RunPrefill() | RunDecode():
                self._start(command, events)
            case Stop(key=key):
                self._stop(key, "its prefill was stopped", events)
            case KVArrived():
                self._arrived(command, events)
            case KVPullFailed(key=key, reason=reason, message=message):
                if self._inflows.drop(key):
                    self._give_up(key, reason, message, events)
            case Release() | ServeKV() | AbortServe():
                self._hand_over(command, events)
            case _:
                assert_never(command)

    def _start(self, command: RunPrefill | RunDecode, events: Events) -> None:
        job = self._jobs.pop(command.key)
        if (objection := self._intake.objection(command, job)) is not None:
            events.append(Failed(command.key, *objection))
            return
        prefills = isinstance(command, RunPrefill)
        sequence = Sequence(
            key=command.key,
            job=job,
            phase=Phase.PREFILL if prefills else Phase.DECODE,
            handover=command if isinstance(command, RunPrefill) and not command.decode_here else None,
            arrived=self._loop.time(),
            known=list(job.prompt),
            prefill_to=len(job.prompt),
        )
        if isinstance(command, RunDecode):
            self._inflows.expect(command, sequence)
        self._scheduler.add(sequence, from_peer=not prefills)

    def _stop(self, key: int, why: str, events: Events) -> None:
        """Drop whatever a key stands for; a pull of its KV ends without."""
        held = self._outflow.custody.of_key(key)
        if held is not None and held.pull is not None:
            text = f"the KV of request {held.handle.request_id} is gone: {why}"
            events.append(KVRefused(held.pull, FailReason.KV_STALE, text))
        self._forget(key)

    def _hand_over(self, command: Release | ServeKV | AbortServe, events: Events) -> None:
        custody = self._outflow.custody
        match command:
            case Release(kv=kv):
                found = custody.find(kv)
                if isinstance(found, Held):
                    self._stop(found.key, "it was released", events)
            case ServeKV(pull=pull, kv=kv):
                found = custody.claim(kv, pull)
                if isinstance(found, str):
                    events.append(KVRefused(pull, FailReason.KV_STALE, found))
            case AbortServe(pull=pull):
                if (claimed := custody.of_pull(pull)) is not None:
                    self._forget(claimed.key)
            case _:
                assert_never(command)

    def _arrived(self, arrived: KVArrived, events: Events) -> None:
        match self._inflows.finish(arrived):
            case None:
                return  # stopped while the KV was on its way
            case RefusedCommandError() as refused:
                self._give_up(arrived.key, refused.reason, refused.message, events)
            case sequence:
                events.append(KVTaken(arrived.key, arrived.moved_bytes, arrived.transfer_s))
                self._scheduler.arrived(arrived.key)
                if sequence.finish is not None:  # the prefill produced the only token
                    events.append(self._progress.finish(sequence, self._loop.time()))

    def _give_up(self, key: int, reason: FailReason, message: str, events: Events) -> None:
        events.append(Failed(key, reason, message))
        self._forget(key)

    def _forget(self, key: int) -> None:
        """A key is over, and its pages are free."""
        if (held := self._outflow.custody.of_key(key)) is not None:
            self._outflow.custody.drop(held)
        self._jobs.pop(key, None)
        self._inflows.drop(key)
        self._scheduler.remove(key)

    # --- events ------------------------------------------------------------------------------------

    def _tell(self, events: Events) -> None:
        """Deliver events, after giving out the room that has become free; then see what can run."""
        for sequence in self._scheduler.reserve():
            events.append(PullKV(sequence.key, self._inflows.handle_of(sequence.key)))
        self._arm_lease()
        self._deliver(events)
        self._wake.set()

    def _fail(self, error: Exception) -> None:
        if not self._closed:
            self.close()
            self._failed(error)

    def _arm_lease(self) -> None:
        """Be woken when the next lease ends."""
        due = self._outflow.custody.next_expiry()
        if self._lease is not None:
            if self._lease.when() == due:
                return
            self._lease.cancel()
        self._lease = None if due is None else self._loop.call_at(due, self._expire)

    def _expire(self) -> None:
        self._lease = None
        for held in self._outflow.custody.expired(self._loop.time()):
            self._forget(held.key)
        self._tell([])

    # --- steps -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Step after step for as long as there is something to run; then wait."""
        try:
            while True:
                await self._step()
        except Exception as error:  # a supervision point: the shell boots another incarnation
            log.exception("a step failed")
            self._fail(error)

    async def _step(self) -> None:
        tasks = self._scheduler.plan(self._loop.time())
        if not tasks:
            self._wake.clear()
            await self._wake.wait()
            return
        step = _step_of(tasks)
        stepped = await self._device.compute(lambda: self._runner.step(step))
        self._account.book(tasks, stepped.took_s)
        self._tell(self._progress.stepped(tasks, stepped.tokens, self._loop.time()))


def _step_of(tasks: Rows[Task]) -> Step:
    """What the device needs of the tasks, copied: sequences change while it computes."""
    parts = tuple(_part(task) for task in tasks)
    wants = tuple((task.sequence.job.sampling, task.sequence.chosen) for task in tasks if task.chooses)
    return Step(parts, wants)


def _part(task: Task) -> Part:
    sequence = task.sequence
    tokens = tuple(sequence.known[task.start : task.start + task.tokens])
    return Part(tokens, task.start, tuple(sequence.table), sequence.prefill_to, task.chooses)
