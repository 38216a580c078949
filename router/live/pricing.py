"""Keeps the policy in prices: asks the core for the problem, solves it in a thread, tells the core the
answer.

A solver works for milliseconds, sometimes for more; on the loop's thread every stream would wait for it.
There is one thread and one problem at a time. An answer that takes too long is dropped, and nothing is asked
while the thread is still at it; the policy goes by the prices it has, and without them once they are old.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from router.core.messages import Fact, PricesRevised
from router.errors import PolyphaseError
from router.model import Seconds
from router.prices import PriceProblem, Prices, Unpriced

log = logging.getLogger(__name__)

TICK_S: Final[Seconds] = 1.0
"""How often the core is asked; the policy says how often prices are due."""
PATIENCE_S: Final[Seconds] = 5.0
"""An answer that takes longer is of no use: the load has changed."""
PAUSE_S: Final[Seconds] = 30.0
"""After a problem that could not be solved; without SciPy none can."""

Ask = Callable[[Seconds], PriceProblem | Unpriced | None]
Solve = Callable[[PriceProblem], Prices]
"""Runs in another thread. Raises PolyphaseError for no answer."""


class Hooks(Protocol):
    """What hears of prices: the metrics."""

    def price_problem(self, outcome: str) -> None:
        """A problem was `solved`, `late` or `failed`, or why there was none (prices.Unpriced)."""
        ...

    def price_solve(self, duration_s: Seconds) -> None:
        """A problem took this long to solve, the wait for the thread included."""
        ...

    def price_age(self, age_s: Seconds) -> None:
        """The prices last told are this old."""
        ...


class Pricing:
    """Owns the solver's thread. `run` goes on until cancelled; then `close`."""

    def __init__(
        self,
        ask: Ask,
        tell: Callable[[Fact], None],
        now: Callable[[], Seconds],
        solve: Solve,
        hooks: Hooks,
        tick_s: Seconds = TICK_S,
        patience_s: Seconds = PATIENCE_S,
    ) -> None:
        self._ask = ask
        self._tell = tell
        self._now = now
        self._solve = solve
        self._hooks = hooks
        self._tick_s = tick_s
        self._patience_s = patience_s
        self._thread = ThreadPoolExecutor(1, "polyphase-prices")
        self._at_work: asyncio.Future[Prices] | None = None
        self._told_at: Seconds | None = None

    async def run(self) -> None:
        """Ask, solve and tell until cancelled."""
        while True:
            outcome = await self.revise()
            await asyncio.sleep(PAUSE_S if outcome == "failed" else self._tick_s)

    async def revise(self) -> str:
        """Ask once, and see it through; says what came of it, empty when nothing was due."""
        if self._told_at is not None:
            self._hooks.price_age(self._now() - self._told_at)
        if self._at_work is not None and not self._at_work.done():
            return ""
        problem = self._ask(self._now())
        if problem is None:
            return ""
        outcome = await self._work_out(problem) if isinstance(problem, PriceProblem) else problem.reason
        if outcome != "fresh":
            self._hooks.price_problem(outcome)
        return outcome

    async def _work_out(self, problem: PriceProblem) -> str:
        began = time.perf_counter()
        self._at_work = asyncio.get_running_loop().run_in_executor(self._thread, self._solve, problem)
        try:
            async with asyncio.timeout(self._patience_s):
                prices = await asyncio.shield(self._at_work)
        except TimeoutError:
            self._at_work.add_done_callback(_forget)
            return "late"
        except PolyphaseError as error:
            log.warning("no prices: %s The policy decides without them.", error.message)
            return "failed"
        self._hooks.price_solve(time.perf_counter() - began)
        self._told_at = prices.at
        self._tell(PricesRevised(prices))
        return "solved"

    def close(self) -> None:
        """Take no more work. A solver that is still at it ends by its own limit."""
        if self._at_work is not None:
            self._at_work.add_done_callback(_forget)
        self._thread.shutdown(wait=False, cancel_futures=True)


def _forget(late: asyncio.Future[Prices]) -> None:
    """Nobody waits for it any more: not for its error either."""
    if not late.cancelled():
        late.exception()
