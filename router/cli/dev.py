"""`polyphase dev`: a daemon, a mixed mock fleet and a real trace, on this machine, in one command."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from backends.catalogue import fleet_names, load_fleet
from router.cli import console
from router.cli.load import finish, judge, plan_of
from router.cli.options import workload_options
from router.cli.stage import perform
from router.load.limits import Limits
from router.model import BackendSpec

FLEETS = f"Mock fleet: {', '.join(fleet_names())}, or a TOML file."
EPILOG = """
\b
Examples:
  polyphase dev
  polyphase dev --duration 20 --json out.json
  polyphase dev --policy least_loaded --speed 2
  polyphase dev --fleet my-fleet.toml --policy my-policy.toml --trace mooncake.jsonl.gz

\b
Ctrl-C ends the run and prints the summary.
Exit codes: 0 nothing failed, every token came once and was right; 1 otherwise;
2 wrong usage; 78 a fleet, policy or trace cannot be used, or an address is in use.
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """What runs, and where it listens."""

    specs: Sequence[BackendSpec]
    fleet: str
    """Name or file."""
    policy: str
    """Name or file."""
    base_port: int
    """0 takes free ports."""
    seed: int

    def address(self, offset: int) -> str:
        """A loopback address."""
        return f"127.0.0.1:{self.base_port + offset if self.base_port else 0}"

    def mock_arguments(self) -> Sequence[str]:
        """Of `polyphase mock`."""
        listen = ("--listen", self.address(10))
        return ("mock", "--supervised", "--fleet", self.fleet, *listen, "--seed", str(self.seed))

    def daemon_env(self, mock: str) -> Mapping[str, str]:
        """The daemon's configuration; what is not named here keeps its default."""
        return {
            "POLYPHASE_LISTEN__DATA": self.address(0),
            "POLYPHASE_LISTEN__ADMIN": self.address(1),
            "POLYPHASE_LISTEN__METRICS": self.address(2),
            "POLYPHASE_BACKEND": json.dumps([{"id": spec.id, "address": mock} for spec in self.specs]),
            **self._policy_env(),
        }

    def _policy_env(self) -> Mapping[str, str]:
        file = Path(self.policy)
        if file.suffix == ".toml" or file.is_file():
            return {"POLYPHASE_POLICY__FILE": str(file.resolve())}
        return {"POLYPHASE_POLICY__NAME": self.policy}


@click.command(epilog=EPILOG)
@click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="S",
    help="Offer requests for so long; a shorter trace starts over.",
)
@click.option(
    "--fleet",
    default="mixed",
    show_default=True,
    metavar="NAME|FILE",
    help=FLEETS,
)
@click.option(
    "--policy",
    default="predicted",
    show_default=True,
    metavar="NAME|FILE",
    help="Who decides where phases run.",
)
@click.option(
    "--base-port",
    type=click.IntRange(0, 65_000),
    default=7600,
    show_default=True,
    metavar="PORT",
    help="Data, admin and metrics use this and the next two, the fleet ten above; 0 takes free ports.",
)
@workload_options(default_trace="azure", default_speed=8.0)
def command(**given: Any) -> None:
    """Run a router and a mock fleet, replay a real trace, show where every phase ran.

    The bundled trace has the arrivals and lengths of a production service; the fleet mixes GPUs, LPUs, TPUs
    and NPUs. Every token is checked. Daemon, fleet and load generator are processes of their own.
    """
    specs = load_fleet(given["fleet"]).backends
    setting = Setting(specs, given["fleet"], given["policy"], given["base_port"], given["seed"])
    plan = plan_of(given, target="", model=most_common_model(specs))
    out = console.consoles(given["json_to"])
    performance = asyncio.run(perform(setting, plan, out))
    out.print(console.summary(performance.report))
    console.write_json(performance.report, given["json_to"])
    finish(judge(performance.tally, Limits()))


def most_common_model(specs: Sequence[BackendSpec]) -> str:
    """The model that most backends serve; the first named wins a tie."""
    models = Counter(model for spec in specs for model in spec.models)
    return models.most_common(1)[0][0]
