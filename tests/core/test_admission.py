"""The retry budget, worked by hand."""

import math

import pytest

from router.core.admission import Limits, RetryBudget


def test_retry_budget_floor_and_share() -> None:
    """Thirty retries from a cold start (3/s over 10 s), then a quarter of what is admitted."""
    budget = RetryBudget(Limits(retry_ratio=0.25))
    assert sum(budget.withdraw(0.0) for _ in range(100)) == 30
    for _ in range(40):
        budget.deposit(0.0)
    assert sum(budget.withdraw(0.0) for _ in range(100)) == 10


def test_retry_budget_comes_back_with_time() -> None:
    """After one window the floor is back to 1 - 1/e of its level."""
    budget = RetryBudget(Limits())
    while budget.withdraw(0.0):
        pass
    back = sum(budget.withdraw(10.0) for _ in range(100))
    assert back == pytest.approx(30 * (1 - math.exp(-1)), abs=1)
