"""The `polyphase` command: a group whose commands are imported when they run, so that each starts quickly."""

from __future__ import annotations

import importlib
import os
from typing import Final

import click

from router.cli.trouble import told

COMMANDS: Final = {
    "dev": "Run a daemon and a mixed mock fleet, replay a real trace, show where each phase ran.",
    "serve": "Run the router daemon.",
    "mock": "Run a fleet of mock workers.",
    "worker": "Run a worker with a real model, in PyTorch.",
    "load": "Send requests to a router, check every token, report latencies.",
    "simulate": "Simulate policies on a fleet and a workload, in virtual time.",
    "bound": "Bound what any policy could serve, and say how near ours comes.",
    "advise": "Find the fleet to buy for a workload, and verify it.",
    "replay": "Feed a recording to a fresh core and compare every action.",
    "whatif": "Ask what another policy or fleet would have made of recorded traffic.",
    "explain": "Say why a request went where it went, and what would have changed it.",
    "policy": "Check, test, compare and tune policies.",
    "fleet": "List, cordon and drain the backends of a running router.",
    "hardware": "List accelerators and show where each figure comes from.",
    "profile": "List and show hardware profiles, and work out new ones.",
    "conformance": "Check workers against the contract, over the wire.",
    "calibrate": "Fit the hardware models to measurements, and say how far they are off.",
}


class LazyGroup(click.Group):
    """Knows its commands by name and one line of help; imports the module of a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import router.cli.<name> and take its `command`."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"router.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; a user sees its failures in words."""
        with told():
            return super().invoke(ctx)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `polyphase dev`. `polyphase COMMAND --help` shows options and examples.",
)
@click.version_option(package_name="polyphase", prog_name="polyphase", message="%(prog)s %(version)s")
def cli() -> None:
    """Polyphase, a heterogeneous LLM inference router.

    Places the prefill and the decode of each request, as a pair, on the silicon that suits each.
    """


def main() -> None:
    """Entry point of the console script."""
    # gRPC's C core logs connections that break; the commands say it in words of their own.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    cli(prog_name="polyphase")


if __name__ == "__main__":
    main()
