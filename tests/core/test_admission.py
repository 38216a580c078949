"""The queue's order and bound, and the retry budget, worked by hand."""

import math

import pytest

from router.core.admission import AdmissionQueue, Limits, RetryBudget
from router.model import Priority, Request


def request(name: str, priority: Priority = Priority.NORMAL, model: str = "m") -> Request:
    """A small request."""
    return Request(name, model, 1, 1, priority=priority)


def order(queue: AdmissionQueue) -> list[str]:
    """Ids in the order in which places are offered."""
    return [r.id for _, line in queue.lines() for r in line]


def test_order() -> None:
    """Priority first, then arrival; one that was admitted before keeps its turn."""
    queue = AdmissionQueue(10)
    for name, priority in [("a", Priority.NORMAL), ("b", Priority.SYSTEM), ("c", Priority.NORMAL)]:
        assert queue.push(request(name, priority)) is None
    queue.push_front(request("again"))
    assert order(queue) == ["b", "again", "a", "c"]
    assert queue.depth(Priority.NORMAL) == 3


def test_full_queue_sheds_the_youngest_of_the_lowest_class() -> None:
    """A higher class pushes a lower one out; its own class does not."""
    queue = AdmissionQueue(2)
    queue.push(request("old", Priority.BULK))
    queue.push(request("young", Priority.BULK))
    shed = queue.push(request("urgent", Priority.SYSTEM))
    assert shed is not None
    assert shed.id == "young"
    shed = queue.push(request("late", Priority.BULK))
    assert shed is not None
    assert shed.id == "late"
    assert len(queue) == 2


def test_newcomers_wait_behind_their_own_model_only() -> None:
    """Somebody else's model does not hold a request up."""
    queue = AdmissionQueue(10)
    queue.push(request("a", Priority.NORMAL, "m"))
    assert queue.has_before(request("b", Priority.NORMAL, "m"))
    assert queue.has_before(request("b", Priority.BULK, "m"))
    assert not queue.has_before(request("b", Priority.SYSTEM, "m"))
    assert not queue.has_before(request("b", Priority.NORMAL, "other"))
    queue.remove(request("a", Priority.NORMAL, "m"))
    assert not queue.has_before(request("b", Priority.NORMAL, "m"))
    assert len(queue) == 0


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
