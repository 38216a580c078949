"""Deadlines of every kind over real gRPC: too short, missing, endless, and passed between the phases."""

from __future__ import annotations

import grpc
import pytest
from polyphase.v1 import inference_pb2

from router.core.flight import Stage as FlightStage
from tests.faults.client import eventually
from tests.faults.policies import LateBinding
from tests.faults.stage import Stage, stage
from tests.live.calls import reason_of
from tests.live.wires import END_STREAM, frame, opening, send_raw
from tests.shell.rig import request

EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED


def with_deadline(name: str, deadline_s: float, tokens: int = 8) -> inference_pb2.GenerateRequest:
    """A request that wants its answer in time."""
    made = request(name, tokens)
    made.slo.deadline_s = deadline_s
    return made


def nothing_ran(on: Stage) -> bool:
    """Whether no worker was given anything so far."""
    snapshots = [host.snapshot() for host in on.fleet.workers.values()]
    return not any(shot.busy_prefill_s or shot.running or shot.waiting for shot in snapshots)


async def test_a_deadline_that_cannot_be_met_reaches_no_worker() -> None:
    """One millisecond is less than the fastest prefill takes: refused on arrival."""
    async with stage("p1,prefill_s=0.05 d1") as on:
        heard = on.send(with_deadline("hopeless", 0.001))
        assert await heard.failure() == (EXCEEDED, "DEADLINE_INFEASIBLE")
        heard = on.ask("hopeless too", timeout=0.001)
        await heard.end()
        assert heard.error is not None and heard.error.code() is EXCEEDED
        assert nothing_ran(on)


async def test_a_call_that_comes_too_late_reaches_no_worker() -> None:
    """`grpc-timeout: 0n`, which gRPC's own clients do not send."""
    async with stage("p1 d1") as on:
        raw = request("late").SerializeToString()
        message = frame(0, END_STREAM, 1, b"\x00" + len(raw).to_bytes(4, "big") + raw)
        start = opening("/polyphase.v1.InferenceService/Generate", grpc_timeout="0n")
        assert b"grpc-status" in await send_raw(on.port, start, message)
        await on.quiet()
        assert nothing_ran(on)


@pytest.mark.parametrize(("asked_s", "kept_s"), [(None, 300.0), (3.2e8, 3600.0)])
async def test_a_deadline_that_is_missing_or_endless_gets_a_bound(
    asked_s: float | None, kept_s: float
) -> None:
    """No request lives for ever: the default when none is named, the cap when it is ten years."""
    async with stage("p1 d1") as on:
        heard = on.send(request("r", 90_000) if asked_s is None else with_deadline("r", asked_s, 90_000))
        await heard.until(1)
        flight, now = on.parts.core.relay.flights["r"], on.parts.driver.now()
        assert kept_s - 60 < flight.request.deadline - now <= kept_s


async def test_a_deadline_that_passes_between_the_phases_starts_no_decode() -> None:
    """The KV of the prefill is released; the decode worker hears nothing of the request."""
    async with stage("p1 d1") as on:
        on.replace(LateBinding())
        heard = on.send(with_deadline("between", 0.5))
        await eventually(lambda: on.parts.core.relay.kv.held, "the prefill never ended")
        assert on.kv_tokens("p1") > 0
        assert await heard.failure() == (EXCEEDED, "DEADLINE_EXPIRED")
        await on.quiet()
        decoder = on.fleet.workers["d1"].snapshot()
        assert decoder.busy_decode_s == 0.0
        assert on.parts.core.relay.kv.moved_tokens == 0


@pytest.mark.parametrize(
    ("workers", "where"),
    [
        ("p1,prefill_s=0.4 d1", FlightStage.PREFILL),
        ("p1,link_s=5 d1", FlightStage.HANDOFF),
        ("p1 d1,step_s=0.01", FlightStage.DECODE),
    ],
)
async def test_a_deadline_that_passes_at_work_stops_it(workers: str, where: FlightStage) -> None:
    """In prefill, in the handoff and in decode: the work stops, the KV is free, the status is typed."""
    async with stage(workers) as on:
        if where is FlightStage.PREFILL:
            # A deadline that is shorter than the prefill is refused on arrival; two in a row are longer.
            on.ask("before", 1)
            await eventually(lambda: on.fleet.workers["p1"].snapshot().running, "nothing runs")
        heard = on.send(with_deadline("r", 0.6, 90_000))

        def there() -> bool:
            flight = on.parts.core.relay.flights.get("r")
            return flight is not None and flight.stage is where

        await eventually(there, f"the request never came to {where}")
        assert await heard.failure() == (EXCEEDED, "DEADLINE_EXPIRED")
        assert heard.error is not None and reason_of(heard.error)
        assert f"stage {where}" in (heard.error.details() or "")
