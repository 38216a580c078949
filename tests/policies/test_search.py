"""Whatever the fleet: a placement is eligible, and the search for pairs gives what trying all gives."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.aim import Aim
from policies.filters import Screen
from policies.outlook import Outlook
from policies.registry import BUILTIN
from policies.search import Best, shortlist
from policies.standing import Standing
from router.model import (
    BackendSnapshot,
    BackendState,
    BackendView,
    ConnectorFlags,
    InFlight,
    LinkParameters,
    Phase,
    Placement,
    Reject,
    Request,
    RoutePlan,
    StepParameters,
    Wait,
)
from tests.policies.world import MODEL, Models, Views, policy, spec

MODELS = Models()
QUEUES: dict[str, dict[str, object]] = {
    "round_robin": {},
    "least_loaded": {},
    "scored": {},
    "predicted": {"max_prefill_queue": 32, "overbook": 0.0},
    "priced": {"predicted": {"max_prefill_queue": 32, "overbook": 0.0}},
}
"""By these every policy lets 32 prefills be in flight on a backend, and lets no decode wait for a slot."""
counts = st.one_of(st.integers(0, 50), st.just(0))
tokens = st.one_of(st.integers(0, 20_000), st.just(0))
garbage = st.sampled_from([0, 17, -5, math.nan, math.inf, 10**30])


@st.composite
def backends(draw: st.DrawFn, index: int) -> BackendView:
    """Any backend, from a few kinds so that classes of equals occur."""
    speed = draw(st.sampled_from([1.0, 2.0, 7.0]))
    step = StepParameters(
        base_s=0.002 * speed,
        per_sequence_s=draw(st.sampled_from([0.0, 1e-4])),
        per_context_token_s=draw(st.sampled_from([0.0, 1e-7])),
        per_prefill_token_s=draw(st.sampled_from([1e-5, 1e-4])),
    )
    made = spec(
        f"b{index}",
        draw(st.sampled_from([frozenset({Phase.PREFILL}), frozenset({Phase.DECODE}), frozenset(Phase)])),
        step=step,
        models=draw(st.sampled_from([(MODEL,), (MODEL, "other")])),
        kv_layout=draw(st.sampled_from(["L", "L", "K"])),
        kv_accepts=draw(st.sampled_from([(), (), ("L",)])),
        kv_capacity_tokens=draw(st.sampled_from([500, 50_000, 1 << 30])),
        max_num_seqs=draw(st.sampled_from([1, 8, 256])),
        max_context_tokens=draw(st.sampled_from([600, 1 << 20])),
        max_num_batched_tokens=draw(st.sampled_from([64, 8192])),
        link=draw(st.sampled_from([LinkParameters(0.001, 1e9), LinkParameters(0.0, 1e8)])),
        connector=ConnectorFlags(first_token_from_prefill=draw(st.booleans())),
        zone=draw(st.sampled_from(["x", "y"])),
    )
    state = draw(st.sampled_from([BackendState.READY] * 6 + list(BackendState)))
    load = InFlight(draw(counts), draw(tokens), draw(counts), draw(tokens), draw(tokens))
    seen = draw(
        st.one_of(st.none(), st.builds(BackendSnapshot, st.just(0.0), counts, counts, tokens, tokens))
    )
    if draw(st.booleans()):
        seen = BackendSnapshot(0.0, *(draw(garbage) for _ in range(4)))
    return BackendView(made, state, seen, load)


@st.composite
def fleets(draw: st.DrawFn) -> Views:
    """Up to eight backends."""
    return Views([draw(backends(i)) for i in range(draw(st.integers(0, 8)))])


requests = st.builds(
    Request,
    st.just("r"),
    st.just(MODEL),
    st.sampled_from([0, 1, 400, 3000]),
    st.sampled_from([0, 1, 150, 2000]),
    session_key=st.sampled_from(["", "s"]),
)


def sane(value: float) -> float:
    """The rule for counts of a snapshot, said once more."""
    return value if 0 <= value <= 1e15 else 0


def may(view: BackendView, phase: Phase, asked: Request, output: int, alone: bool = False) -> bool:
    """Eligibility, written down independently of the filter."""
    s, ours = view.spec, view.in_flight
    used = max(sane(view.snapshot.kv_used_tokens) if view.snapshot else 0, ours.kv_tokens)
    whole = asked.prompt_tokens + asked.max_new_tokens
    if view.state is not BackendState.READY or phase not in s.phases or whole > s.max_context_tokens:
        return False
    if ours.decodes >= s.max_num_seqs:
        return False
    if phase is Phase.PREFILL:
        fills = alone and not ours.decodes and ours.prefill_tokens < s.max_num_batched_tokens
        return (fills or ours.prefills < 32) and used + asked.prompt_tokens <= s.kv_capacity_tokens
    return used + asked.prompt_tokens + output <= s.kv_capacity_tokens and whole <= s.kv_capacity_tokens


def pairs(
    fleet: Views, asked: Request, output: int, alone: bool = False
) -> list[tuple[BackendView, BackendView]]:
    """All eligible pairs."""
    return [
        (p, d)
        for p in fleet.views
        for d in fleet.views
        if may(p, Phase.PREFILL, asked, output, alone)
        and may(d, Phase.DECODE, asked, output)
        and d.spec.accepts_kv_of(p.spec)
    ]


def emptied(fleet: Views) -> Views:
    """The same fleet, idle and ready."""
    return Views(
        [replace(v, state=BackendState.READY, snapshot=None, in_flight=InFlight()) for v in fleet.views]
    )


def output_of(name: str, asked: Request) -> int:
    """Output tokens a policy asks room for, before it learned anything."""
    return min(max(1, asked.max_new_tokens), 256) if name in ("predicted", "priced") else asked.max_new_tokens


@pytest.mark.parametrize("name", BUILTIN)
@settings(deadline=None, max_examples=80)
@given(fleet=fleets(), asked=requests, seed=st.integers(0, 99))
def test_every_answer_is_possible(name: str, fleet: Views, asked: Request, seed: int) -> None:
    """A plan names an eligible pair; Wait means that an idle fleet could do it; Reject that it could not."""
    before = repr(fleet.views)
    answer = policy(name, seed, **QUEUES[name]).plan(asked, fleet, 0.0)
    output = output_of(name, asked)
    alone = name in ("predicted", "priced")  # they fill a step where nothing decodes
    possible = {(p.spec.id, d.spec.id) for p, d in pairs(fleet, asked, output, alone)}
    if isinstance(answer, RoutePlan):
        first = answer.decision.candidates[0]
        assert (first.prefill, first.decode) in possible
        # A decode that is bound late is named by the first candidate alone.
        assert (answer.prefill, answer.decode or first.decode) == (first.prefill, first.decode)
        assert len(answer.decision.candidates) <= 16
    else:
        assert not possible
        assert isinstance(answer, Wait if pairs(emptied(fleet), asked, asked.max_new_tokens) else Reject)
        assert answer.reason
    assert repr(fleet.views) == before  # NaN differs from itself, but not in print


@pytest.mark.parametrize("name", BUILTIN)
@settings(deadline=None, max_examples=50)
@given(fleet=fleets(), asked=requests)
def test_every_binding_is_possible(name: str, fleet: Views, asked: Request) -> None:
    """Late binding names a decode backend that may take over the KV."""
    output = output_of(name, asked)
    for producer in fleet.views:
        answer = policy(name, **QUEUES[name]).bind_decode(asked, producer.spec.id, fleet, 0.0)
        takers = [
            v.spec.id
            for v in fleet.views
            if may(v, Phase.DECODE, asked, output) and v.spec.accepts_kv_of(producer.spec)
        ]
        if isinstance(answer, Placement):
            assert answer.backend in takers or answer.backend == producer.spec.id
        else:
            assert not takers


@pytest.mark.parametrize("name", BUILTIN)
@settings(deadline=None, max_examples=50)
@given(fleet=fleets(), asked=requests, seed=st.integers(0, 99))
def test_the_same_seed_gives_the_same_answers(name: str, fleet: Views, asked: Request, seed: int) -> None:
    """Also from a copy, as a dry run makes one, and without a trace in the original."""
    one, other = policy(name, seed), policy(name, seed)
    answers = [one.plan(asked, fleet, float(i)) for i in range(4)]
    dry = [copy.deepcopy(other).plan(asked, fleet, 0.0) for _ in range(2)]
    assert dry == [answers[0]] * 2
    assert [other.plan(asked, fleet, float(i)) for i in range(4)] == answers


@settings(deadline=None, max_examples=200)
@given(fleet=fleets(), asked=requests, weight=st.sampled_from([0.0, 0.3, 1.0]), keep=st.integers(1, 6))
def test_the_search_gives_what_trying_all_pairs_gives(
    fleet: Views, asked: Request, weight: float, keep: int
) -> None:
    """The best `keep` costs are those of the best `keep` of all pairs, tried one by one."""
    found = Screen(MODELS, 32).pass_over(asked, fleet.views, 100)
    outlook = Outlook(asked, fleet, 100, Aim(1.0, weight))
    best = outlook.pairs(found.decode, outlook.prefill_ends(found.prefill), keep)
    costs = []
    for p in found.prefill:
        for d in found.decode:
            if d.spec.accepts_kv_of(p.spec):
                part = outlook.parts(p, d)
                costs.append((1 - weight) * part["finish_s"] + weight * part["ttft_s"])
    assert [each[0] for each in best] == pytest.approx(sorted(costs)[:keep])
    for cost, _, _, _, p, d in best:
        part = outlook.parts(p, d)
        assert cost == pytest.approx((1 - weight) * part["finish_s"] + weight * part["ttft_s"])


def test_a_thousand_equals_need_few_handoffs() -> None:
    """Classes of equals are searched, not the quarter of a million pairs; the first to join wins a tie."""
    phases = (frozenset({Phase.PREFILL}), frozenset({Phase.DECODE}))
    views = [BackendView(spec(f"b{i}", phases[i % 2])) for i in range(1000)]
    asked, fleet = Request("r", MODEL, 1000, 100), Counted(views)
    answer = policy("predicted").plan(asked, fleet, 0.0)
    assert isinstance(answer, RoutePlan)
    assert (answer.prefill, answer.decode) == ("b0", "b1")
    assert fleet.links < 20


class Counted(Views):
    """Counts how often a link is asked for."""

    links = 0

    def link(self, producer: str, consumer: str) -> LinkParameters:
        self.links += 1
        return super().link(producer, consumer)


def test_a_backend_is_not_paired_with_itself() -> None:
    """Where one backend is the best of both sides, the best pair has the second best of one side."""
    screen = Screen(MODELS, 32)
    x, y = (screen.standing(BackendView(spec(name)), i) for i, name in enumerate("xy"))
    rows = [(1.0, 0, x), (5.0, 1, y)], [(2.0, 0, x), (3.0, 1, y)]

    def free(s: Standing) -> float:
        return 0.0

    best = Best(1)
    best.search([shortlist(rows[0], free, 1)], [shortlist(rows[1], free, 1)], lambda p, d: 0.5)
    assert [(cost, p.id, d.id) for cost, _, _, _, p, d in best.pairs] == [(4.5, "x", "y")]


def test_the_best_keeps_no_more_than_asked() -> None:
    """Four hundred offers leave two pairs, the cheapest."""
    screen, rng = Screen(MODELS, 32), Random(3)
    views = Views([BackendView(spec(f"b{i}")) for i in range(20)])
    found = screen.pass_over(Request("r", MODEL, 10, 10), views.views, 10)
    best, costs = Best(2), []
    for p in found.prefill:
        for d in found.decode:
            costs.append(rng.random())
            best.offer(costs[-1], p, d)
    assert [each[0] for each in best.pairs] == sorted(costs)[:2]
