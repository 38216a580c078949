"""`polyphase serve`: the router daemon."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click

from router.cli.children import announce, stop_with_parent
from router.cli.plug_ins import plug_ins
from router.config import DaemonConfig, load_config
from router.live.daemon import Daemon

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
EPILOG = """
\b
Examples:
  polyphase serve                                  defaults, workers register themselves
  polyphase serve --config deploy/polyphase.toml
  POLYPHASE_LISTEN__DATA=127.0.0.1:7700 polyphase serve
  polyphase serve --config polyphase.toml --check

\b
Signals: SIGTERM and SIGINT drain (refuse new requests, finish running ones, exit 0);
SIGHUP reloads the policy.
Exit codes: 0 drained; 78 the configuration is wrong, or an address is in use.
"""


@click.command(epilog=EPILOG)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="POLYPHASE_CONFIG_FILE",
    help="TOML file; without it, defaults and the environment.",
)
@click.option("--check", is_flag=True, help="Read the configuration, say whether it is good, and leave.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What goes to standard error.",
)
@click.option("--supervised", is_flag=True, hidden=True)
def command(config_file: Path | None, check: bool, log_level: str, supervised: bool) -> None:
    """Run the router: take requests, place their phases on the fleet, stream the tokens back."""
    config = load_config(config_file)
    if check:
        click.echo(f"{config_file or 'The environment'} is good.")
        return
    logging.basicConfig(level=log_level.upper(), format=LOG_FORMAT)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_quotes_no_header)
    asyncio.run(_serve(config, supervised))


def _quotes_no_header(record: logging.LogRecord) -> bool:
    """Headers may be credentials; gRPC quotes those that are not UTF-8 as errors, each with a traceback."""
    return not str(record.msg).startswith("Invalid encoding on")


async def _serve(config: DaemonConfig, supervised: bool) -> None:
    daemon = Daemon(config, plug_ins())
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(_announce(daemon, supervised))]
        if supervised:
            beside.append(group.create_task(stop_with_parent()))
        await daemon.run()
        for task in beside:
            task.cancel()


async def _announce(daemon: Daemon, supervised: bool) -> None:
    await daemon.serving.wait()
    if daemon.addresses is None:
        return
    places = daemon.addresses.as_dict()
    if supervised:
        announce(places)
    else:
        click.echo(
            f"inference {places['data']}, admin {places['admin']}, metrics http://{places['metrics']}/metrics"
        )
