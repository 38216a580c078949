"""Policies that raise, stall or lie under a real router: no request pays for it."""

from __future__ import annotations

import pytest

from router.core.messages import PolicyOverran
from router.live.timed_policy import TimedPolicy
from tests.faults.policies import BadPolicy, ByName
from tests.faults.stage import Stage, stage

FAULTS = ["raised", "slow", "unknown_backend", "wrong_phase", "wrong_type"]
BUDGET_S = 0.005


def faults(on: Stage, fault: str) -> float:
    """Faults counted against the bad policy."""
    return on.metric(f'polyphase_policy_faults_total{{fault="{fault}",policy="bad"}}')


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_policy_that_misbehaves_is_bypassed(fault: str) -> None:
    """Every request gets its right answer; three faults in a row and the policy is not asked any more."""
    async with stage("p1 d1") as on:
        metrics, bad = on.parts.metrics, BadPolicy(fault)

        def overran(duration_s: float) -> None:
            on.parts.driver.tell(PolicyOverran(duration_s))

        on.replace(TimedPolicy(bad, BUDGET_S, metrics.decision, overran))
        for i in range(6):
            assert (await on.ask(f"r{i}").answer()).attempts == 1
        assert bad.asked == faults(on, fault) == 3
        assert faults(on, "bypassed") == 1
        on.replace(ByName())
        assert (await on.ask("healed").answer()).attempts == 1
