"""Whose turn it is, who must go when the queue is full, and what lower classes are owed, worked by hand."""

from __future__ import annotations

import pytest

from router.core.admission import Limits
from router.core.fairness import MAX_TENANTS, Guarantee, Line
from router.core.queue import AdmissionQueue
from router.core.rounds import Round
from router.model import Priority, Request

NORMAL = Priority.NORMAL


def request(
    name: str, priority: Priority = NORMAL, model: str = "m", tenant: str = "", prompt: int = 1
) -> Request:
    """A small request."""
    return Request(name, model, prompt, 1, priority=priority, tenant=tenant)


def serve(queue: AdmissionQueue, costs: float = 10.0, now: float = 0.0, model: str = "m") -> list[str]:
    """Ids in the order in which places are offered, when everybody gets one, at the same cost."""
    lines, order = queue.of(model), list[str]()
    offers = Round(lines, 8, lambda request: True)
    while (one := offers.next(now)) is not None:
        order.append(one.id)
        lines.charge(one, costs, now)
        queue.remove(one)
        offers.placed()
    return order


def asked(queue: AdmissionQueue, refuse: bool = False) -> list[str]:
    """Ids in the order in which they are asked about, when nobody gets a place."""
    lines, order = queue.of("m"), list[str]()
    offers = Round(lines, 8, lambda request: True)
    while (one := offers.next(0.0)) is not None:
        order.append(one.id)
        if refuse:
            lines.refuse(one)
        offers.refused()
    return order


def queue_of(*requests: Request, limits: Limits | None = None) -> AdmissionQueue:
    """A queue in which these wait, since 0."""
    queue = AdmissionQueue(limits or Limits())
    for one in requests:
        assert queue.push(one, 0.0) is None
    return queue


def test_order_by_class_and_arrival() -> None:
    """Priority first, then arrival; one that was admitted before keeps its turn."""
    queue = queue_of(request("a"), request("b", Priority.SYSTEM), request("c"))
    queue.push_front(request("again"), 0.0)
    assert queue.depth(NORMAL) == 3
    assert serve(queue) == ["b", "again", "a", "c"]
    assert len(queue) == 0


def test_tenants_take_turns() -> None:
    """A tenant with many requests waiting gets no more than one with few."""
    flood = [request(f"f{i}", tenant="flood") for i in range(5)]
    queue = queue_of(*flood, request("x1", tenant="x"), request("x2", tenant="x"))
    assert serve(queue) == ["f0", "x1", "f1", "x2", "f2", "f3", "f4"]


def test_time_away_is_no_credit() -> None:
    """Who comes back is lifted to the level of those that were served meanwhile."""
    line = Line()
    line.charge(request("x", tenant="x"), 10.0)
    for i in range(10):
        line.charge(request(f"f{i}", tenant="flood"), 10.0)
    line.push(request("x2", tenant="x"))
    line.push(request("f10", tenant="flood"))
    assert line.tenants["x"].served == 90.0
    assert line.tenants["flood"].served == 100.0


def test_debt_outlasts_time_away() -> None:
    """Who leaves after a large request comes back behind those that had less."""
    line = Line()
    line.charge(request("x", tenant="x"), 1000.0)
    line.charge(request("y", tenant="y"), 10.0)
    line.push(request("x2", tenant="x"))
    line.push(request("y2", tenant="y"))
    assert line.tenants["x"].served == 1000.0
    assert line.tenants["y"].served < 100.0


def test_what_was_charged_too_much_comes_back() -> None:
    """A request is charged with what was expected; at its end with what it was."""
    line = Line()
    line.push(request("x", tenant="x"))
    line.charge(request("x0", tenant="x"), 100.0)
    line.correct(request("x0", tenant="x"), -70.0)
    assert line.tenants["x"].served == 30.0


def test_counters_of_tenants_are_bounded() -> None:
    """Made-up names do not fill the memory."""
    line = Line()
    for i in range(MAX_TENANTS + 10):
        line.charge(request("x", tenant=f"t{i}"), 10.0)
    assert len(line._away) <= MAX_TENANTS


def test_a_refused_tenant_holds_up_no_other() -> None:
    """Those who were not refused yet are asked next, whatever they have been served."""
    large = [request(f"f{i}", tenant="flood") for i in range(20)]
    queue = queue_of(*large, request("x1", tenant="x"), request("y1", tenant="y"))
    assert asked(queue) == ["f0", "x1", "y1", "f1", "f2", "f3", "f4", "f5"]


def test_who_needs_no_less_is_not_asked() -> None:
    """After one was refused for want of room; a smaller one is."""
    queue = queue_of(request("a", prompt=10), request("b", prompt=10), request("c", prompt=5))
    assert asked(queue, refuse=True) == ["a", "c"]
    lines = queue.of("m")
    assert not lines.may_ask(request("d", prompt=7))
    assert lines.may_ask(request("e", prompt=4))
    assert lines.room_came()
    assert lines.may_ask(request("d", prompt=7))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_a_class_gets_its_least_share(share: float) -> None:
    """Of the tokens dispatched, while a higher class would take everything."""
    limits = Limits(bulk_share=share, starvation_s=1e9)
    queue = queue_of(*(request(f"b{i}", Priority.BULK) for i in range(400)), limits=limits)
    served = 0
    for i in range(400):
        queue.push(request(f"s{i}", Priority.SYSTEM), 0.0)
        lines = queue.of("m")
        one = Round(lines, 8, lambda request: True).next(0.0)
        assert one is not None
        lines.charge(one, 10.0, 0.0)
        queue.remove(one)
        served += one.priority is Priority.BULK
    assert served == pytest.approx(share * 400, abs=2)


def test_who_starves_goes_first() -> None:
    """After the bound, and only for so much of the tokens."""
    limits = Limits(bulk_share=0.0, starvation_s=5.0, starvation_share=0.5)
    waiting = [request(f"b{i}", Priority.BULK) for i in range(3)]
    queue = queue_of(*waiting, *(request(f"s{i}", Priority.SYSTEM) for i in range(4)), limits=limits)
    queue.of("m").charge(request("before"), 10.0, 0.0)
    assert serve(queue, now=4.9)[:3] == ["s0", "s1", "s2"]
    queue = queue_of(*waiting, *(request(f"s{i}", Priority.SYSTEM) for i in range(4)), limits=limits)
    queue.of("m").charge(request("before"), 10.0, 0.0)
    assert serve(queue, now=5.0) == ["b0", "s0", "b1", "s1", "b2", "s2", "s3"]


def test_nothing_is_saved_up() -> None:
    """A guarantee that nobody asked for is worth one request, not a backlog of them."""
    guarantee = Guarantee(0.1)
    assert guarantee.due(1000.0)
    guarantee.use(10.0, 1010.0)
    assert not guarantee.due(1099.0)
    assert guarantee.due(1100.0)


def test_full_queue_sheds_the_youngest_of_the_lowest_class() -> None:
    """A higher class pushes a lower one out; its own class does not."""
    limits = Limits(queue_capacity=2)
    queue = queue_of(request("old", Priority.BULK), request("young", Priority.BULK), limits=limits)
    shed = queue.push(request("urgent", Priority.SYSTEM), 0.0)
    assert shed is not None
    assert shed.id == "young"
    shed = queue.push(request("late", Priority.BULK), 0.0)
    assert shed is not None
    assert shed.id == "late"
    assert len(queue) == 2


def test_full_queue_sheds_whoever_fills_it() -> None:
    """The youngest of the tenant with the most waiting goes, not the newcomer of another."""
    queue = queue_of(*(request(f"f{i}", tenant="flood") for i in range(3)), limits=Limits(queue_capacity=3))
    shed = queue.push(request("x", tenant="x"), 0.0)
    assert shed is not None
    assert shed.id == "f2"


def test_a_flood_does_not_push_out_what_a_lower_class_is_owed() -> None:
    """Its share of the places stays; the flood sheds its own."""
    limits = Limits(queue_capacity=10, bulk_share=0.2)
    bulk = [request(f"b{i}", Priority.BULK) for i in range(2)]
    queue = queue_of(*bulk, *(request(f"n{i}") for i in range(8)), limits=limits)
    shed = queue.push(request("n8"), 0.0)
    assert shed is not None
    assert shed.id == "n8"
    assert queue.depth(Priority.BULK) == 2
