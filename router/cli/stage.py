"""Sets up what `polyphase dev` runs, runs it, and takes it down.

Three processes: the daemon, the mock fleet, and this one with the load generator and the live table, so
that neither slows the router down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import grpc
from polyphase.v1 import fleet_pb2, fleet_pb2_grpc
from rich.console import Console
from rich.live import Live

from router.cli.board import Board, Rows
from router.cli.children import Child, child
from router.cli.console import PlainProgress
from router.cli.fleet import described
from router.cli.interrupt import stopping
from router.cli.load import line
from router.cli.trouble import Trouble
from router.grpc_options import channel_options
from router.load.report import Tally
from router.load.run import LoadPlan, LoadRun
from router.model import BackendSpec, Seconds

FLEET_TIMEOUT_S: Final = 15.0
"""For all lanes to come up."""
LOOK_EVERY_S: Final = 0.5
LOOK_TIMEOUT_S: Final = 2.0
_READY_POLL_S: Final = 0.05


class Setting(Protocol):
    """What is to run."""

    @property
    def specs(self) -> Sequence[BackendSpec]:
        """The fleet."""
        ...

    @property
    def fleet(self) -> str:
        """Its name or file."""
        ...

    @property
    def policy(self) -> str:
        """Name or file."""
        ...

    def mock_arguments(self) -> Sequence[str]:
        """Of the fleet's command."""
        ...

    def daemon_env(self, mock: str) -> Mapping[str, str]:
        """The daemon's configuration, given the fleet's address."""
        ...


@dataclass(frozen=True, slots=True)
class Performance:
    """What came of it."""

    tally: Tally
    report: dict[str, Any]


async def perform(setting: Setting, plan: LoadPlan, out: Console) -> Performance:
    """Start fleet and daemon, run the plan against them, stop them. Raises Trouble when one fails."""
    async with child("mock fleet", setting.mock_arguments(), {}) as mock:
        env = setting.daemon_env(mock.ready["mock"])
        async with child("daemon", ("serve", "--supervised"), env) as daemon:
            _introduce(setting, daemon, out)
            async with grpc.aio.insecure_channel(
                daemon.ready["admin"], options=list(channel_options())
            ) as admin:
                fleet = _Fleet(admin)
                await fleet.all_ready(len(setting.specs))
                run = LoadRun(replace(plan, target=daemon.ready["data"]))
                await _run(run, fleet, (mock, daemon), out)
                rows = await fleet.list()
    report = run.tally.report()
    report["backends"] += [_idle(row) for row in rows if row["id"] not in run.tally.backends]
    report |= {"policy": setting.policy, "fleet": setting.fleet, "endpoints": _endpoints(daemon)}
    return Performance(run.tally, report)


async def _run(run: LoadRun, fleet: _Fleet, children: Sequence[Child], out: Console) -> None:
    with stopping(run.stop):
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(_guard(each)) for each in children]
            beside.append(group.create_task(_show(run, fleet, out)))
            await run.run()
            for task in beside:
                task.cancel()


async def _guard(each: Child) -> None:
    """A child that ends before the run does ends the run, with its last words."""
    raise await each.died()


async def _show(run: LoadRun, fleet: _Fleet, out: Console) -> None:
    """The live table on a terminal, lines elsewhere."""
    await (_show_table(run, fleet, out) if out.is_terminal else _show_lines(run, out))


async def _show_table(run: LoadRun, fleet: _Fleet, out: Console) -> None:
    board = Board()
    with Live(console=out, auto_refresh=False, transient=True) as live:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            with suppress(Trouble):  # a listing that is late is not shown; the guard sees a dead daemon
                board.look(await fleet.list(), run.elapsed_s)
            live.update(board.render(run.tally, _headline(run)), refresh=True)


async def _show_lines(run: LoadRun, out: Console) -> None:
    plain = PlainProgress(out.file)
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        plain.show(_headline(run))


def _headline(run: LoadRun) -> str:
    return f"{run.elapsed_s:.0f} of {run.plan.expected_s:.0f} s: {line(run)}"


class _Fleet:
    """The daemon's view of the fleet."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = fleet_pb2_grpc.FleetServiceStub(channel)  # type: ignore[no-untyped-call]

    async def list(self) -> Rows:
        """All backends. Raises Trouble when the daemon does not answer."""
        try:
            listed = await self._stub.ListBackends(fleet_pb2.ListBackendsRequest(), timeout=LOOK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise Trouble(f"The daemon does not list its backends: {error.details()}.") from error
        return [described(backend) for backend in listed.backends]

    async def all_ready(self, count: int, timeout_s: Seconds = FLEET_TIMEOUT_S) -> None:
        """Wait until so many backends take work."""
        ready: Rows = ()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while len(ready) < count:
                    ready = [row for row in await self.list() if row["state"] == "ready"]
                    await asyncio.sleep(_READY_POLL_S)
        if len(ready) < count:
            raise Trouble(
                f"Only {len(ready)} of {count} mock workers connected within {timeout_s:g} s. No request "
                "was sent. Is the machine overloaded? Try again, or take a smaller --fleet."
            )


def _endpoints(daemon: Child) -> dict[str, str]:
    return {
        "inference": daemon.ready["data"],
        "admin": daemon.ready["admin"],
        "metrics": f"http://{daemon.ready['metrics']}/metrics",
    }


def _introduce(setting: Setting, daemon: Child, out: Console) -> None:
    places = ", ".join(f"{name} {place}" for name, place in _endpoints(daemon).items())
    out.print(f"{len(setting.specs)} mock backends, policy {setting.policy}; {places}", soft_wrap=True)


def _idle(row: Mapping[str, Any]) -> dict[str, Any]:
    """A backend that got nothing to do, as the report shows the others."""
    zeros = dict.fromkeys(("prefills", "decodes", "busy_ratio", "tokens", "prompt_tokens"), 0)
    more = dict.fromkeys(("prefill_device_s", "decode_device_s", "cost_usd", "energy_j"), 0.0)
    return {"id": row["id"], "kind": row["kind"], **zeros, **more}
