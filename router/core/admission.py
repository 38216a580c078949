"""The bounds of the core, and who may try again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import assert_never

from router.model import Priority, Seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the core. Durations in seconds."""

    queue_capacity: int = 1024
    """Requests that may wait for a place."""
    max_queue_s: Seconds = 60.0
    """Longest wait for a place; after it the request is shed."""
    scan: int = 8
    """Requests of one class and model that are looked at without success, each time room comes free, before
    the rest of them has to wait."""
    output_weight: float = 2.0
    """What an output token counts in shares, a prompt token being 1 (Sheng et al., OSDI 2024)."""
    bulk_share: float = 0.05
    """Least share of the tokens dispatched, and of the places in the queue, that bulk has while it asks for
    it. Shares of all classes add up to less than 1."""
    normal_share: float = 0.1
    """The same of the class above."""
    interactive_share: float = 0.1
    """And of the next. System, the highest, needs none."""
    starvation_s: Seconds = 20.0
    """While somebody of a class has waited this long behind higher classes, the class is offered first."""
    starvation_share: float = 0.25
    """Most of the tokens dispatched that go to such before higher classes."""
    tenant_reserve: float = 0.1
    """Share of a model's fleet that a tenant which holds much more than the others leaves free for them."""
    class_reserve: float = 0.05
    """Share that a class leaves free for each class above it that has requests in flight."""
    prompt_steps: float = 1.0
    """Steps' worth of prompts at each worker that count as a full fleet in these reserves."""
    preempt: bool = False
    """A request for which there is no room takes the place of one of a lower class that has no token yet."""
    max_attempts: int = 3
    retry_ratio: float = 0.2
    """Retries per admitted request, over retry_window_s (Finagle's default)."""
    retry_per_s: float = 3.0
    """Retries per second on top (Envoy and Finagle keep a floor, so that a quiet service can retry)."""
    retry_window_s: Seconds = 10.0
    stall_s: Seconds = 10.0
    """A phase silent for longer than this, and than stall_factor times its predicted time, has stalled."""
    stall_factor: float = 5.0
    lease_margin_s: Seconds = 1.0
    """A lease must outlast the predicted transfer by twice its time and this margin."""
    policy_faults: int = 3
    """Faults in a row after which the policy is bypassed."""
    policy_bypass_s: Seconds = 30.0

    def cost(self, prompt_tokens: float, output_tokens: float) -> float:
        """What a request counts in shares, in prompt tokens."""
        return prompt_tokens + self.output_weight * output_tokens

    def share(self, priority: Priority) -> float:
        """Least share of a class."""
        match priority:
            case Priority.BULK:
                return self.bulk_share
            case Priority.NORMAL:
                return self.normal_share
            case Priority.INTERACTIVE:
                return self.interactive_share
            case Priority.SYSTEM:
                return 0.0
            case _:
                assert_never(priority)


class RetryBudget:
    """One budget for all retries: a share of the admitted requests plus a floor per second.

    Deposits fade with the window as time constant, so an unused budget tends to
    (retry_per_s + retry_ratio x requests/s) x window, and a storm of failures cannot multiply the load by
    more than 1 + retry_ratio for long.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._balance = limits.retry_per_s * limits.retry_window_s
        self._at: Seconds | None = None

    def deposit(self, now: Seconds) -> None:
        """A request was admitted."""
        self._fade(now)
        self._balance += self._limits.retry_ratio

    def withdraw(self, now: Seconds) -> bool:
        """Ask for a retry."""
        self._fade(now)
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True

    def _fade(self, now: Seconds) -> None:
        elapsed = 0.0 if self._at is None else now - self._at
        self._at = now
        kept = math.exp(-elapsed / self._limits.retry_window_s)
        floor = self._limits.retry_per_s * self._limits.retry_window_s
        self._balance = self._balance * kept + floor * (1.0 - kept)
