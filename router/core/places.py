"""What of a model's fleet is held by whom, and who has to leave some of it free.

Fair order alone does not keep a flood from filling every place before the next one comes: whoever arrives
then waits for an answer to end. So while others have requests in flight, a tenant that holds much more than
they do leaves `Limits.tenant_reserve` of the fleet free, and a class leaves `Limits.class_reserve` for each
class above it. Alone, anybody may have everything.

Three things are counted: slots, KV room, and prompt tokens that wait for their prefill at a worker, up to
`Limits.prompt_steps` steps of every backend. It is a gate in front of the policy, not a bound: a request that
is let through may be larger than what was left.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from router.core.admission import Limits
from router.core.fleet import Fleet
from router.model import BackendState, Phase, Priority, Request
from router.value import value


@value
class Held:
    """Part of a fleet, or all of it."""

    slots: float = 0.0
    kv_tokens: float = 0.0
    prompt_tokens: float = 0.0
    """Not prefilled yet."""


NOTHING = Held()
MOST: Final = 0.95
"""Of a fleet that may be asked to be left free in all."""
HEAVY: Final = 2.0
"""A tenant is heavy that holds more than so many times what the others hold on average: one that has a burst
within its part is not."""


@dataclass(slots=True)
class _Share:
    """What one tenant holds."""

    requests: int = 0
    kv_tokens: float = 0.0


class Places:
    """Who holds what of one model's fleet."""

    def __init__(self, model: str, fleet: Fleet, limits: Limits) -> None:
        self._model = model
        self._fleet = fleet
        self._limits = limits
        self._slots = self._kv_tokens = self._prompt_tokens = 0.0
        self._tenants: dict[str, _Share] = {}
        self._classes: Counter[Priority] = Counter()
        """Requests in flight."""
        self._whole = NOTHING
        self._whole_of = -1

    @property
    def held(self) -> Held:
        """By all."""
        return Held(self._slots, self._kv_tokens, self._prompt_tokens)

    def take(self, request: Request, held: Held) -> None:
        """A request was dispatched."""
        self._hold(held, 1.0)
        tenant = self._tenants.setdefault(request.tenant, _Share())
        tenant.requests += 1
        tenant.kv_tokens += held.kv_tokens
        self._classes[request.priority] += 1

    def prefilled(self, prompt_tokens: float) -> None:
        """A prompt waits no more."""
        self._prompt_tokens -= prompt_tokens

    def free(self, request: Request, held: Held) -> None:
        """A dispatched request is over, or waits again; `held` is what it had last."""
        self._hold(held, -1.0)
        tenant = self._tenants[request.tenant]
        tenant.requests -= 1
        tenant.kv_tokens -= held.kv_tokens
        if not tenant.requests:
            del self._tenants[request.tenant]
        self._classes[request.priority] -= 1

    def _hold(self, held: Held, sign: float) -> None:
        self._slots += sign * held.slots
        self._kv_tokens += sign * held.kv_tokens
        self._prompt_tokens += sign * held.prompt_tokens

    def open_to(self, request: Request) -> bool:
        """Whether a request may be offered: what it has to leave free still is."""
        reserve = self._above(request.priority) * self._limits.class_reserve
        if self._is_heavy(request.tenant):
            reserve += self._limits.tenant_reserve
        return reserve == 0.0 or self._is_within(1.0 - min(reserve, MOST), self._capacity())

    def _is_within(self, share: float, whole: Held) -> bool:
        return (
            self._slots < share * whole.slots
            and self._kv_tokens < share * whole.kv_tokens
            and self._prompt_tokens < share * whole.prompt_tokens
        )

    def _above(self, priority: Priority) -> int:
        """Classes above one that have requests in flight."""
        return sum(1 for other, requests in self._classes.items() if requests and other > priority)

    def _is_heavy(self, tenant: str) -> bool:
        share = self._tenants.get(tenant)
        if share is None or len(self._tenants) < 2:
            return False
        others = (self._kv_tokens - share.kv_tokens) / (len(self._tenants) - 1)
        return share.kv_tokens > HEAVY * others

    def _capacity(self) -> Held:
        if self._whole_of != self._fleet.shape:
            self._whole_of, self._whole = self._fleet.shape, self._measure()
        return self._whole

    def _measure(self) -> Held:
        views = [view for view in self._fleet.for_model(self._model) if view.state is BackendState.READY]
        decodes = [view.spec for view in views if Phase.DECODE in view.spec.phases]
        prefills = [view.spec for view in views if Phase.PREFILL in view.spec.phases]
        return Held(
            sum(spec.max_num_seqs for spec in decodes),
            sum(spec.kv_capacity_tokens for spec in decodes),
            self._limits.prompt_steps * sum(spec.max_num_batched_tokens for spec in prefills),
        )
