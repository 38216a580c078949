"""What the device's time went on: shares of each step, and the counters of a load report. Pure.

A step is shared out in the proportions of the backend's step model (backends/models/latency.py), so that the
shares add up to what was measured, whatever the model is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends.models.latency import StepLaw
from backends.models.laws import law_of
from backends.reference.scheduler import Scheduler, Task
from router.model import BackendSnapshot, BackendSpec, Phase, Seconds


@dataclass(slots=True)
class Account:
    """Counters since boot; the regressors are those of router.model.BackendSnapshot."""

    law: StepLaw
    busy_prefill_s: Seconds = 0.0
    busy_decode_s: Seconds = 0.0
    steps: int = 0
    decode_sequences: int = 0
    context_tokens: int = 0
    prefill_tokens: int = 0
    attention_pairs: float = 0.0

    def book(self, tasks: Sequence[Task], took_s: Seconds) -> None:
        """Count a step, and charge its sequences their shares."""
        self.steps += 1
        for task, share_s in zip(tasks, self._shares(tasks, took_s), strict=True):
            task.sequence.device_s += share_s
            if task.sequence.phase is Phase.PREFILL:
                self.busy_prefill_s += share_s
            else:
                self.busy_decode_s += share_s
        self.decode_sequences += sum(task.decodes for task in tasks)
        self.context_tokens += sum(task.start + 1 for task in tasks if task.decodes)
        self.prefill_tokens += sum(task.tokens for task in tasks if not task.decodes)
        self.attention_pairs += sum(_pairs(task) for task in tasks if not task.decodes)

    def _shares(self, tasks: Sequence[Task], took_s: Seconds) -> list[Seconds]:
        decodes = [task for task in tasks if task.decodes]
        chunks = [task for task in tasks if not task.decodes]
        price = self.law.price(
            len(decodes),
            sum(task.start + 1 for task in decodes),
            sum(task.tokens for task in chunks),
            sum(_pairs(task) for task in chunks),
        )

        def weight(task: Task) -> float:
            if task.decodes:
                own = price.per_sequence_s + price.per_context_token_s * (task.start + 1)
            else:
                own = price.per_prefill_token_s * task.tokens + price.per_attention_pair_s * _pairs(task)
            return price.base_s / len(tasks) + own

        weights = [weight(task) for task in tasks]
        whole = sum(weights)
        return [took_s * (one / whole if whole else 1.0 / len(tasks)) for one in weights]


def account_of(spec: BackendSpec) -> Account:
    """A fresh account. Raises ConfigError for a step model that gives no sensible times."""
    return Account(law_of(spec))


def snapshot(account: Account, scheduler: Scheduler, now: Seconds) -> BackendSnapshot:
    """The worker's account of itself; the step in progress counts when it is over."""
    blocks = scheduler.blocks
    return BackendSnapshot(
        observed_at=now,
        running=len(scheduler.running),
        waiting=scheduler.waiting,
        waiting_prefill_tokens=scheduler.uncomputed_tokens,
        kv_used_tokens=blocks.used * blocks.block_tokens,
        busy_prefill_s=account.busy_prefill_s,
        busy_decode_s=account.busy_decode_s,
        preemptions=scheduler.preemptions,
        steps=account.steps,
        decode_sequences=account.decode_sequences,
        context_tokens=float(account.context_tokens),
        prefill_tokens=account.prefill_tokens,
        attention_pairs=account.attention_pairs,
    )


def _pairs(task: Task) -> float:
    return task.tokens * (task.start + 0.5 * task.tokens)
