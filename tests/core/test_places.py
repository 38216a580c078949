"""Who has to leave room for others, worked by hand."""

from __future__ import annotations

from router.core.admission import Limits
from router.core.fleet import Fleet
from router.core.places import NOTHING, Held, Places
from router.model import Priority, Request
from tests.core.fakes import MODEL, spec

SLOT = Held(1.0, 10.0, 0.0)


def places(limits: Limits) -> Places:
    """Of one backend with ten slots, and KV and prompts to spare."""
    fleet = Fleet()
    fleet.join(spec("gpu", max_num_seqs=10, kv_capacity_tokens=10_000), "boot", "")
    return Places(MODEL, fleet, limits)


def request(tenant: str, priority: Priority = Priority.NORMAL) -> Request:
    """Of a tenant."""
    return Request("r", MODEL, 5, 5, tenant=tenant, priority=priority)


def test_alone_a_tenant_may_have_everything() -> None:
    """There is nobody to leave room for."""
    held = places(Limits(tenant_reserve=0.5))
    for _ in range(20):
        assert held.open_to(request("a"))
        held.take(request("a"), SLOT)


def test_who_holds_much_more_leaves_room() -> None:
    """At half of the slots the flood has to wait, and others have not."""
    held = places(Limits(tenant_reserve=0.5))
    held.take(request("b"), SLOT)
    for _ in range(4):
        assert held.open_to(request("a"))
        held.take(request("a"), SLOT)
    assert not held.open_to(request("a"))
    assert held.open_to(request("b"))
    assert held.open_to(request("new"))
    held.free(request("b"), SLOT)
    assert held.open_to(request("a"))


def test_a_class_leaves_room_for_each_above() -> None:
    """Bulk stops at 60 %, normal at 80 %, interactive takes what is left."""
    held = places(Limits(class_reserve=0.2, tenant_reserve=0.0))
    held.take(request("a", Priority.NORMAL), SLOT)
    held.take(request("a", Priority.INTERACTIVE), SLOT)
    for _ in range(4):
        assert held.open_to(request("a", Priority.BULK))
        held.take(request("a", Priority.BULK), SLOT)
    assert not held.open_to(request("a", Priority.BULK))
    for _ in range(2):
        assert held.open_to(request("a", Priority.NORMAL))
        held.take(request("a", Priority.NORMAL), SLOT)
    assert not held.open_to(request("a", Priority.NORMAL))
    assert held.open_to(request("a", Priority.INTERACTIVE))


def test_prompts_count_until_they_are_prefilled() -> None:
    """One step of 8192 prompt tokens fills the fleet as well as ten slots do."""
    held = places(Limits(tenant_reserve=0.5))
    held.take(request("b"), SLOT)
    held.take(request("a"), Held(1.0, 100.0, 5000.0))
    assert not held.open_to(request("a"))
    held.prefilled(5000.0)
    assert held.open_to(request("a"))


def test_everything_comes_back() -> None:
    """What was taken and freed leaves nothing."""
    held = places(Limits())
    for tenant in "abc":
        held.take(request(tenant), SLOT)
    for tenant in "abc":
        held.free(request(tenant), SLOT)
    assert held.held == NOTHING
