"""What a worker reports of itself: often enough, and what it says adds up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from polyphase.v1 import common_pb2, inference_pb2, worker_pb2

from backends.conformance import commands
from backends.conformance.bench import PROMPT, Bench, Need
from backends.conformance.check import Check
from backends.conformance.lane import Lane
from backends.conformance.subject import Subject
from backends.conformance.verdicts import GUIDE, NotCheckedError, expect
from router.model import Phase, Seconds

REPORTS_PER_S: Final = 4
WINDOW_S: Final[Seconds] = 1.0
LATE_S: Final[Seconds] = 0.1
"""A tick of our own that is later than this says that the machine is too busy to judge others by it."""
TRIES: Final = 5
ANSWER: Final = 32
CROWD: Final = 4
TOLERANCE: Final = 0.05
"""Of busy time: shares are rounded, and clocks differ."""
SLACK_S: Final[Seconds] = 0.05
Requests = Mapping[int, inference_pb2.GenerateRequest]
"""By seq."""
ADDS_UP: Final = f"{GUIDE}, duty 9"


async def cadence(bench: Bench) -> str:
    """Idle lanes are not silent."""
    seen = [f"{subject}: {await _reports(bench, subject)} in {WINDOW_S:g} s" for subject in bench.subjects]
    return "; ".join(seen)


async def _reports(bench: Bench, subject: Subject) -> int:
    async with bench.lane(subject) as lane:
        await lane.until_reports(1)
        silent = 0
        for _ in range(TRIES):
            before, late_s = lane.reports, await _watch(WINDOW_S)
            came = lane.reports - before
            # The first and the last may fall just outside.
            if came >= REPORTS_PER_S - 1:
                return came
            silent += late_s <= LATE_S
            expect(silent < 2, f"{subject} sent {came} load reports in {WINDOW_S:g} s, idle")
    raise NotCheckedError("this machine is too busy to tell")


async def _watch(duration_s: Seconds) -> Seconds:
    """Let time pass; by how much our own ticks were late at worst."""
    loop, worst_s = asyncio.get_running_loop(), 0.0
    until = loop.time() + duration_s
    while (now := loop.time()) < until:
        await asyncio.sleep(0.05)
        worst_s = max(worst_s, loop.time() - now - 0.05)
    return worst_s


async def held(bench: Bench) -> str:
    """Without this, everything is free at all times."""
    subject = bench.prefiller
    async with bench.lane(subject) as lane:
        kv = await bench.minted(lane, 1, bench.request())
        await bench.reports.in_use(subject, PROMPT)
        load = (await bench.reports.of(subject)).last
        assert load is not None
        await lane.send(commands.release(kv))
        await bench.reports.freed(subject, why="after ReleaseKV")
    return f"{load.kv_used_tokens} KV tokens in use while {PROMPT} are held for a peer"


@dataclass(frozen=True, slots=True)
class Bill:
    """What the phases of some requests took, by their own account."""

    device_s: Seconds
    energy_j: float
    prompt_tokens: int | None
    """Computed, not found in a cache; None where decodes may compute some of them again."""


async def accounts(bench: Bench) -> str:
    """Costs of requests against counters of the worker, over work that nobody stopped."""
    seen = []
    for subject in bench.subjects:
        if subject.offers(Phase.PREFILL) or not bench.lacks(Need.SPLIT):
            seen.append(f"{subject}: {await _account(bench, subject)}")
    if not seen:
        raise NotCheckedError(f"it takes {Need.PREFILL}")
    return "; ".join(seen)


async def _account(bench: Bench, subject: Subject) -> str:
    loop = asyncio.get_running_loop()
    async with bench.lane(subject) as lane:
        before, began = await _settled(lane), loop.time()
        bill = await _work(bench, subject, lane)
        after = await _settled(lane)
        elapsed_s = loop.time() - began
    busy_s = _busy_s(after) - _busy_s(before)
    near = abs(busy_s - bill.device_s) <= TOLERANCE * busy_s + SLACK_S
    expect(near, f"requests took {bill.device_s:.4g} s of a device that was busy for {busy_s:.4g} s")
    expect(busy_s > 0, "busy time did not grow with work")
    most_s = elapsed_s * (1 + TOLERANCE) + SLACK_S
    expect(busy_s <= most_s, f"the device was busy for {busy_s:.4g} s of {elapsed_s:.4g} s")
    energy_j = after.energy_j - before.energy_j
    enough = bill.energy_j <= energy_j * (1 + TOLERANCE) + 1e-6
    expect(enough, f"requests took {bill.energy_j:.4g} J of {energy_j:.4g} J")
    computed = after.prefill_tokens - before.prefill_tokens
    counted = bill.prompt_tokens in (computed, None) or after.prefill_tokens == 0
    expect(counted, f"{computed} prompt tokens were counted, {bill.prompt_tokens} were computed")
    return f"{bill.device_s:.3g} s of {busy_s:.3g} s busy in {elapsed_s:.3g} s, {computed} prompt tokens"


async def _settled(lane: Lane) -> common_pb2.LoadReport:
    """A report after which busy time does not grow."""
    for _ in range(TRIES):
        await lane.until_reports(1)
        first = lane.last
        await lane.until_reports(1)
        assert first is not None and lane.last is not None
        if _busy_s(first) == _busy_s(lane.last) and not lane.last.running:
            return lane.last
    raise NotCheckedError("busy time grows without work; something else uses the worker")


async def _work(bench: Bench, subject: Subject, lane: Lane) -> Bill:
    requests = {seq: bench.request(ANSWER, PROMPT * seq) for seq in range(1, CROWD + 1)}
    if subject.offers(Phase.PREFILL):
        return await _prefills(requests, lane, subject.offers(Phase.DECODE))
    return await _decodes(bench, requests, lane)


async def _prefills(requests: Requests, lane: Lane, here: bool) -> Bill:
    await lane.send(*(commands.prefill(seq, made, decode_here=here) for seq, made in requests.items()))
    costs: list[worker_pb2.PhaseCost] = []
    computed = 0
    for seq, made in requests.items():
        done = await lane.prefill_done(seq)
        costs.append(done.cost)
        computed += len(made.tokens.ids) - done.cached_tokens
        if here:
            costs.append((await lane.decode_done(seq)).cost)
        else:
            await lane.send(commands.release(done.kv))
    return _billed(costs, computed)


async def _decodes(bench: Bench, requests: Requests, lane: Lane) -> Bill:
    async with bench.lane(bench.prefiller) as producer:
        for seq, made in requests.items():
            kv = await bench.minted(producer, seq, made)
            await lane.send(commands.decode(seq, made, kv, bench.first_index))
        return _billed([(await lane.decode_done(seq)).cost for seq in requests], None)


def _billed(costs: Sequence[worker_pb2.PhaseCost], prompt_tokens: int | None) -> Bill:
    device_s, energy_j = sum(cost.device_s for cost in costs), sum(cost.energy_j for cost in costs)
    return Bill(device_s, energy_j, prompt_tokens)


def _busy_s(load: common_pb2.LoadReport) -> Seconds:
    return load.busy_prefill_s + load.busy_decode_s


CHECKS: Final = (
    Check(
        "load.cadence",
        f"A load report comes at least {REPORTS_PER_S} times a second, also without work",
        f"{GUIDE}, duty 10",
        cadence,
    ),
    Check("load.held", "KV that is held for a peer is reported as in use", ADDS_UP, held, (Need.PREFILL,)),
    Check(
        "load.accounts",
        "The costs of requests add up to the busy time, which is no longer than the time that passed",
        ADDS_UP,
        accounts,
    ),
)
