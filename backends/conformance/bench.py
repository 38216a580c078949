"""What the checks work with: the workers under test, lanes to them, requests and handoffs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from enum import StrEnum
from types import TracebackType
from typing import Final, Self, assert_never

from polyphase.v1 import common_pb2, inference_pb2, worker_pb2

from backends.conformance import commands
from backends.conformance.journal import Journal
from backends.conformance.lane import Lane, open_lane
from backends.conformance.relay import Pass, Relay, Script
from backends.conformance.reports import Reports
from backends.conformance.subject import Subject
from backends.conformance.verdicts import NotCheckedError, Settings, Target, expect
from router.model import BackendSpec, Phase

PROMPT: Final = 40
LONG_PROMPT: Final = 8192
LONG_ANSWER: Final = 4000
"""Tokens, where the worker has room for them."""


class Need(StrEnum):
    """What a check cannot do without."""

    PREFILL = "a worker that offers prefill"
    DECODE = "a worker that offers decode"
    HERE = "a worker that offers both phases"
    SPLIT = "a worker that offers prefill and one that takes its KV over"
    RESTART = "a way to restart the worker (--restart)"
    DRAIN = "a way to drain the worker (--drain)"
    SAME = "a worker whose author says that equal requests get equal answers (--deterministic)"


class Way(StrEnum):
    """How a request is served."""

    HERE = "both phases on one worker"
    SPLIT = "split"


class Bench:
    """An async context manager. Raises BackendError when a worker cannot be reached, ViolationError when its
    welcome cannot be used, ConfigError when the suite cannot listen."""

    def __init__(self, targets: Sequence[Target], settings: Settings) -> None:
        self.settings = settings
        self.journal = Journal()
        self.subjects: list[Subject] = []
        self.relay = Relay(settings.listen, settings.patience_s)
        self._targets = targets
        self._rng = random.Random(settings.seed)
        self._made = 0
        self._stack = AsyncExitStack()
        self.reports = Reports(self.journal, settings.patience_s, self._stack)

    async def __aenter__(self) -> Self:
        try:
            await self._stack.enter_async_context(self.relay)
            for target in self._targets:
                lane = await self.reports.open(target)
                assert lane.welcome is not None
                self.subjects.append(Subject(target, lane.welcome))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    # --- who there is ---

    @property
    def prefiller(self) -> Subject:
        """Of Need.PREFILL."""
        return next(one for one in self.subjects if one.offers(Phase.PREFILL))

    @property
    def decoder(self) -> Subject:
        """Of Need.DECODE; the last one, so that of two workers that do both, two are used."""
        return next(one for one in reversed(self.subjects) if one.offers(Phase.DECODE))

    @property
    def here(self) -> Subject:
        """Of Need.HERE."""
        return next(one for one in self.subjects if one.spec.phases >= set(Phase))

    @property
    def pair(self) -> tuple[Subject, ...]:
        """Producer and consumer of a handoff; once, when they are the same."""
        return tuple(dict.fromkeys((self.prefiller, self.decoder)))

    def lacks(self, need: Need) -> bool:
        """Whether there is no such thing."""
        match need:
            case Need.PREFILL:
                lacking = not self._offered({Phase.PREFILL})
            case Need.DECODE:
                lacking = not self._offered({Phase.DECODE})
            case Need.HERE:
                lacking = not self._offered(set(Phase))
            case Need.SPLIT:
                one_missing = self.lacks(Need.PREFILL) or self.lacks(Need.DECODE)
                lacking = one_missing or not _fit(self.prefiller.spec, self.decoder.spec)
            case Need.RESTART:
                lacking = self.settings.restart is None
            case Need.DRAIN:
                lacking = self.settings.drain is None
            case Need.SAME:
                lacking = not self.settings.deterministic
            case _:
                assert_never(need)
        return lacking

    def _offered(self, phases: set[Phase]) -> bool:
        """Whether one worker offers them all."""
        return any(one.spec.phases >= phases for one in self.subjects)

    @property
    def model(self) -> str:
        """One that all of them serve, where there is one."""
        first, *others = (one.spec.models for one in self.subjects)
        shared = [name for name in first if all(name in models for models in others)]
        return (shared or first)[0]

    # --- lanes ---

    @asynccontextmanager
    async def lane(self, subject: Subject, router: str = "conformance") -> AsyncIterator[Lane]:
        """A lane that is up. Raises ViolationError when it does not come up."""
        async with open_lane(subject.target, self.journal, self.settings.patience_s, router) as lane:
            expect(lane.welcome is not None, f"a lane to {subject} ended with {lane.end}")
            yield lane

    @asynccontextmanager
    async def lanes(self) -> AsyncIterator[tuple[Lane, Lane]]:
        """To the producer and the consumer of a handoff; one lane twice, when they are the same."""
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(self.lane(self.prefiller))
            second = first
            if self.decoder is not self.prefiller:
                second = await stack.enter_async_context(self.lane(self.decoder))
            yield first, second

    # --- requests ---

    def request(self, answer: int = 8, prompt: int = PROMPT) -> inference_pb2.GenerateRequest:
        """A greedy request with a prompt and an id of its own, whose answer has exactly so many tokens."""
        self._made += 1
        made = inference_pb2.GenerateRequest(
            request_id=f"conformance-{self._made}",
            model=self.model,
            max_new_tokens=answer,
        )
        ids = range(3, self.settings.vocabulary)
        made.tokens.ids.extend(self._rng.choices(ids, k=prompt))
        made.sampling.temperature = 0.0
        made.sampling.ignore_eos = True
        return made

    def long_answer(self, *subjects: Subject) -> inference_pb2.GenerateRequest:
        """A request that keeps a decode busy for long."""
        room = min(min(one.spec.max_context_tokens, one.spec.kv_capacity_tokens // 4) for one in subjects)
        return self.request(max(min(room - PROMPT, LONG_ANSWER), 8))

    def long_prompt(self, subject: Subject) -> inference_pb2.GenerateRequest:
        """A request that keeps a prefill busy for long."""
        spec = subject.spec
        return self.request(
            8, max(min(LONG_PROMPT, spec.max_context_tokens // 2, spec.kv_capacity_tokens // 4), 1)
        )

    @property
    def first_index(self) -> int:
        """Where decode goes on after a prefill for a peer."""
        return int(self.prefiller.spec.connector.first_token_from_prefill)

    def source(self, kv: common_pb2.KVHandle) -> str:
        """Where KV of the prefiller is pulled from."""
        return kv.source or self.prefiller.target.address

    async def minted(self, lane: Lane, seq: int, made: inference_pb2.GenerateRequest) -> common_pb2.KVHandle:
        """Prefill for a peer; the handle, with its source filled in as routers do."""
        await lane.send(commands.prefill(seq, made))
        done = await lane.prefill_done(seq)
        kv = common_pb2.KVHandle()
        kv.CopyFrom(done.kv)
        kv.source = self.source(kv)
        return kv

    async def led(
        self, lane: Lane, seq: int, made: inference_pb2.GenerateRequest, script: Script
    ) -> tuple[common_pb2.KVHandle, Pass]:
        """As `minted`, with a handle whose KV takes the way through the relay."""
        kv = await self.minted(lane, seq, made)
        return self.relay.through(kv, self.source(kv), script)

    async def reached(self, expected: Pass, lane: Lane, seq: int) -> None:
        """Wait until the consumer pulls through the relay. Raises NotCheckedError when it may not."""
        sequence = lane.sequences[seq]
        arriving = asyncio.create_task(expected.reached.wait())
        ending = asyncio.create_task(
            lane.until(lambda: sequence.ended or expected.reached.is_set(), "a pull, or a failure")
        )
        try:
            await asyncio.wait((arriving, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            arriving.cancel()
            ending.cancel()
            await asyncio.gather(arriving, ending, return_exceptions=True)
        if not expected.reached.is_set():
            why = sequence.failed.message if sequence.failed else "it did not try"
            raise NotCheckedError(
                f"{lane.target.backend} did not pull from {self.relay.address}, where the suite plays the "
                f"producer: {why}. Let it, and see --listen."
            )

    @property
    def ways(self) -> list[Way]:
        """How these workers can serve a request; may be empty."""
        needs = {Way.HERE: Need.HERE, Way.SPLIT: Need.SPLIT}
        return [way for way, need in needs.items() if not self.lacks(need)]

    async def answered(
        self, made: inference_pb2.GenerateRequest, way: Way
    ) -> tuple[worker_pb2.DecodeDone, tuple[int, ...]]:
        """Serve a request, on lanes of its own; its end and its tokens."""
        if way is Way.HERE:
            async with self.lane(self.here) as lane:
                await lane.send(commands.prefill(1, made, decode_here=True))
                done = await lane.decode_done(1)
                return done, lane.sequences[1].answer
        async with self.lanes() as (p, d):
            kv = await self.minted(p, 1, made)
            await d.send(commands.decode(2, made, kv, self.first_index))
            done = await d.decode_done(2)
            return done, p.sequences[1].answer + d.sequences[2].answer


def _fit(producer: BackendSpec, consumer: BackendSpec) -> bool:
    return consumer.accepts_kv_of(producer) and not set(producer.models).isdisjoint(consumer.models)
