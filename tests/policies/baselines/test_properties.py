"""Whatever the fleet: a baseline's answer can be carried out, and Wait and Reject are told apart."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.baselines.table import BASELINES
from router.core.messages import BackendRemoved
from router.errors import ConfigError
from router.model import BackendState, BackendView, Phase, Placement, Reject, Request, RoutePlan, Wait
from tests.policies.test_search import emptied, fleets, pairs, requests
from tests.policies.world import Views, policy


def able(view: BackendView, phase: Phase, asked: Request) -> bool:
    """Ready, and able to do a phase if idle; written down apart from the code."""
    s, whole = view.spec, asked.prompt_tokens + asked.max_new_tokens
    need = asked.prompt_tokens if phase is Phase.PREFILL else whole
    return (
        view.state is BackendState.READY
        and phase in s.phases
        and whole <= s.max_context_tokens
        and need <= s.kv_capacity_tokens
    )


def possible(fleet: Views, asked: Request) -> set[tuple[str, str]]:
    """Pairs that could do it, full or not."""
    return {
        (p.spec.id, d.spec.id)
        for p in fleet.views
        for d in fleet.views
        if able(p, Phase.PREFILL, asked) and able(d, Phase.DECODE, asked) and d.spec.accepts_kv_of(p.spec)
    }


@pytest.mark.parametrize("name", BASELINES)
@settings(deadline=None, max_examples=50)
@given(fleet=fleets(), asked=requests, seed=st.integers(0, 99))
def test_every_answer_can_be_carried_out(name: str, fleet: Views, asked: Request, seed: int) -> None:
    """A full backend may be chosen, since the originals do so; one that is not able never is."""
    chosen = policy(name, seed)
    answer = chosen.plan(asked, fleet, 0.0)
    if isinstance(answer, RoutePlan):
        assert (answer.prefill, answer.decode) in possible(fleet, asked)
        assert answer.decision.policy == name
        first = answer.decision.candidates[0]
        assert (first.prefill, first.decode) == (answer.prefill, answer.decode)
    else:
        assert not possible(fleet, asked)
        assert isinstance(answer, Wait if pairs(emptied(fleet), asked, asked.max_new_tokens) else Reject)
    for view in fleet.views:
        chosen.observe(BackendRemoved(view.spec.id), 1.0)


@pytest.mark.parametrize("name", BASELINES)
@settings(deadline=None, max_examples=30)
@given(fleet=fleets(), asked=requests)
def test_every_binding_can_be_carried_out(name: str, fleet: Views, asked: Request) -> None:
    """Late binding names a decode backend that takes over the KV."""
    for producer in fleet.views:
        takers = {
            v.spec.id
            for v in fleet.views
            if able(v, Phase.DECODE, asked) and v.spec.accepts_kv_of(producer.spec)
        }
        answer = policy(name).bind_decode(asked, producer.spec.id, fleet, 0.0)
        if isinstance(answer, Placement):
            assert answer.backend in takers
        else:
            assert not takers
    assert isinstance(policy(name).bind_decode(asked, "nobody", fleet, 0.0), Wait)


@pytest.mark.parametrize("name", BASELINES)
@settings(deadline=None, max_examples=30)
@given(fleet=fleets(), asked=requests, seed=st.integers(0, 99))
def test_a_dry_run_leaves_no_trace(name: str, fleet: Views, asked: Request, seed: int) -> None:
    """Copies answer alike, and the original goes on as if they had not been asked."""
    one, other = policy(name, seed), policy(name, seed)
    answers = [one.plan(asked, fleet, float(i)) for i in range(3)]
    assert [copy.deepcopy(other).plan(asked, fleet, 0.0) for _ in range(2)] == [answers[0]] * 2
    assert [other.plan(asked, fleet, float(i)) for i in range(3)] == answers


@pytest.mark.parametrize("name", BASELINES)
def test_a_wrong_key_is_an_error(name: str) -> None:
    """Also for a baseline without parameters."""
    with pytest.raises(ConfigError, match='unknown key "speed"'):
        policy(name, speed=3)
