"""The mock passes; workers that break one rule fail the checks that are about it, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from uuid import UUID

import pytest

from backends.conformance.run import CHECKS, conform
from backends.conformance.verdicts import Report, Settings, Target, Verdict
from backends.shell import host, outbox
from backends.shell.host import WorkerHost
from backends.shell.mock_worker import MockBoot
from backends.shell.server import WorkerServer
from router.model import BackendSpec, LinkParameters, Phase
from tests.conformance import broken
from tests.conformance.stage import quick_reports, run, worker
from tests.shell.rig import FIRST_TOKEN_FROM_PREFILL

STOPS = {
    *("cancel.queued", "cancel.prefill", "cancel.held", "cancel.transfer", "cancel.decode"),
    *("lane.broken", "lane.broken-decode"),
}
FAULTS: Mapping[type[broken.Sound], set[str]] = {
    broken.IgnoresStops: STOPS,
    broken.RepeatsTokens: {"frame.tokens"},
    broken.SkipsTokens: {"frame.tokens"},
    broken.PassesLimits: {"phase.limit", "phase.one-token"},
    broken.ServesTwice: {"handle.once", "handle.race", "handle.replayed"},
    broken.TrustsHandles: {"handle.fields"},
    broken.TrustsKV: {"handle.fingerprint"},
    broken.TakesForeign: {"handle.foreign"},
    broken.TakesAnyLayout: {"handle.layout"},
    broken.InventsReasons: {"handle.refused", "handle.broken-off", "handle.replayed"},
    broken.TakesAnyModel: {"refuse.request"},
    broken.HidesKV: {"load.held"},
    broken.CountsBackwards: {"load.counters"},
    broken.Overcharges: {"load.accounts"},
    broken.AnswersAtRandom: {"answer.greedy", "answer.seeded"},
}


STOPPING = ("hello", "cancel", "lane.broken", "lane.broken-decode")
"""All that a worker which ignores stops is asked: each failure takes a while."""


pytestmark = pytest.mark.timeout(300)  # the fixture makes all runs

SETTINGS = {field.name for field in fields(Settings)}


async def one(fault: type[broken.Sound], *only: str, **changes: object) -> Mapping[str, str]:
    """What fails, with the evidence, of the checks named."""
    settings = {name: changes.pop(name) for name in tuple(changes) if name in SETTINGS}
    report = await run([worker("w", **changes)], fault, only, **settings)
    assert report.counts[Verdict.SKIP] == 0
    return {one.name: one.evidence for one in report.results if one.verdict is Verdict.FAIL}


PAIR = (
    worker("p", frozenset({Phase.PREFILL}), connector=FIRST_TOKEN_FROM_PREFILL),
    worker("d", frozenset({Phase.DECODE})),
)
SOUND: Mapping[str, tuple[Sequence[BackendSpec], set[str]]] = {
    "one": ([worker("w")], {"phase.not-offered"}),
    "pair": (PAIR, {"phase.here", "lane.beside"}),
    "decode": (PAIR[1:], {"handle.once", "phase.split", "lane.broken", "drain"}),
}
"""Workers, and some of the checks that do not apply to them."""
NEVER = {"handle.corrupted", "handle.lease"}
"""The mock moves no bytes, and its lease is longer than a test."""


async def _all() -> Mapping[str, Report]:
    """All at once: the suite mostly waits."""
    async with asyncio.TaskGroup() as group:
        tasks = {
            fault.__name__: group.create_task(run([worker("w")], fault, _only(fault))) for fault in FAULTS
        }
        for name, (specs, _) in SOUND.items():
            tasks[name] = group.create_task(run(specs, MockBoot(0)))
    return {name: task.result() for name, task in tasks.items()}


def _only(fault: type[broken.Sound]) -> tuple[str, ...]:
    return STOPPING if fault is broken.IgnoresStops else ()


@pytest.fixture(scope="module")
def reports() -> Iterator[Mapping[str, Report]]:
    """Of all faults, and of workers without one."""
    with quick_reports():
        yield asyncio.run(_all())


@pytest.mark.parametrize("name", SOUND)
def test_the_mock_conforms(reports: Mapping[str, Report], name: str) -> None:
    """Whatever applies passes; the rest says why it does not."""
    report, skipped = reports[name], SOUND[name][1]
    assert {one.name: one.evidence for one in report.results if one.verdict is Verdict.FAIL} == {}
    left_out = {one.name for one in report.results if one.verdict is Verdict.SKIP}
    assert left_out == NEVER | skipped if name != "decode" else left_out > skipped
    assert [one.name for one in report.results] == [check.name for check in CHECKS]
    assert all(one.evidence and one.rule and one.where for one in report.results)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_broken_rule_fails_its_checks(reports: Mapping[str, Report], fault: type[broken.Sound]) -> None:
    """Exactly these checks fail, with evidence."""
    report = reports[fault.__name__]
    told = {one.name: one.evidence for one in report.results if one.name in report.failed}
    assert set(told) == FAULTS[fault], told
    assert all(told.values())


async def test_kv_whose_consumer_left() -> None:
    """A producer that keeps it is found out by a transfer that takes longer than the check waits."""
    link = LinkParameters(latency_s=600.0)
    names = ("cancel.consumer", "cancel.held", "cancel.release")
    with quick_reports():
        assert set(await one(broken.IgnoresLeavers, *names, link=link)) == {"cancel.consumer"}
        assert not await one(broken.Sound, *names, link=link)


async def test_leases() -> None:
    """KV is free after its lease, or the check says that it is not."""
    with quick_reports():
        assert not await one(broken.ShortLease, "handle.lease", longest_lease_s=5.0)
        assert set(await one(broken.KeepsLeases, "handle.lease", longest_lease_s=5.0)) == {"handle.lease"}


async def test_a_restart_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that comes back under its old boot id is no new producer to anybody."""
    monkeypatch.setattr(host, "uuid4", lambda: UUID(int=7))
    with quick_reports():
        assert "incarnation" in (await one(broken.Sound, "handle.restart"))["handle.restart"]


async def test_a_drain_that_is_none() -> None:
    """A worker that goes on taking work does not drain."""

    async def nothing(_: str) -> None:
        pass

    with quick_reports():
        failed = await one(broken.Sound, "drain", drain=nothing, patience_s=1.0)
    assert "still takes new work" in failed["drain"]


async def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that reports only when it works is silent for too long."""
    monkeypatch.setattr(outbox, "LOAD_HEARTBEAT_S", 60.0)
    failed = await one(broken.Sound, "load.cadence", patience_s=1.0)
    assert set(failed) == {"load.cadence"}


async def test_a_phase_that_is_not_offered() -> None:
    """The pair of workers is sound, but for a prefill worker that decodes as well."""
    p = worker("p", frozenset({Phase.PREFILL}))
    d = worker("d", frozenset({Phase.DECODE}))
    with quick_reports():
        report = await run([p, d], broken.TakesAnyPhase, ("phase", "frame"))
    assert report.failed == ["phase.not-offered"]


@pytest.mark.parametrize("changes", [{"kv_bytes_per_token": -1.0}, {"models": ()}])
async def test_a_spec_that_no_router_reads(changes: dict[str, object]) -> None:
    """The first check fails, and the others are not made."""

    class Odd(WorkerServer):
        def _host(self, spec: BackendSpec) -> WorkerHost:
            made = super()._host(spec)
            made.spec = replace(spec, **changes)  # type: ignore[arg-type]
            return made

    async with Odd([worker("w")], broken.Sound) as server:
        report = await conform([Target("w", server.address)], Settings())
    assert report.failed == ["hello.welcome"]
    assert report.counts[Verdict.PASS] == 0
