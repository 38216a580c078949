"""Time-outs that blame nobody else for our own delays."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from router.model import Seconds

TICK_S: Final[Seconds] = 0.5
"""The longest part of a wait that is counted at once."""

T = TypeVar("T")


async def within(work: Coroutine[Any, Any, T], limit_s: Seconds) -> T:
    """Wait for something. Raises TimeoutError after so long, during which this process was not held up.

    On a machine that is too busy a plain time-out would fire before the answers are read that wait already.
    """
    loop, waited_s = asyncio.get_running_loop(), 0.0
    task = asyncio.create_task(work)
    try:
        while not task.done():
            if waited_s >= limit_s:
                raise TimeoutError
            before = loop.time()
            await asyncio.wait((task,), timeout=min(TICK_S, limit_s))
            waited_s += min(loop.time() - before, TICK_S)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
