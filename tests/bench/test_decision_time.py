"""What one decision costs: every policy on 10, 100 and 1,000 backends. Run with --benchmark-enable."""

from __future__ import annotations

from random import Random

import pytest

from policies.registry import BUILTIN
from router.core.ports import Policy
from router.model import BackendKind, BackendView, LinkParameters, RoutePlan, StepParameters
from tests.policies.world import BOTH, DECODE, PREFILL, Views, policy, request, spec, view

SIZES = (10, 100, 1000)
CHANGES = 8
"""Backends whose view changes between two decisions: two booked, some released, some reported."""


def fleet(size: int, rng: Random, busy: bool) -> Views:
    """Five kinds of backends, prefill and decode mixed; idle, or each with a load of its own."""
    return Views(one(i, rng, busy) for i in range(size))


def one(i: int, rng: Random, busy: bool) -> BackendView:
    """Backend number i."""
    kind = i % 5
    step = StepParameters(
        base_s=0.002 * (kind + 1),
        per_sequence_s=1e-5,
        per_context_token_s=1e-8,
        per_prefill_token_s=1e-5 * (kind + 1),
        per_attention_pair_s=1e-10,
    )
    phases = (BOTH, PREFILL, DECODE, BOTH, DECODE)[kind]
    link = LinkParameters(0.0005 * (kind + 1), 5e10)
    made = spec(f"b{i}", phases, step=step, link=link, kind=list(BackendKind)[kind], device=f"d{kind}")
    if not busy:
        return view(made)
    prefills, decodes = rng.randrange(8), rng.randrange(60)
    tokens = prefills * rng.randrange(100, 2000)
    return view(
        made,
        prefills=prefills,
        prefill_tokens=tokens,
        decodes=decodes,
        decode_tokens=decodes * rng.randrange(50, 400),
        kv_tokens=tokens + decodes * rng.randrange(500, 3000),
    )


@pytest.mark.benchmark(group="decision")
@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_decision(benchmark, name: str, size: int, busy: bool) -> None:
    """Time of one plan, with some backends changed since the one before."""
    rng = Random(7)
    views = list(fleet(size, rng, busy).views)
    chosen: Policy = policy(name)
    asked = request(1500, 300)

    def change() -> tuple[tuple[Views], dict[str, object]]:
        for _ in range(CHANGES):
            i = rng.randrange(size)
            views[i] = one(i, rng, busy)
        changed = Views(views)
        changed.for_model = lambda model, known=changed.views: known  # the router keeps this list too
        return (changed,), {}

    chosen.plan(asked, Views(views), 0.0)
    answer = benchmark.pedantic(lambda now: chosen.plan(asked, now, 0.0), setup=change, rounds=100)
    assert isinstance(answer, RoutePlan)
