"""Prices in virtual time: asks the core for the problem, solves it at once, and tells the answer later.

The solver runs on the machine's time, which does not count here; a stated delay stands for what it takes in a
live router, so that the same seed gives the same run on any machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from router.core.messages import PricesRevised
from router.model import Seconds
from router.prices import PriceProblem, Prices
from router.sim.world import World

TICK_S: Final[Seconds] = 1.0
"""How often the core is asked, as in a live router; the policy says how often prices are due."""
DELAY_S: Final[Seconds] = 0.05
"""From the problem to the fact. Assumption: the solver takes 11 to 17 ms of CPU, as in
tests/bench/test_price_time.py, and a live router has other work."""

Solve = Callable[[PriceProblem], Prices]
"""Raises PolyphaseError for no answer."""


class Pricing:
    """Keeps the policy of one world in prices."""

    def __init__(
        self, world: World, solve: Solve, tick_s: Seconds = TICK_S, delay_s: Seconds = DELAY_S
    ) -> None:
        self.solved = 0
        """Problems so far."""
        self._world = world
        self._solve = solve
        self._tick_s = tick_s
        self._delay_s = delay_s

    def start(self) -> None:
        """Ask from the next tick on, for as long as there is a policy that takes prices."""
        self._world.at(self._world.now + self._tick_s, self._ask, background=True)

    def _ask(self) -> None:
        world = self._world
        problem = world.core.price_problem(world.now)
        if problem is None:
            return
        if isinstance(problem, PriceProblem):
            self.solved += 1
            fact = PricesRevised(self._solve(problem))
            world.at(world.now + self._delay_s, lambda: world.tell(fact), background=True)
        self.start()
