"""`polyphase mock`: a fleet of mock workers in one process."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence

import click

from backends.catalogue import fleet_names, load_fleet
from backends.shell.clock import precise_loop
from backends.shell.mock import run_mock
from backends.shell.server import LOOPBACK, MockFleetServer
from router.address import IPNetwork
from router.cli.children import announce, stop_with_parent
from router.cli.options import address
from router.model import BackendSpec

DEFAULT_LISTEN = "127.0.0.1:7610"
FLEETS = f"Mock fleet: {', '.join(fleet_names())}, or a TOML file."
EPILOG = """
\b
Examples:
  polyphase mock --register 127.0.0.1:7601
  polyphase mock --fleet my-fleet.toml --listen 127.0.0.1:7620 --register 127.0.0.1:7601

\b
Exit codes: 0 drained; 78 the fleet or an address cannot be used.
"""


def networks(_: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[IPNetwork, ...]:
    """Options that must be CIDR networks."""
    try:
        return tuple(ipaddress.ip_network(value) for value in values) or LOOPBACK
    except ValueError as error:
        raise click.BadParameter(str(error), param=param) from error


@click.command(epilog=EPILOG)
@click.option(
    "--fleet",
    default="mixed",
    show_default=True,
    metavar="NAME|FILE",
    help=FLEETS,
)
@click.option(
    "--listen",
    default=DEFAULT_LISTEN,
    show_default=True,
    callback=address,
    help="host:port; port 0 takes a free one.",
)
@click.option(
    "--advertise", metavar="ADDR", help="Address by which routers and peers reach the workers, if another."
)
@click.option(
    "--register",
    "register_at",
    metavar="ADMIN",
    help="Announce the workers to the router with this admin address.",
)
@click.option(
    "--allow",
    "allowed",
    multiple=True,
    callback=networks,
    metavar="CIDR",
    help="Pull KV from workers in this network; repeatable. [default: loopback]",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the noise of the steps."
)
@click.option("--supervised", is_flag=True, hidden=True)
def command(
    fleet: str,
    listen: str,
    advertise: str | None,
    register_at: str | None,
    allowed: tuple[IPNetwork, ...],
    seed: int,
    supervised: bool,
) -> None:
    """Run mock workers that answer like the hardware they stand for.

    They speak the protocol of real workers, take as long as a model of their device says, and produce
    tokens that a client can check. All workers of the fleet listen on one port.
    """
    specs = load_fleet(fleet).backends
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(_mock(specs, listen, advertise, register_at, allowed, seed, supervised))


async def _mock(
    specs: Sequence[BackendSpec],
    listen: str,
    advertise: str | None,
    register_at: str | None,
    allowed: tuple[IPNetwork, ...],
    seed: int,
    supervised: bool,
) -> None:
    def started(server: MockFleetServer) -> None:
        if supervised:
            announce({"mock": server.address})
            return
        click.echo(f"{len(server.workers)} workers listen on {server.address}: {', '.join(server.workers)}")
        if register_at is None:
            click.echo(
                "No router knows them: name its admin address with --register, or list them in its file."
            )

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(stop_with_parent()) if supervised else None
        await run_mock(specs, listen, seed, advertise, allowed, register_at, started=started)
        if watching is not None:
            watching.cancel()
