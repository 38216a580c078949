"""Workers that break the protocol under a real router: the client never sees it, or is told so typed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from router.model import BackendState
from tests.faults.client import eventually
from tests.faults.faulty import Fault, FaultyWorker, faulty
from tests.faults.stage import Stage, stage

IMPATIENT = "[admission]\nstall_s = 0.5\n"


@asynccontextmanager
async def beside_a_good_one(
    fault: Fault, name: str = "b1", good: str = "b2"
) -> AsyncIterator[tuple[Stage, FaultyWorker]]:
    """A stage whose first worker is faulty and whose second is good."""
    async with faulty(name, fault) as (bad, address):
        async with stage(good, elsewhere=[(address, name)], config=IMPATIENT) as on:
            yield on, bad


def strays(on: Stage, fault: str) -> float:
    """Tokens of the faulty worker that were dropped or missed."""
    return on.metric(f'polyphase_stray_tokens_total{{backend="b1",fault="{fault}",kind="gpu"}}')


async def test_the_worker_without_a_fault_is_good() -> None:
    """The control: what the others show is due to their faults."""
    async with beside_a_good_one(Fault.NONE) as (on, bad):
        heard = on.ask("control")
        assert (await heard.answer()).attempts == 1
        assert heard.backends() == ["b1", "b1"] and not bad.stops
        assert strays(on, "duplicate") == strays(on, "gap") == strays(on, "zombie") == 0


async def test_duplicates_are_dropped_and_counted() -> None:
    """Every token three times on the lane is every token once at the client."""
    async with beside_a_good_one(Fault.DUPLICATES) as (on, _):
        heard = on.ask("twice", 10)
        assert (await heard.answer()).attempts == 1
        assert strays(on, "duplicate") == 20


async def test_a_gap_before_the_first_token_starts_anew() -> None:
    """Nothing is out, so another worker answers; the one that skipped is told to stop, and counted."""
    async with beside_a_good_one(Fault.SKIPS_FIRST) as (on, bad):
        heard = on.ask("gap")
        assert (await heard.answer()).attempts == 2
        assert heard.backends() == ["b1", "b2", "b2"]
        await eventually(lambda: bad.stops, "the worker was not stopped")
        assert strays(on, "gap") == 1


async def test_a_gap_after_tokens_ends_typed() -> None:
    """The client has three right tokens and learns that the fourth never came; nothing after it is shown."""
    async with beside_a_good_one(Fault.SKIPS_LATER) as (on, bad):
        heard = on.ask("gap")
        assert await heard.failure() == (grpc.StatusCode.INTERNAL, "BACKEND_BROKE_CONTRACT")
        assert heard.next_index() == len(heard.ids) == 3
        await eventually(lambda: bad.stops, "the worker was not stopped")
        assert on.state("b1") is BackendState.READY


async def test_too_many_tokens_are_cut_off() -> None:
    """The answer has max_new_tokens tokens and ends well; the worker is told to stop, and counted."""
    async with beside_a_good_one(Fault.TOO_MANY) as (on, bad):
        finished = await on.ask("overrun", 9).answer()
        assert finished.usage.output_tokens == 9
        await eventually(lambda: bad.stops, "the worker was not stopped")
        assert on.parts.driver.flows.counts.overran == 1


async def test_too_few_tokens_are_a_broken_contract() -> None:
    """A worker that counts more tokens than came has lost some on the way."""
    async with beside_a_good_one(Fault.TOO_FEW) as (on, _):
        heard = on.ask("short")
        assert await heard.failure() == (grpc.StatusCode.INTERNAL, "BACKEND_BROKE_CONTRACT")
        assert heard.next_index() == len(heard.ids) == 6


async def test_a_zombie_reaches_nobody_and_is_told_again() -> None:
    """It stalls, its request moves on, and then it sends: dropped, counted, and stopped anew each second."""
    async with beside_a_good_one(Fault.ZOMBIE) as (on, bad):
        heard = on.ask("undead", 3000)
        await heard.until(1)
        assert heard.epochs == {2}
        await eventually(lambda: len(bad.stops) >= 2, "the stop was not repeated")
        assert len(set(bad.stops)) == 1
        assert (await heard.answer()).attempts == 2
        assert strays(on, "zombie") > 0


async def test_a_silent_worker_is_given_up() -> None:
    """A prefill without a sign of life is started anew elsewhere after the stall time."""
    async with beside_a_good_one(Fault.SILENT) as (on, bad):
        assert (await on.ask("quiet").answer()).attempts == 2
        await eventually(lambda: bad.stops, "the worker was not stopped")


async def test_kv_of_another_request_is_never_handed_on() -> None:
    """A handle that names another request would bring its answer to this client: refused, done anew."""
    async with beside_a_good_one(Fault.FOREIGN_KV, "p1", "p2 d1") as (on, bad):
        heard = on.ask("mine")
        assert (await heard.answer()).attempts == 2
        assert heard.backends() == ["p2", "d1"] and bad.started == 1


async def test_a_torn_frame_ends_the_lane() -> None:
    """Columns of different length cannot be read: the worker is lost, its requests start anew, and it may
    come back."""
    async with beside_a_good_one(Fault.TORN_FRAME) as (on, bad):
        assert (await on.ask("torn").answer()).attempts == 2
        await eventually(lambda: bad.lanes >= 2, "the lane did not come back")
        bad.fault = Fault.NONE
        await on.ready("b1")
        assert (await on.ask("whole").answer()).attempts == 1
