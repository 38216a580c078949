"""The clock drives a machine by the loop's time, late but never early, and survives its fault."""

import asyncio
import time
from collections.abc import Sequence

from backends.shell.clock import MachineClock, precise_loop


class Ticker:
    """Puts out the time of every tick; ticks are due at the model's times, however late it is asked."""

    def __init__(self, now: float, period_s: float, ticks: int) -> None:
        self.due = [now + period_s * (i + 1) for i in range(ticks)]
        self.asked_at: list[float] = []

    def handle(self, message: str, now: float) -> Sequence[float]:
        """Echo nothing; `fail` raises."""
        if message == "fail":
            raise RuntimeError("planted")
        self.due = [now + 0.01]
        return ()

    def advance(self, now: float) -> Sequence[float]:
        """The ticks that are due."""
        self.asked_at.append(now)
        out = [due for due in self.due if due <= now]
        self.due = self.due[len(out) :]
        return out

    def deadline(self) -> float | None:
        """The next tick."""
        return self.due[0] if self.due else None


class Listener:
    """Keeps what comes out."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.faults: list[Exception] = []

    def take(self, outputs: Sequence[float]) -> None:
        """One batch."""
        self.batches.append(list(outputs))


async def ticking(machine: Ticker) -> None:
    """Wait until a machine has nothing due."""
    async with asyncio.timeout(10):
        while machine.deadline() is not None:
            await asyncio.sleep(0.002)


async def test_ticks_come_at_their_time_and_in_order() -> None:
    """Every tick comes out once, never before it is due."""
    now = asyncio.get_running_loop().time()
    machine, listener = Ticker(now, 0.003, 20), Listener()
    expected = list(machine.due)
    clock = MachineClock(machine, listener.take, listener.faults.append)
    clock.handle([])
    await ticking(machine)
    assert [tick for batch in listener.batches for tick in batch] == expected
    assert len(machine.asked_at) <= 21


async def test_what_fell_due_together_comes_out_together() -> None:
    """A loop that was busy for many ticks delivers them in one batch."""
    now = asyncio.get_running_loop().time()
    machine, listener = Ticker(now, 0.001, 30), Listener()
    clock = MachineClock(machine, listener.take, listener.faults.append)
    clock.handle([])
    time.sleep(0.05)
    await ticking(machine)
    assert max(len(batch) for batch in listener.batches) == 30


async def test_a_message_moves_the_timer() -> None:
    """A deadline that comes nearer is kept, and one that goes away wakes nobody."""
    now = asyncio.get_running_loop().time()
    machine, listener = Ticker(now, 3600.0, 1), Listener()
    clock = MachineClock(machine, listener.take, listener.faults.append)
    clock.handle([])
    clock.handle(["sooner"])
    await ticking(machine)
    assert len(machine.asked_at) == 1


async def test_a_fault_stops_the_machine_and_is_told() -> None:
    """A machine that raised is not touched again."""
    now = asyncio.get_running_loop().time()
    machine, listener = Ticker(now, 0.001, 5), Listener()
    clock = MachineClock(machine, listener.take, listener.faults.append)
    clock.handle(["fail"])
    clock.handle(["more"])
    await asyncio.sleep(0.02)
    assert [str(fault) for fault in listener.faults] == ["planted"]
    assert machine.asked_at == [] and listener.batches == []


async def test_close_ends_it() -> None:
    """After close nothing is delivered."""
    now = asyncio.get_running_loop().time()
    machine, listener = Ticker(now, 0.001, 5), Listener()
    clock = MachineClock(machine, listener.take, listener.faults.append)
    clock.handle([])
    clock.close()
    await asyncio.sleep(0.02)
    assert machine.asked_at == []


def test_timers_of_a_precise_loop_are_hardly_late() -> None:
    """A tenth of 100 timers at least is within half a millisecond; epoll would round up to whole ones."""

    async def lateness() -> list[float]:
        loop, found = asyncio.get_running_loop(), list[float]()
        for _ in range(100):
            due = loop.time() + 0.0013
            woken = loop.create_future()
            loop.call_at(due, woken.set_result, None)
            await woken
            found.append(loop.time() - due)
        return sorted(found)

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        late = runner.run(lateness())
    assert late[0] >= 0.0
    assert late[10] < 0.0005  # the best of them: the machine may be busy
