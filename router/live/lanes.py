"""All links to backends: carries the core's actions to the backends they name.

Satisfies `driver.Lanes`. It owns one task per link and nothing else: which links there are is the
registry's business, what becomes of a request is the core's. A link is a lane to a worker unless its opener
says otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Self

from router.core.messages import PhaseFailed, ReleaseKV, StartDecode, StartPrefill, StopPhase
from router.errors import Reason
from router.live.flow import Flow
from router.live.lane import Lane, LaneContext
from router.live.southbound import Link, Opener, Work
from router.model import Phase


class LaneSet:
    """The lanes by backend id. Leaving its context ends every lane, which frees the workers' work."""

    def __init__(self, context: LaneContext) -> None:
        self._context = context
        self._lanes: dict[str, Link] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.gather(*(self.remove(backend) for backend in tuple(self._lanes)))

    def add(self, backend: str, address: str, opener: Opener = Lane) -> Link:
        """Open a link and keep it open. The id must be free."""
        if backend in self._lanes:
            raise ValueError(f"there is a lane to {backend!r} already")
        lane = opener(backend, address, self._context)
        self._lanes[backend] = lane
        self._tasks[backend] = asyncio.create_task(lane.run(), name=f"lane-{backend}")
        return lane

    async def remove(self, backend: str) -> None:
        """Close a lane for good; its work is reported lost. Unknown ids are ignored."""
        lane, task = self._lanes.pop(backend, None), self._tasks.pop(backend, None)
        if lane is None or task is None:
            return
        lane.closing = True
        task.cancel()
        await asyncio.wait([task])

    def get(self, backend: str) -> Link | None:
        """One lane by backend id."""
        return self._lanes.get(backend)

    def __iter__(self) -> Iterator[Link]:
        """The lanes at this time, in order of joining."""
        return iter(tuple(self._lanes.values()))

    def __len__(self) -> int:
        return len(self._lanes)

    # --- driver.Lanes ---

    def start_prefill(self, action: StartPrefill, flow: Flow) -> None:
        """Send the prompt to a backend; PhaseFailed when it is not connected."""
        work = self._work(action.backend)
        if work is None:
            self._unreachable(action, Phase.PREFILL)
        else:
            work.start_prefill(action, flow)

    def start_decode(self, action: StartDecode, flow: Flow) -> None:
        """Send the KV handle to a backend; PhaseFailed when it is not connected."""
        work = self._work(action.backend)
        if work is None:
            self._unreachable(action, Phase.DECODE)
        else:
            work.start_decode(action, flow, asyncio.get_running_loop().time())

    def stop_phase(self, action: StopPhase) -> None:
        """Stop an epoch. A worker whose lane broke has stopped by itself."""
        if (work := self._work(action.backend)) is not None:
            work.stop_phase(action)

    def release_kv(self, action: ReleaseKV) -> None:
        """Free KV. A worker whose lane broke has freed it by itself."""
        if (work := self._work(action.backend)) is not None:
            work.release_kv(action.kv, asyncio.get_running_loop().time())

    def _work(self, backend: str) -> Work | None:
        lane = self._lanes.get(backend)
        return None if lane is None else lane.work

    def _unreachable(self, action: StartPrefill | StartDecode, phase: Phase) -> None:
        # The core books on backends it believes connected; this closes the gap of a lane that just broke.
        text = f"{action.backend} is not connected"
        self._context.tell(
            PhaseFailed(action.request_id, action.epoch, phase, action.backend, Reason.BACKEND_LOST, text)
        )
