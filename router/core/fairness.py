"""Who is next: fair shares of tokens between the tenants of a class, and least shares for lower classes.

Between tenants it is the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models"
(OSDI 2024): each tenant has a counter of the tokens served to it, output counted twice; who has the least
goes next. A tenant that was away is lifted to the level of those that are served, so that idle time is no
credit. Here a request is charged at dispatch with its expected output, and what it turned out to be is
corrected at the end; the level is the start tag of the last dispatch, as in start-time fair queueing (Goyal
et al., 1996).

Between classes order is strict, but a class below the top may have a least share, as in stride scheduling
(Waldspurger and Weihl, 1995): once in cost / share of all that is dispatched, it goes first.

Costs are in tokens: a prompt token is 1, an output token `Limits.output_weight`. No I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from router.model import Request

MAX_TENANTS: Final = 4096
"""Tenants of one line whose counters are kept while nothing of theirs waits."""


@dataclass(slots=True)
class Tenant:
    """One tenant in one line. Owned by its line."""

    name: str
    served: float
    """Virtual token counter."""
    waiting: dict[str, Request] = field(default_factory=dict[str, Request])
    """In the order of their turns."""


class Line:
    """Requests of one class for one model that wait, by tenant."""

    def __init__(self) -> None:
        self.tenants: dict[str, Tenant] = {}
        """Those that wait, in order of first waiting."""
        self.size = 0
        """Requests waiting."""
        self._away: dict[str, float] = {}
        """Counters above the level, of tenants of whom nothing waits."""
        self._level = 0.0

    def push(self, request: Request) -> None:
        """At the end of its tenant's requests."""
        self._tenant(request.tenant).waiting[request.id] = request
        self.size += 1

    def push_front(self, request: Request) -> None:
        """Before them."""
        tenant = self._tenant(request.tenant)
        tenant.waiting = {request.id: request, **tenant.waiting}
        self.size += 1

    def remove(self, request: Request) -> bool:
        """Take a request out; False when it does not wait here."""
        tenant = self.tenants.get(request.tenant)
        if tenant is None or tenant.waiting.pop(request.id, None) is None:
            return False
        self.size -= 1
        if not tenant.waiting:
            del self.tenants[tenant.name]
            self._leave(tenant.name, tenant.served)
        return True

    def charge(self, request: Request, cost: float) -> None:
        """Something of a tenant was dispatched."""
        self._level = max(self._level, self._counter(request.tenant))
        self._add(request.tenant, cost)

    def correct(self, request: Request, cost: float) -> None:
        """A charge was too low, or too high if `cost` is below 0."""
        self._add(request.tenant, cost)

    def most_waiting(self) -> Tenant:
        """The tenant with the most requests waiting. Raises ValueError when nobody waits."""
        return max(self.tenants.values(), key=lambda tenant: len(tenant.waiting))

    def _tenant(self, name: str) -> Tenant:
        known = self.tenants.get(name)
        if known is None:
            known = self.tenants[name] = Tenant(name, self._counter(name))
            self._away.pop(name, None)
        return known

    def _counter(self, name: str) -> float:
        known = self.tenants.get(name)
        if known is not None:
            return known.served
        return max(self._level, self._away.get(name, 0.0))

    def _add(self, name: str, cost: float) -> None:
        known = self.tenants.get(name)
        if known is not None:
            known.served += cost
        else:
            self._leave(name, self._counter(name) + cost)

    def _leave(self, name: str, served: float) -> None:
        """Keep a counter that is above the level: who left in debt comes back in debt."""
        self._away.pop(name, None)
        if served <= self._level:
            return
        if len(self._away) >= MAX_TENANTS:
            level = self._level
            self._away = {other: owed for other, owed in self._away.items() if owed > level}
        if len(self._away) >= MAX_TENANTS:  # made-up names must not fill the memory: the oldest is forgiven
            del self._away[next(iter(self._away))]
        self._away[name] = served


class Guarantee:
    """A least share of what is dispatched. Nothing is saved up: what is not asked for is lost."""

    def __init__(self, share: float) -> None:
        """`share` is in [0, 1); 0 guarantees nothing."""
        self._share = share
        self._due_at = 0.0

    def due(self, total: float) -> bool:
        """Whether those it is for go first. `total` is the cost of all that was dispatched so far."""
        return self._share > 0.0 and 0.0 < total >= self._due_at

    def use(self, cost: float, total: float) -> None:
        """Something of them was dispatched, whether as their due or in its turn. `total` includes it."""
        if self._share > 0.0:
            self._due_at = max(self._due_at, total - cost) + cost / self._share
