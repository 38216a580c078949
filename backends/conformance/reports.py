"""What workers say of themselves, on lanes that are there for load reports only: whether all is free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final

from backends.conformance.journal import Journal
from backends.conformance.lane import Lane, open_lane
from backends.conformance.subject import Subject
from backends.conformance.verdicts import Target, ViolationError, expect
from router.errors import BackendError, Reason
from router.model import Seconds

SETTLE_REPORTS: Final = 10
SETTLE_S: Final[Seconds] = 1.0
"""What is not free after so many load reports of the worker, and so long, is not free at once."""


class Reports:
    """A lane to each worker, opened again when it ended. `stack` ends them."""

    def __init__(self, journal: Journal, patience_s: Seconds, stack: AsyncExitStack) -> None:
        self._journal = journal
        self._patience_s = patience_s
        self._stack = stack
        self._lanes: dict[str, Lane] = {}

    async def of(self, subject: Subject) -> Lane:
        """A lane that is there for load reports only; opened again when it ended."""
        lane = self._lanes[subject.target.backend]
        return await self.open(subject.target) if lane.ended else lane

    async def open(self, target: Target) -> Lane:
        """Open a lane. Raises BackendError when the worker cannot be reached."""
        opened = open_lane(target, self._journal, self._patience_s, "conformance-observer")
        try:
            lane = await self._stack.enter_async_context(opened)
        except ViolationError as error:
            raise _unreachable(target, str(error)) from error
        if lane.welcome is None:
            raise _unreachable(target, lane.end)
        self._lanes[target.backend] = lane
        return lane

    async def reborn(self, subject: Subject) -> None:
        """Wait until a restarted worker answers again, and take its new welcome."""
        async with asyncio.timeout(self._patience_s):
            await self._lanes[subject.target.backend].until_end()
            while True:
                try:
                    lane = await self.of(subject)
                except BackendError:
                    await asyncio.sleep(0.05)
                    continue
                assert lane.welcome is not None
                subject.incarnation = lane.welcome.incarnation
                return

    async def quiet(self, subjects: Sequence[Subject], after_failure: bool) -> None:
        """Wait until nothing runs anywhere, and note how much KV is in use. Work that an earlier check left
        behind, and that does not get on, is that check's failure: from then on it counts as nothing."""
        for subject in subjects:
            lane = await self.of(subject)
            if after_failure:
                await lane.until_reports(2)  # the last one may not know yet what was left behind
            while lane.work > subject.stuck:
                await self._dwindle(lane, subject)
            subject.level = lane.kv_used

    async def _dwindle(self, lane: Lane, subject: Subject) -> None:
        before = lane.progress
        await self._settles(lane, lambda: lane.work <= subject.stuck, 1)
        if lane.progress == before:
            subject.stuck = lane.work

    async def freed(self, *subjects: Subject, why: str) -> None:
        """Wait until workers report no more KV in use than before. Raises ViolationError when they settle on
        more, or do not get there within a few reports."""
        for subject in subjects:
            await self._freed(await self.of(subject), subject, why)

    async def _freed(self, lane: Lane, subject: Subject, why: str) -> None:
        def free() -> bool:
            return lane.kv_used <= subject.level

        # The first report may have been on its way before the worker knew what is to be free.
        await self._settles(lane, free, 2)
        expect(
            free(),
            f"{subject} still reports {lane.kv_used} KV tokens in use {why}; before it were {subject.level}",
        )

    async def in_use(self, subject: Subject, tokens: int) -> None:
        """Wait until a worker reports at least so many KV tokens beyond those before."""
        lane = await self.of(subject)

        def shown() -> bool:
            return lane.kv_used >= subject.level + tokens

        await self._settles(lane, shown, 1)
        expect(shown(), f"{subject} reports {lane.kv_used} KV tokens in use; it holds {tokens}")

    async def _settles(self, lane: Lane, holds: Callable[[], bool], reports: int) -> None:
        """Wait until something holds after so many further reports, or it has had time to."""
        loop = asyncio.get_running_loop()
        first, began = lane.reports, loop.time()

        def over() -> bool:
            late = lane.reports >= first + SETTLE_REPORTS and loop.time() - began >= SETTLE_S
            return late or (lane.reports >= first + reports and holds())

        await lane.until(over, "its load")


def _unreachable(target: Target, why: str) -> BackendError:
    return BackendError(
        Reason.BACKEND_LOST,
        f"No lane to {target} came up: {why}. Nothing was checked. Start the worker, or correct the target.",
    )
