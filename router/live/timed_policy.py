"""A policy with a stopwatch: measures each decision and reports those that took too long.

The core has no clock, so the shell wraps what it plugs in. The wrapper adds nothing to a decision.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from router.core.ports import FleetView, Policy, PriceTaker
from router.model import Placement, Reject, Request, RoutePlan, Seconds, Wait
from router.prices import PriceProblem, Unpriced

Answer = TypeVar("Answer")
WALL_FACTOR: Final = 20.0
"""A decision is slow when its CPU time exceeds the budget, or its wall time this many budgets: being put
aside by the operating system is not the policy's fault, but sleeping is."""


class TimedPolicy:
    """A core.ports.Policy around another one."""

    def __init__(
        self,
        inner: Policy,
        budget_s: Seconds,
        on_decision: Callable[[str, Seconds], None],
        on_overrun: Callable[[Seconds], None],
    ) -> None:
        """`on_decision` gets the name and CPU seconds of each decision, `on_overrun` those of slow ones."""
        self._inner = inner
        self._budget_s = budget_s
        self._on_decision = on_decision
        self._on_overrun = on_overrun

    @property
    def name(self) -> str:
        """The inner policy's."""
        return self._inner.name

    @property
    def inner(self) -> Policy:
        """What is timed."""
        return self._inner

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """As the inner policy, timed."""
        return self._timed(lambda: self._inner.plan(request, fleet, now))

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """As the inner policy, timed."""
        return self._timed(lambda: self._inner.bind_decode(request, prefill, fleet, now))

    def observe(self, fact: Any, now: Seconds) -> None:
        """As the inner policy."""
        self._inner.observe(fact, now)

    def price_problem(self, fleet: FleetView, now: Seconds) -> PriceProblem | Unpriced | None:
        """As the inner policy, if it takes prices. Not timed: nobody waits for it to decide."""
        return self._inner.price_problem(fleet, now) if isinstance(self._inner, PriceTaker) else None

    def _timed(self, decide: Callable[[], Answer]) -> Answer:
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return decide()
        finally:
            cpu_s, wall_s = time.thread_time() - cpu, time.perf_counter() - wall
            self._on_decision(self._inner.name, cpu_s)
            if cpu_s > self._budget_s or wall_s > WALL_FACTOR * self._budget_s:
                self._on_overrun(max(cpu_s, wall_s))

    def __deepcopy__(self, memo: dict[int, Any]) -> Policy:
        # The core decides on a copy to answer Plan; a copy of the callbacks would copy the whole router.
        return copy.deepcopy(self._inner, memo)
