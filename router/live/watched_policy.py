"""A policy with witnesses: what it is asked and answers is shown to a shadow and kept for explanations.

Witnesses see the question as it was, before the decision is booked. None of them can change or break it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from router.core.choice import Plan
from router.core.ports import FleetView, Policy, PriceTaker
from router.model import Placement, Reject, Request, RoutePlan, Seconds, Wait
from router.prices import PriceProblem, Unpriced

log = logging.getLogger(__name__)


class Witness(Protocol):
    """Sees decisions and facts; must neither wait nor keep anything mutable."""

    def decided(self, policy: Policy, request: Request, fleet: FleetView, now: Seconds, answer: Plan) -> None:
        """The policy was asked, and has answered."""
        ...

    def observed(self, fact: Any, now: Seconds) -> None:
        """The policy was told a fact."""
        ...


class WatchedPolicy:
    """A core.ports.Policy around another one."""

    def __init__(self, inner: Policy, table: Mapping[str, Any], witnesses: Sequence[Witness]) -> None:
        """`table` is the policy as in its file: name and parameters."""
        self.inner = inner
        self.table = table
        self._witnesses = tuple(witnesses)

    @property
    def name(self) -> str:
        """The inner policy's."""
        return self.inner.name

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """As the inner policy."""
        answer = self.inner.plan(request, fleet, now)
        for witness in self._witnesses:
            try:
                witness.decided(self, request, fleet, now, answer)
            except Exception:
                # A supervision point: the decision stands, whatever became of the record of it.
                log.exception("%s failed on a decision", type(witness).__name__)
        return answer

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """As the inner policy; witnesses see placements of both phases only."""
        return self.inner.bind_decode(request, prefill, fleet, now)

    def observe(self, fact: Any, now: Seconds) -> None:
        """As the inner policy."""
        self.inner.observe(fact, now)
        for witness in self._witnesses:
            try:
                witness.observed(fact, now)
            except Exception:
                log.exception("%s failed on %s", type(witness).__name__, type(fact).__name__)

    def price_problem(self, fleet: FleetView, now: Seconds) -> PriceProblem | Unpriced | None:
        """As the inner policy, if it takes prices."""
        return self.inner.price_problem(fleet, now) if isinstance(self.inner, PriceTaker) else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Policy:
        # The core decides on a copy to answer Plan; a witness must not take that for a decision.
        return copy.deepcopy(self.inner, memo)
