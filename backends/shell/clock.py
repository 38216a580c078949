"""Real time for a machine: the one owner of its timer.

The loop's timers wake up to a millisecond late, so a machine is never asked to do what is due now but
what became due up to now; steps it starts begin at the model's time, and several that fell due in one
wake-up come out together.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from router.core.ports import Machine
from router.model import Seconds

log = logging.getLogger(__name__)

Message = TypeVar("Message")
Out = TypeVar("Out")


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are late by a tenth of a millisecond instead of one or two.

    epoll waits in whole milliseconds, rounded up; a step of a modelled LPU lasts one. select waits in
    microseconds. It takes file descriptors below 1,024 only: fit for a process whose sockets belong to gRPC's
    own poller, as those of a mock fleet do, and not for one that opens many through asyncio.
    """
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


class MachineClock(Generic[Message, Out]):
    """Drives one machine by `loop.time()`. Belongs to the loop it was made in.

    `deliver` gets what the machine puts out, once per call and per wake-up, also when it is empty. When
    the machine raises, `failed` is told and the machine is not touched again.
    """

    def __init__(
        self,
        machine: Machine[Message, Out],
        deliver: Callable[[Sequence[Out]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._machine = machine
        self._deliver = deliver
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def handle(self, messages: Sequence[Message]) -> None:
        """Hand messages to the machine, all at the same time. Ignored after close."""
        self._run(lambda now: [out for message in messages for out in self._machine.handle(message, now)])

    def close(self) -> None:
        """Stop the timer; the machine is not touched again."""
        self._closed = True
        self._disarm()

    def _wake(self) -> None:
        self._timer = None
        self._run(self._machine.advance)

    def _run(self, work: Callable[[Seconds], Sequence[Out]]) -> None:
        if self._closed:
            return
        try:
            outputs = work(self._loop.time())
        except Exception as error:  # a supervision point: one worker's fault must not end the fleet
            log.exception("a worker failed")
            self.close()
            self._failed(error)
            return
        self._deliver(outputs)
        self._arm()

    def _arm(self) -> None:
        due = None if self._closed else self._machine.deadline()
        if self._timer is not None and self._timer.when() == due:
            return
        self._disarm()
        if due is not None:
            self._timer = self._loop.call_at(due, self._wake)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
