"""States the problem that prices come from: what arrived of late, and what it takes of each kind of backend.

Device time of a prompt is that of a prefill alone. Device time of an answer is its share of the decode steps
in the largest batch that keeps the time per output token, as in the fluid bound (router/plan/work.py), but by
the step models as they are known at the time. KV room is held for as long as decode takes in the largest
batch that also fits there.

Assumed: the backends of a group are as fast as the first of them; a request without an objective for the time
per token decodes in the largest batch there can be; a class that nobody can serve in time takes what it takes
without its objectives, since it is served all the same.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from policies.window import Arrivals
from router.core.ports import LatencyModel, ModelSource
from router.errors import PolyphaseError
from router.model import BackendSpec, BackendState, BackendView, Phase, Seconds, ServiceLevel
from router.prices import MAX_CLASSES, MAX_GROUPS, PricedClass, PricedGroup, PricedUse

MAX_BATCH: Final = 4096
"""A batch is never taken for larger, whatever a backend claims to hold."""
NOWHERE: Final = PricedUse(math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Batch:
    """A decode batch of like sequences in steady state."""

    share_s: Seconds
    """Device time of one token."""
    held_s: Seconds
    """How long KV is held for one token: a step of the batch that fits into KV room."""
    size: int


def group_name(spec: BackendSpec) -> str:
    """Equal for backends that differ in nothing but id and zone, in every process that ever asks."""
    phases = ",".join(sorted(spec.phases))
    like = repr(replace(spec, id="", zone="", phases=frozenset())) + phases
    return f"{spec.device}-{zlib.crc32(like.encode()):08x}"


class GroupNames:
    """Names of groups by backend; a name is worked out once per spec."""

    LIMIT: Final = 1 << 16

    def __init__(self) -> None:
        self._known: dict[str, tuple[BackendSpec, str]] = {}

    def __call__(self, spec: BackendSpec) -> str:
        """As group_name."""
        known = self._known.get(spec.id)
        if known is None or known[0] is not spec:
            if len(self._known) >= self.LIMIT:
                self._known.clear()
            known = self._known[spec.id] = (spec, group_name(spec))
        return known[1]

    def forget(self, backend: str) -> None:
        """Drop a backend that left."""
        self._known.pop(backend, None)


def groups_of(views: Sequence[BackendView], names: GroupNames) -> list[PricedGroup]:
    """The kinds of backends that take work, in order of joining."""
    found: dict[str, PricedGroup] = {}
    for view in views:
        if view.state is BackendState.READY:
            name = names(view.spec)
            known = found.get(name)
            units = 1 if known is None else known.units + 1
            found[name] = PricedGroup(name, view.spec if known is None else known.spec, units)
    return list(found.values())


def largest_batch(latency: LatencyModel, most: int, context_tokens: int, tpot_s: Seconds) -> int:
    """The largest batch whose step lasts at most `tpot_s`; 0 when a sequence alone takes longer."""
    low, high = 0, min(most, MAX_BATCH)
    if high > 0 and latency.decode_step_s(high, high * context_tokens) <= tpot_s:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if latency.decode_step_s(middle, middle * context_tokens) <= tpot_s:
            low = middle
        else:
            high = middle
    return low


def batch_of(latency: LatencyModel, spec: BackendSpec, context_tokens: int, tpot_s: Seconds) -> Batch | None:
    """The batch that decodes on a backend of this kind keep; None when one alone is too slow, or too
    large."""
    size = largest_batch(latency, spec.max_num_seqs, context_tokens, tpot_s)
    fits = min(size, spec.kv_capacity_tokens // max(1, context_tokens))
    if fits < 1:
        return None
    share_s = latency.decode_step_s(size, size * context_tokens) / size
    return Batch(share_s, latency.decode_step_s(fits, fits * context_tokens), size)


def use_of(
    latency: LatencyModel, spec: BackendSpec, kind: Arrivals, ttft_s: Seconds, tpot_s: Seconds
) -> PricedUse:
    """What a request of a kind takes of one backend, if it keeps these objectives there."""
    prompt, output = kind.mean_prompt, kind.mean_output
    context = prompt + output // 2
    if kind.kind.model not in spec.models or prompt + output > spec.max_context_tokens:
        return NOWHERE
    fresh = prompt - kind.mean_cached
    prefill_s = latency.prefill_s(fresh, kind.mean_cached) if Phase.PREFILL in spec.phases else math.inf
    batch = batch_of(latency, spec, context, tpot_s) if Phase.DECODE in spec.phases else None
    power = spec.power
    kv_j = power.joule_per_byte * spec.kv_bytes_per_token
    token_j = power.joule_per_flop * power.flop_per_token
    weights_j = power.joule_per_byte * power.weight_bytes
    return PricedUse(
        prefill_s if 0 <= prefill_s <= ttft_s else math.inf,
        math.inf if batch is None else output * batch.share_s,
        0.0 if batch is None else output * batch.held_s * context,
        prompt * spec.kv_bytes_per_token,
        weights_j + fresh * (kv_j + token_j),
        0.0 if batch is None else output * (weights_j / batch.size + kv_j * context + token_j),
    )


def classes_of(
    arrivals: Sequence[Arrivals],
    groups: Sequence[PricedGroup],
    models: ModelSource,
    span_s: Seconds,
    worth_s: Callable[[ServiceLevel, int], Seconds],
) -> list[PricedClass]:
    """The most frequent kinds as classes; the rest count as more of these.

    `worth_s` says what a good request with such objectives and so many output tokens is worth.
    """
    kept = arrivals[:MAX_CLASSES]
    scale = sum(one.count for one in arrivals) / max(1, sum(one.count for one in kept)) / span_s
    known = [(group.spec, latency_of(models, group.spec)) for group in groups]
    return [_class_of(one, one.count * scale, worth_s, known) for one in kept]


def _class_of(
    one: Arrivals,
    rate: float,
    worth_s: Callable[[ServiceLevel, int], Seconds],
    known: Sequence[tuple[BackendSpec, LatencyModel | None]],
) -> PricedClass:
    kind = one.kind
    return PricedClass(kind.model, rate, worth_s(kind.slo, one.mean_output), _uses(one, known))


def latency_of(models: ModelSource, spec: BackendSpec) -> LatencyModel | None:
    """None for a backend without a usable model: it is priced for nobody."""
    try:
        return models(spec)
    except PolyphaseError:
        return None


def _uses(kind: Arrivals, known: Sequence[tuple[BackendSpec, LatencyModel | None]]) -> tuple[PricedUse, ...]:
    slo = kind.kind.slo
    ttft_s = math.inf if slo.ttft_s is None else slo.ttft_s
    tpot_s = math.inf if slo.tpot_s is None else slo.tpot_s

    def under(ttft_s: Seconds, tpot_s: Seconds) -> list[PricedUse]:
        return [NOWHERE if m is None else use_of(m, spec, kind, ttft_s, tpot_s) for spec, m in known]

    uses = under(ttft_s, tpot_s)
    if not any(use.prefills for use in uses):
        ttft_s = math.inf
    if not any(use.decodes for use in uses):
        tpot_s = math.inf
    return tuple(under(ttft_s, tpot_s))


def too_many(groups: Sequence[PricedGroup]) -> bool:
    """Whether the fleet has more kinds of backends than one problem holds."""
    return len(groups) > MAX_GROUPS
