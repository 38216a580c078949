"""A request on its way through two links, as the core would drive it."""

from __future__ import annotations

import asyncio

from backends.engines.lane import EngineLane
from router.core.messages import PrefillDone
from router.live.flow import Flow
from router.model import KVHandle
from tests.engines.rig import Answered, ScriptedEngine, flow_of, start, start_decode
from tests.live_south.scripted import Facts


class Pair:
    """Two links to a fake pair, and one request on its way through it."""

    def __init__(
        self,
        facts: Facts,
        links: tuple[EngineLane, EngineLane],
        engines: tuple[ScriptedEngine, ScriptedEngine],
    ) -> None:
        self.facts = facts
        self.prefiller, self.decoder = links
        self.prefill_engine, self.decode_engine = engines
        self.flow: Flow
        self.sink: Answered
        self.kv: KVHandle

    async def begin(self, name: str = "r1") -> None:
        """Start both legs, as the core does when prefill says at once that it has a handle."""
        self.flow, self.sink = flow_of(self.facts, name, text="hello")
        start(self.prefiller, self.flow, decode_here=False)
        done: PrefillDone = await self.facts.wait(PrefillDone)
        assert done.kv is not None
        self.kv = done.kv
        start_decode(self.decoder, self.flow, done.kv)

    async def idle(self) -> None:
        """Wait until neither engine is asked for anything any more."""
        assert self.prefiller.work is not None
        assert self.decoder.work is not None
        async with asyncio.timeout(20.0):
            while len(self.prefiller.work) + len(self.decoder.work):
                await asyncio.sleep(0.01)
