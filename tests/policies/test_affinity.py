"""Who holds the beginning of a prompt: from events, from our placements, for how long; and no hotspots."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from policies.affinity import Affinity, Holders
from router.core.core import RouterCore
from router.core.messages import BackendJoined, BackendLost, BackendRemoved, KVBlocksChanged
from router.core.ports import Tap
from router.model import BackendSpec, InFlight, Request, RoutePlan, StepParameters
from router.observe.record import Recorder
from router.observe.replay import replay
from router.sim.network import Network
from router.sim.world import World
from tests.policies.world import MODEL, Models, Views, policy, spec, view

A, B = spec("a"), spec("b")


def joined(of: BackendSpec = A, boot: str = "1") -> BackendJoined:
    """A backend is there."""
    return BackendJoined(of, boot)


def changed(backend: str = "a", boot: str = "1", **what: object) -> KVBlocksChanged:
    """An event of a backend."""
    return KVBlocksChanged(backend, boot, **what)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_the_walk_finds_what_counting_each_backend_finds(seed: int) -> None:
    """Any sets of blocks, with gaps, after some were dropped."""
    rng, holders = Random(seed), Holders()
    sets: dict[str, set[int]] = {f"b{i}": set() for i in range(70)}
    slots = {name: holders.enter(name) for name in sets}
    for name, held in sets.items():
        held.update(one for one in range(12) if rng.random() < 0.8)
        for one in held:
            holders.add(one, slots[name])
        for one in [one for one in held if rng.random() < 0.2]:
            held.discard(one)
            holders.drop(one, slots[name])
    for length in (0, 1, 5, 12, 20):
        counted = {
            name: next((i for i in range(length) if i not in held), length) for name, held in sets.items()
        }
        assert holders.leading(range(length)) == {name: depth for name, depth in counted.items() if depth}


def test_events_are_believed_and_another_boots_are_not() -> None:
    """Stored, evicted, cleared; a restart empties, and late events of the old boot are void."""
    index = Affinity()
    index.observe(joined(), 0.0)
    index.observe(changed(stored=(1, 2, 3)), 0.0)
    assert index.held((1, 2, 3, 4), 1e6) == {"a": 3}
    index.observe(changed(removed=(3,)), 1.0)
    assert index.held((1, 2, 3), 1e6) == {"a": 2}
    index.observe(changed(cleared=True, stored=(7,)), 2.0)
    assert (index.held((1, 2), 1e6), index.held((7,), 1e6)) == ({}, {"a": 1})
    index.observe(joined(boot="2"), 3.0)
    index.observe(changed(boot="1", stored=(7,)), 3.0)
    assert (index.held((7,), 1e6), len(index)) == ({}, 0)
    index.observe(changed(boot="2", stored=(7,)), 4.0)
    assert index.held((7,), 1e6) == {"a": 1}


@pytest.mark.parametrize("gone", [BackendLost("a"), BackendRemoved("a")])
def test_a_backend_that_is_gone_holds_nothing(gone: BackendLost | BackendRemoved) -> None:
    """And its place in the index goes to the next that comes, which inherits nothing."""
    index = Affinity()
    index.observe(joined(), 0.0)
    index.observe(changed(stored=(1, 2)), 0.0)
    index.placed(B, (1,), 0.0)
    index.observe(gone, 1.0)
    assert index.held((1, 2), 1.0) == {"b": 1}
    index.placed(spec("c"), (5,), 1.0)
    assert (index.held((1, 2), 1.0), index.held((5,), 1.0)) == ({"b": 1}, {"c": 1})


def test_what_is_inferred_expires_unless_it_is_used() -> None:
    """Ten seconds for each; a use at 6 s lasts until 16 s."""
    index = Affinity(expire_s=10.0)
    index.placed(A, (1, 2), 0.0)
    index.placed(B, (1, 2), 0.0)
    index.placed(A, (1,), 6.0)
    assert index.held((1, 2), 9.9) == {"a": 2, "b": 2}
    assert index.held((1, 2), 10.0) == {"a": 1}
    assert (index.held((1, 2), 16.0), len(index)) == ({}, 0)


def test_a_placement_is_a_promise_where_events_come() -> None:
    """It counts for two seconds; what an event confirms stays, what none does is gone, however old."""
    index = Affinity(expire_s=100.0, promise_s=2.0)
    index.placed(A, (1, 2, 3), 0.0)
    index.observe(changed(stored=(9,)), 1.0)
    assert index.held((1, 2, 3), 1.9) == {"a": 3}
    index.observe(changed(stored=(1, 2)), 1.9)
    assert index.held((1, 2, 3), 2.0) == {"a": 2}
    index.placed(A, (1, 2, 3), 5.0)
    index.observe(changed(removed=(2, 3)), 5.5)
    assert index.held((1, 2, 3), 5.6) == {"a": 1}
    index.placed(A, (4,), 50.0)
    assert (index.held((4,), 51.9), index.held((4,), 52.0)) == ({"a": 1}, {})


def test_a_backend_holds_no_more_than_it_has_room_for() -> None:
    """Four blocks: the end of a prompt goes first by placements, what came first by events."""
    small = spec("a", kv_capacity_tokens=64)
    index = Affinity()
    index.observe(joined(small), 0.0)
    index.placed(small, range(6), 0.0)
    assert index.held(range(6), 0.0) == {"a": 4}
    index.observe(changed(cleared=True, stored=(10, 11, 12, 13, 14)), 1.0)
    assert len(index) == 4
    assert (index.held((10,), 1.0), index.held((11, 12, 13, 14), 1.0)) == ({}, {"a": 4})


def test_a_copy_sees_all_and_learns_nothing() -> None:
    """A dry run must not change what is believed."""
    index = Affinity()
    index.placed(A, (1, 2), 0.0)
    dry = copy.deepcopy(index)
    dry.placed(B, (1, 2), 0.0)
    dry.observe(changed(cleared=True), 0.0)
    assert index.held((1, 2), 1.0) == dry.held((1, 2), 1.0) == {"a": 2}


def test_a_policy_goes_where_an_event_says_that_the_prompt_is() -> None:
    """Ten blocks at the slower backend make it the sooner one; after a restart it is not."""
    chosen, slow = policy("predicted"), spec("slow", prefill_us=300)
    fleet = Views([view(spec("fast")), view(slow)])
    asked = Request("r", MODEL, 160, 10, prefix_hashes=tuple(range(1, 11)))
    chosen.observe(joined(slow), 0.0)
    chosen.observe(changed("slow", stored=asked.prefix_hashes), 0.0)
    plan = chosen.plan(asked, fleet, 0.0)
    assert isinstance(plan, RoutePlan) and plan.prefill == "slow"
    chosen = policy("predicted")
    chosen.observe(joined(slow), 0.0)
    chosen.observe(changed("slow", stored=asked.prefix_hashes), 0.0)
    chosen.observe(joined(slow, "2"), 1.0)
    plan = chosen.plan(asked, fleet, 1.0)
    assert isinstance(plan, RoutePlan) and plan.prefill == "fast"


STEP = StepParameters(base_s=0.01, per_sequence_s=0.0005, per_prefill_token_s=50e-6)
SHARED = tuple(range(1, 257))


def spread(in_flight_at_once: int, *, handoffs: bool, requests: int = 160) -> Counter[str]:
    """Decodes by backend: eight equal ones, prompts of 4,096 shared and 64 own tokens, 200 tokens out."""
    chosen = policy("predicted")
    ledger = {f"b{i}": InFlight() for i in range(8)}
    specs = {
        name: spec(name, step=STEP, max_num_seqs=64, kv_layout="L" if handoffs else name) for name in ledger
    }
    went: list[str] = []
    for n in range(requests):
        own = tuple(1000 * (n + 1) + i for i in range(4))
        asked = Request(f"r{n}", MODEL, 4160, 200, prefix_hashes=SHARED + own)
        views = Views([replace(view(specs[name]), in_flight=load) for name, load in ledger.items()])
        plan = chosen.plan(asked, views, n * 0.01)
        assert isinstance(plan, RoutePlan) and plan.decode is not None
        went.append(plan.decode)
        ledger[plan.decode] = _moved(ledger[plan.decode], 1)
        if n >= in_flight_at_once:
            ledger[went[n - in_flight_at_once]] = _moved(ledger[went[n - in_flight_at_once]], -1)
    return Counter(went)


def _moved(load: InFlight, by: int) -> InFlight:
    return InFlight(
        decodes=load.decodes + by,
        decode_tokens=load.decode_tokens + 200 * by,
        kv_tokens=load.kv_tokens + 4360 * by,
    )


@pytest.mark.parametrize("handoffs", [False, True])
def test_a_shared_prefix_is_no_hotspot_under_load_and_sticks_when_quiet(handoffs: bool) -> None:
    """With 128 answers under way none has twice its share and none is idle; with none, one serves all."""
    busy, quiet = spread(128, handoffs=handoffs), spread(0, handoffs=handoffs)
    assert len(busy) == 8 and max(busy.values()) <= 40
    assert len(quiet) == 1


def core() -> RouterCore:
    """With `predicted`, as in a replay."""
    return RouterCore(policy("predicted"), policy("round_robin"), Models())


def growing(of: RouterCore, kv_events: bool, capacity: int, taps: Sequence[Tap] = ()) -> tuple[World, float]:
    """Six conversations in twelve turns on three backends; the share of prompt tokens found in a cache."""
    fleet = [spec(f"b{i}", step=STEP, kv_layout=str(i), kv_capacity_tokens=capacity) for i in range(3)]
    world = World(of, fleet, lambda asked: 20, seed=1, network=Network(kv_events=kv_events), taps=taps)
    for turn in range(12):
        for talk in range(6):
            hashes = tuple(1000 * (talk + 1) + i for i in range(8 * (turn + 1)))
            asked = Request(f"{talk}-{turn}", MODEL, 16 * len(hashes) + 5, 20, prefix_hashes=hashes)
            world.arrive(turn * 1.0 + talk * 0.05, asked)
    world.run()
    usage = [report.usage for report in world.reports]
    assert len(usage) == 72
    return world, sum(one.cached_prompt_tokens for one in usage) / sum(one.prompt_tokens for one in usage)


@pytest.mark.parametrize("capacity", [1 << 40, 16 * 100])
def test_what_is_believed_is_what_is_there(capacity: int) -> None:
    """With room, of a prompt all but its new turn is found; without, events tell what was evicted."""
    fed = core()
    world, hits = growing(fed, True, capacity)
    assert hits > (0.8 if capacity > 1 << 20 else 0.3)
    shares: Any = fed._chooser.policy._known.affinity._shares  # type: ignore[attr-defined]
    for worker in world.workers:
        pool = worker.machine._engine._schedule.blocks.pool
        stored, removed = pool.take_changes()  # since the last report
        there, believed = set(pool._references), set(shares[worker.machine.spec.id].told)
        assert believed and there - set(stored) <= believed <= there | set(removed)
        assert len(there) <= capacity // 16


def test_a_recording_with_events_replays_exactly(tmp_path: Path) -> None:
    """Events are facts: they are in the file, and the same is decided from them."""
    path = tmp_path / "run.jsonl"
    recorder = Recorder(path)
    growing(core(), True, 16 * 100, [recorder])
    assert recorder.close()
    lines = path.read_text().splitlines(keepends=True)
    assert any("KVBlocksChanged" in line for line in lines)
    assert replay(lines, core).same
