"""What a policy derives from one backend's view, independent of any request.

A view never changes, so a standing is worked out once for it and kept until the next view of that
backend. It reconciles the ledger with the last snapshot: ours is fresh but knows our own work
alone, the snapshot knows everybody's but is old, so the larger of the two counts. A snapshot value
that is no count (NaN, infinite, negative) counts as nothing, for the ledger is still right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from router.core.ports import LatencyModel
from router.model import BackendSnapshot, BackendSpec, BackendState, BackendView, Phase, SchedulerKind

EMPTY = BackendSnapshot(observed_at=0.0)
UNKNOWN_OUTPUT_TOKENS = 256
"""Output of a sequence of which nothing is known (assumption)."""
LARGEST_COUNT = 1e15
"""No backend holds more tokens than this; larger numbers are garbage."""


@dataclass(slots=True, eq=False)
class Standing:
    """One backend at the time of one view. The screen that keeps it brings it up to date in place
    (a new object per view would double the cost of a pass); nobody else writes to it."""

    spec: BackendSpec
    latency: LatencyModel | None
    """As of the view. None for policies that do not predict, and for a backend without a usable profile."""
    flaw: str
    """Why the backend may never take anything; empty if there is no such reason."""
    egress: int
    """Backends with the same number look the same to a link, as producers of KV."""
    ingress: int
    """The same, as consumers."""

    view: BackendView = field(init=False)
    order: int = field(init=False)
    """Position in the order of joining; breaks ties."""
    barred: str = field(init=False)
    """Why the backend may take nothing at this time, whatever the request; empty if it may."""
    takes_prefill: bool = field(init=False)
    """Offers prefill, its prefill queue has room, and a slot is free."""
    takes_decode: bool = field(init=False)
    """Offers decode, and a slot is free."""
    kv_room_tokens: int = field(init=False)
    prefills: int = field(init=False)
    """Prefills ahead of a new one."""
    prefill_tokens: int = field(init=False)
    """Prompt tokens ahead of a new prefill, without those that are expected to be cached."""
    pairs_ahead: float = field(init=False)
    """Attention pairs of these, as if they were of equal length (assumption)."""
    decodes: int = field(init=False)
    """Sequences decoding, or bound to decode here, as far as there are slots."""
    slot_queue: int = field(init=False)
    """Sequences that have to end before a new one has a slot."""
    slot_wait_s: float = field(init=False)
    """How long that takes: each slot comes free once in the time of a mean answer."""
    context_tokens: int = field(init=False)
    """Sum of the contexts of these, halfway through their expected output."""
    chunk_tokens: int = field(init=False)
    """Prompt tokens that fit into one step beside the decoding sequences."""
    half_step_s: float = field(init=False)
    """Mean wait for the step that is running; 0 without decoding sequences."""
    prompts_s: float = field(init=False)
    """Time of the prefills ahead by themselves, each of mean length."""
    backlog_s: float = field(init=False)
    """Device time of the prefills ahead, without the decode steps they ride on."""
    stretch: float = field(init=False)
    """Device time over decode time, at least 1: what prefills on this backend add to a decode step."""
    load_key: tuple[float, ...] = field(init=False)
    """Equal for backends on which every prediction comes out equal."""

    @property
    def id(self) -> str:
        """The backend's id."""
        return self.spec.id

    def see(
        self,
        view: BackendView,
        max_prefill_queue: int,
        stretch: float,
        uncached: float = 1.0,
        overbook: float = 0.0,
        fills_steps: bool = False,
    ) -> None:
        """Take over a new view of the backend, with the same spec.

        `uncached` is the share of the prompt tokens ahead that will have to be computed, `overbook` the share
        of the slots that may be waited for. With `fills_steps` a backend on which nothing decodes takes
        prompts until they fill a step, however many: they harm no decode, and share one sweep of the weights.
        """
        spec, ours, seen = self.spec, view.in_flight, view.snapshot or EMPTY
        kv_used = max(count(seen.kv_used_tokens), ours.kv_tokens)
        self.view = view
        self.barred = self.flaw if view.state is BackendState.READY else f"state:{view.state.value}"
        # A prompt takes a slot as well: at a worker full of long answers it would wait for one to end.
        has_slot = ours.decodes < spec.max_num_seqs
        fills = fills_steps and not ours.decodes and ours.prefill_tokens < spec.max_num_batched_tokens
        has_queue = fills or ours.prefills < max_prefill_queue
        self.takes_prefill = Phase.PREFILL in spec.phases and has_slot and has_queue
        most = spec.max_num_seqs * (1.0 + overbook)
        self.takes_decode = Phase.DECODE in spec.phases and ours.decodes < most
        self.kv_room_tokens = spec.kv_capacity_tokens - kv_used
        self.prefills = max(ours.prefills, count(seen.waiting))
        ahead = max(ours.prefill_tokens, count(seen.waiting_prefill_tokens))
        self.prefill_tokens = math.ceil(uncached * ahead)
        self.pairs_ahead = self.prefill_tokens * self.prefill_tokens / (2 * max(1, self.prefills))
        self.decodes = max(ours.decodes, count(seen.running) - ours.prefills)
        self.context_tokens = _context_tokens(view, self.decodes, kv_used)
        self.slot_queue = max(0, self.decodes + 1 - spec.max_num_seqs)
        if self.decodes > spec.max_num_seqs:
            self.context_tokens = self.context_tokens * spec.max_num_seqs // self.decodes
            self.decodes = spec.max_num_seqs
        self.chunk_tokens = max(1, spec.max_num_batched_tokens - self.decodes)
        self.stretch = stretch
        self._time()

    def _time(self) -> None:
        """Bring up to date what follows from the load by the step model."""
        latency, tokens = self.latency, self.prefill_tokens
        self.half_step_s = self.backlog_s = self.prompts_s = self.slot_wait_s = 0.0
        if latency is None:
            return
        self.load_key = (
            id(latency),
            self.prefills,
            tokens,
            self.decodes,
            self.context_tokens,
            self.chunk_tokens,
            self.stretch,
            self.slot_queue,
        )
        step = latency.decode_step_s(self.decodes, self.context_tokens) if self.decodes else 0.0
        self.half_step_s = step / 2 if step >= 0 else math.inf
        if self.slot_queue:
            ours = self.view.in_flight
            answer = ours.decode_tokens / ours.decodes if ours.decodes else UNKNOWN_OUTPUT_TOKENS
            self.slot_wait_s = self.slot_queue * answer * step * self.stretch / self.spec.max_num_seqs
        if not tokens:
            return
        if self.spec.scheduler in (SchedulerKind.BUCKETED, SchedulerKind.SINGLE):
            ahead = max(1, self.prefills)
            self.prompts_s = self.backlog_s = ahead * latency.prefill_s(-(-tokens // ahead))
            return
        steps = -(-tokens // self.chunk_tokens)
        mixed = latency.mixed_step_s(
            self.decodes, self.context_tokens, round(tokens / steps), self.pairs_ahead / steps
        )
        self.backlog_s = max(0.0, steps * (mixed - step))


def count(value: float) -> int:
    """A count from outside, or 0 for what is no count."""
    return int(value) if 0 <= value <= LARGEST_COUNT else 0


def _context_tokens(view: BackendView, decodes: int, kv_used: int) -> int:
    """Contexts of the decoding sequences.

    The ledger books prompts in prefill, and prompts with all of their expected output in decode; half
    of that output is there on average. With sequences of other routers on the backend, the snapshot
    knows better.
    """
    ours = view.in_flight
    if decodes > ours.decodes:
        return kv_used
    return max(0, ours.kv_tokens - ours.prefill_tokens - ours.decode_tokens // 2)
