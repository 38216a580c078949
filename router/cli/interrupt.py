"""Ctrl-C and SIGTERM: the first ends the run in order, the second ends it at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """While inside, SIGINT and SIGTERM call `stop`; the second of them cancels the current task."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    signals = 0

    def caught() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            stop()
        elif task is not None:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, caught)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
