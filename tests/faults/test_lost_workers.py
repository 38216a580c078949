"""Workers that are killed, restarted or stopped, each in a process of its own, under a real router."""

from __future__ import annotations

import asyncio
import signal

import grpc
import pytest

from router.core.flight import Stage as FlightStage
from router.model import BackendState
from tests.faults.client import eventually
from tests.faults.processes import fleet, fleets
from tests.faults.stage import FAST, Stage, stage

pytestmark = pytest.mark.process
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def retries(on: Stage, phase: str, reason: str) -> float:
    """Retries so far, by the phase that failed and why."""
    return on.metric(f'polyphase_retries_total{{phase="{phase}",reason="{reason}"}}')


async def in_stage(on: Stage, name: str, stage_: FlightStage) -> None:
    """Wait until a request is in a stage of its life."""

    def there() -> bool:
        flight = on.parts.core.relay.flights.get(name)
        return flight is not None and flight.stage is stage_

    await eventually(there, f"{name} never came to {stage_}")


async def test_a_decode_worker_killed_in_the_middle_of_an_answer() -> None:
    """Tokens are out, so the request ends typed, with the index reached; the next ones go elsewhere."""
    with fleets("d1,step_s=0.01") as [doomed]:
        async with stage("p1 d2", elsewhere=[(doomed.at["mock"], "d1")]) as on:
            heard = on.ask("cut", 500)
            await heard.until(10)
            doomed.kill()
            assert await heard.failure() == (UNAVAILABLE, "BACKEND_LOST")
            assert heard.next_index() == len(heard.ids) >= 10
            assert on.state("d1") is BackendState.LOST
            assert (await on.ask("next").answer()).attempts == 1


async def test_a_decode_worker_killed_before_the_first_token() -> None:
    """No token is out, so the request starts anew elsewhere, and its client never knows."""
    with fleets("d1,step_s=5") as [doomed]:
        async with stage("p1 d2", elsewhere=[(doomed.at["mock"], "d1")]) as on:
            heard = on.ask("anew")
            await in_stage(on, "anew", FlightStage.DECODE)
            doomed.kill()
            finished = await heard.answer()
            assert finished.attempts == 2 and heard.backends()[-1] == "d2" and len(heard.epochs) == 1
            assert retries(on, "decode", "BACKEND_LOST") == 1


async def test_a_prefill_worker_killed_before_its_kv_is_there() -> None:
    """The prompt is computed again elsewhere."""
    with fleets("p1,prefill_s=5") as [doomed]:
        async with stage("p2 d1", elsewhere=[(doomed.at["mock"], "p1")]) as on:
            heard = on.ask("again")
            await in_stage(on, "again", FlightStage.PREFILL)
            doomed.kill()
            assert (await heard.answer()).attempts == 2
            assert heard.backends() == ["p2", "d1"]
            assert retries(on, "prefill", "BACKEND_LOST") == 1


@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_prefill_worker_killed_when_its_kv_waits(comes_back: bool) -> None:
    """KV of a dead producer, or of an earlier boot at the same address, is never used: prefill again."""
    with fleets("p1", "d1") as [producer, consumer]:
        there = [(producer.at["mock"], "p1"), (consumer.at["mock"], "d1")]
        async with stage("p2", elsewhere=there) as on:
            assert (await on.ask("warm").answer()).attempts == 1  # d1 knows the way to p1 from here on
            consumer.signal(signal.SIGSTOP)
            heard = on.ask("stale")
            await in_stage(on, "stale", FlightStage.HANDOFF)
            producer.kill()
            await eventually(lambda: on.state("p1") is BackendState.LOST, "the router missed the death")
            successor = fleet("p1", producer.at["mock"]) if comes_back else None
            try:
                if successor is not None:
                    await asyncio.to_thread(successor.ready)
                    await on.ready("p1")
                consumer.signal(signal.SIGCONT)
                assert (await heard.answer()).attempts == 2
                assert retries(on, "decode", "KV_STALE" if comes_back else "KV_TRANSFER_FAILED") == 1
                await on.quiet()
            finally:
                if successor is not None:
                    successor.close()


@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_a_worker_that_hangs_is_lost_and_comes_back(phase: str) -> None:
    """Sockets open, nothing answers: silence ends the lane. When it wakes, its old work reaches nobody."""
    lanes = FAST.replace("20.0", "1.0")
    name = phase[0] + "1"
    with fleets(f"{name},step_s=0.01,prefill_s=0.4") as [sleeper]:
        others = "d1 d2 p2" if phase == "prefill" else "p1 p2 d2"
        there = [(sleeper.at["mock"], name)]
        async with stage(others, elsewhere=there, lanes=lanes) as on:
            heard = on.ask("hang", 300)
            if phase == "prefill":
                await in_stage(on, "hang", FlightStage.PREFILL)
            else:
                await heard.until(5)
            sleeper.signal(signal.SIGSTOP)
            took_s = await eventually(lambda: on.state(name) is BackendState.LOST, "nobody noticed")
            assert took_s < 6, "not by silence: gRPC's pings and the stall of a phase take longer"
            if phase == "prefill":
                assert (await heard.answer()).attempts == 2
                assert heard.backends()[0] == "p2"
            else:
                assert await heard.failure() == (UNAVAILABLE, "BACKEND_LOST")
            sleeper.signal(signal.SIGCONT)
            await on.ready(name)
            await on.quiet()
            assert (await on.ask("after").answer()).attempts == 1
