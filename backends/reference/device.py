"""The threads that touch tensors, and the tasks that wait for them.

Steps and writes into the cache go through one thread, in the order in which they were handed over. So pages
that a stopped sequence gave back in the middle of a step can be given away at once: whoever gets them writes
to them after that step. Reading KV for a peer has a thread of its own, or it would wait for every step of
others; it reads pages that are held, hence not written to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class Device:
    """Belongs to the loop it was made in. `close` ends its tasks and threads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._compute = ThreadPoolExecutor(1, "compute")
        self._export = ThreadPoolExecutor(1, "export")
        self._tasks: set[asyncio.Task[None]] = set()

    def compute(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run work after all that was handed over before."""
        return self._loop.run_in_executor(self._compute, work)

    def export(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run work that only reads, beside the rest."""
        return self._loop.run_in_executor(self._export, work)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that is cancelled with the device at the latest."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancel the tasks, and wait for the step in progress."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pool in (self._compute, self._export):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)
