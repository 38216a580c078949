"""Requests without a place: who waits, whose turn it is, and who must go when the queue is full.

A model's requests wait in a line per class (fairness.py), and are offered in rounds (rounds.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from router.core.admission import Limits
from router.core.fairness import Guarantee, Line
from router.core.reserve import Reservation
from router.model import Priority, Request, Seconds

LENGTHS: Final = 64
"""Answers over which the usual length is averaged, for policies that expect none."""


class AdmissionQueue:
    """The lines of all models. Bounded: `push` names who must go."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._size = 0
        self._models: dict[str, ModelQueue] = {}

    def __len__(self) -> int:
        return self._size

    def depth(self, priority: Priority) -> int:
        """Requests waiting in one class."""
        return sum(model.lines[priority].size for model in self._models.values())

    def of(self, model: str) -> ModelQueue:
        """The lines of one model."""
        known = self._models.get(model)
        if known is None:
            known = self._models[model] = ModelQueue(self._limits)
        return known

    def models(self) -> Iterable[str]:
        """Models for which somebody waits, or waited."""
        return self._models

    def push(self, request: Request, now: Seconds) -> Request | None:
        """Let a request wait. Returns the one that must go when the queue is full, which may be the request
        itself: the youngest of the tenant that has the most waiting, in the lowest class that has more than
        its share of the places."""
        self.of(request.model).push(request, now)
        self._size += 1
        if self._size <= self._limits.queue_capacity:
            return None
        lines = self._fullest_class()
        tenant = max((line.most_waiting() for line in lines), key=lambda one: len(one.waiting))
        youngest = tenant.waiting[next(reversed(tenant.waiting))]
        self.remove(youngest)
        return youngest

    def push_front(self, request: Request, since: Seconds) -> None:
        """Let a request wait that was admitted before: it keeps its turn, and nobody is shed for it."""
        self.of(request.model).push(request, since, front=True)
        self._size += 1

    def remove(self, request: Request) -> None:
        """Take a request out."""
        if self.of(request.model).remove(request):
            self._size -= 1

    def _fullest_class(self) -> Sequence[Line]:
        """Lines of the lowest class above its share of the places: a flood of a higher class does not push
        out the few of a lower one that it is owed."""
        for priority in Priority:
            held = self.depth(priority)
            if held > self._limits.share(priority) * self._limits.queue_capacity:
                lines = (model.lines[priority] for model in self._models.values())
                return [line for line in lines if line.size]
        raise AssertionError("shares are below 1 in all, so some class has more than its own")


class ModelQueue:
    """The lines of one model, and what is known of its want of room."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.lines: Mapping[Priority, Line] = {
            priority: Line() for priority in sorted(Priority, reverse=True)
        }
        """Highest class first."""
        self.size = 0
        self._since: dict[str, Seconds] = {}
        self._guarantees = {priority: Guarantee(limits.share(priority)) for priority in Priority}
        self._promotions = Guarantee(limits.starvation_share)
        self._total = 0.0
        self._mean_output = 0.0
        self._reservations: list[Reservation] = []
        self._refusals: list[Refusal] = []
        self.unasked = False
        """Somebody waits who was not asked for since room came free last."""
        self.held_back = False
        """Somebody waits to leave room for others."""

    def push(self, request: Request, since: Seconds, *, front: bool = False) -> None:
        """Let a request wait, since a time."""
        line = self.lines[request.priority]
        (line.push_front if front else line.push)(request)
        self._since[request.id] = since
        self.size += 1

    def remove(self, request: Request) -> bool:
        """Take a request out; False when it does not wait here."""
        if not self.lines[request.priority].remove(request):
            return False
        del self._since[request.id]
        self.size -= 1
        return True

    def charge(self, request: Request, cost: float, now: Seconds) -> None:
        """A request was dispatched at a cost in tokens. Comes before it is taken out of its line."""
        starved = self.size > 0 and self._starves(request.priority, now)
        self._total += cost
        self.lines[request.priority].charge(request, cost)
        self._guarantees[request.priority].use(cost, self._total)
        if starved:
            self._promotions.use(cost, self._total)

    def correct(self, request: Request, cost: float) -> None:
        """Add to what a tenant was charged, or take off it."""
        self.lines[request.priority].correct(request, cost)

    def learn(self, output_tokens: int) -> None:
        """An answer ended with so many tokens."""
        self._mean_output += (output_tokens - self._mean_output) / LENGTHS

    def expect(self, request: Request, told: int | None) -> float:
        """Tokens that an answer is charged for until it ends: what its policy expects, else what is usual. By
        the longest allowed, a tenant would pay for several times what it gets, and have it back too late."""
        return min(request.max_new_tokens, self._mean_output if told is None else told)

    # --- who is offered ---

    def may_ask(self, request: Request) -> bool:
        """Whether a newcomer is worth an offer at once: no room was found lately for less, and nobody whose
        turn is earlier is still to be asked."""
        if self.needless(request):
            return False
        return not self.unasked or all(
            not line.size for priority, line in self.lines.items() if priority >= request.priority
        )

    def room_came(self) -> bool:
        """Forget for whom there was no room. Says whether somebody waits."""
        self._refusals.clear()
        self._reservations.clear()
        return self.size > 0

    def refuse(self, request: Request) -> None:
        """Remember that there was no room for it, until room comes free."""
        if not self.needless(request):
            whole = request.prompt_tokens + request.max_new_tokens
            self._refusals.append(
                Refusal(request.priority, request.workload_class, request.prompt_tokens, whole)
            )

    def needless(self, request: Request) -> bool:
        """Whether there was no room for a request of the class that needs no more."""
        if not self._refusals:
            return False
        whole = request.prompt_tokens + request.max_new_tokens
        return any(
            refusal.prompt_tokens <= request.prompt_tokens
            and refusal.whole_tokens <= whole
            and refusal.workload_class == request.workload_class
            and refusal.priority >= request.priority
            for refusal in self._refusals
        )

    def reserve(self, reservation: Reservation) -> None:
        """Keep a backend from those whose turn is later, until the next round."""
        self._reservations.append(reservation)

    def reserved(self, priority: Priority) -> tuple[str, ...]:
        """Backends that are kept from a class, and those below it."""
        return tuple(kept.backend for kept in self._reservations if priority <= kept.priority)

    def order(self, now: Seconds) -> Sequence[tuple[Priority, bool]]:
        """Classes in which somebody waits, in the order in which they are offered; and whether one goes
        before higher ones because it is owed a place. Of several such, who waits longest is first."""
        waiting = [priority for priority, line in self.lines.items() if line.size]
        if len(waiting) < 2:
            return [(priority, False) for priority in waiting]
        owed = [priority for priority in waiting[1:] if self._is_owed(priority, now)]
        if not owed:
            return [(priority, False) for priority in waiting]
        first = [(priority, True) for priority in sorted(owed, key=self._waits_since)]
        return first + [(priority, False) for priority in waiting if priority not in owed]

    def _is_owed(self, priority: Priority, now: Seconds) -> bool:
        if self._guarantees[priority].due(self._total):
            return True
        return self._promotions.due(self._total) and self._starves(priority, now)

    def _starves(self, priority: Priority, now: Seconds) -> bool:
        """Whether somebody of a class has waited too long behind higher ones. The class takes turns as ever:
        an old request of one tenant does not go before a young one of another that was served less."""
        if now - self._waits_since(priority) < self._limits.starvation_s:
            return False
        return any(line.size for other, line in self.lines.items() if other > priority)

    def _waits_since(self, priority: Priority) -> Seconds:
        """When the first of those who wait in a class came; infinity if nobody waits."""
        tenants = self.lines[priority].tenants.values()
        return min((self._since[next(iter(tenant.waiting))] for tenant in tenants), default=math.inf)


@dataclass(frozen=True, slots=True)
class Refusal:
    """There was no room for this much, in what this class may use. `whole` counts the longest answer."""

    priority: Priority
    workload_class: str
    prompt_tokens: int
    whole_tokens: int
