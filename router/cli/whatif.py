"""`polyphase whatif`: what another policy or fleet would have made of recorded traffic."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from backends.catalogue import load_fleet
from router.cli import console
from router.cli.console import duration, grid
from router.cli.options import POSITIVE
from router.cli.trouble import RUN_FAILED
from router.sim.contest import contestant
from router.sim.network import Network
from router.sim.recorded import Recorded, read_recording
from router.sim.result import LATENCIES
from router.sim.whatif import Answer, Candidate, Fidelity, WhatIf

EPILOG = """
\b
Examples:
  polyphase whatif polyphase.jsonl                                  fidelity alone
  polyphase whatif polyphase.jsonl --policy least_loaded --policy deploy/policies/scored.toml
  polyphase whatif polyphase.jsonl --policy predicted --fleet gpu-lpu --by ttft_p99_s

\b
Exit codes: 0 done; 1 the recording does not replay to the same actions;
2 a damaged recording; 78 a bad file.
"""


@click.command(epilog=EPILOG)
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--policy", "policies", multiple=True, metavar="NAME|FILE", help="A candidate; give several.")
@click.option(
    "--fleet", "fleets", multiple=True, metavar="NAME|FILE", help="Try the candidates on another fleet."
)
@click.option(
    "--by", "metric", default="e2e_mean_s", show_default=True, metavar="METRIC", help="Rank by this."
)
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Runs per candidate."
)
@click.option(
    "--one-way",
    type=POSITIVE,
    metavar="S",
    help="Network delay to a worker, instead of measuring it on every other request.",
)
@click.option("--json", "json_to", type=click.Path(dir_okay=False, allow_dash=True), metavar="FILE")
def command(**given: Any) -> None:
    """Replay the traffic of a RECORDING in simulation and rank candidates on it.

    The recorded policy comes first: how far its simulation is from the measurement is the error of the model,
    and candidates that are closer together than that are not ranked.
    """
    out = console.consoles(given["json_to"])
    with out.status("reading the recording") as status:
        recorded = read_recording(given["recording"])
        network = None if given["one_way"] is None else Network(given["one_way"])
        what_if = WhatIf(recorded, network, lambda text: status.update(f"simulating {text}"))
        fidelity = what_if.fidelity()
        candidates = _candidates(given["policies"], given["fleets"])
        answer = what_if.ask(candidates, fidelity, given["metric"], range(1, given["seeds"] + 1))
    out.print(_recording(recorded))
    out.print(_fidelity(fidelity))
    if candidates:
        _print_ranking(out, answer)
    console.write_json(answer.as_dict(), given["json_to"])
    if not recorded.replayed.same:
        sys.exit(RUN_FAILED)


def _candidates(policies: Sequence[str], fleets: Sequence[str]) -> list[Candidate]:
    if fleets and not policies:
        raise click.UsageError("--fleet needs at least one --policy to run on it")
    loaded = [load_fleet(name) for name in fleets]
    candidates: list[Candidate] = []
    for name in policies:
        made = contestant(name)
        candidates += [Candidate(made, fleet.name, fleet.backends) for fleet in loaded] or [Candidate(made)]
    return candidates


def _recording(recorded: Recorded) -> RenderableType:
    replayed = recorded.replayed
    span, backends = duration(recorded.arrivals[-1][0]), len(recorded.specs)
    lines = [Text(f"{len(recorded.arrivals):,} requests over {span}, {backends} backends")]
    if replayed.same:
        lines.append(Text(f"Replay: {replayed.facts:,} entries, all identical", "green"))
    else:
        different = replayed.facts - replayed.identical
        said = (
            f"Replay: {different:,} of {replayed.facts:,} entries differ. What is called measured is what"
            " this version decides on the recorded facts, not what was decided then."
        )
        lines.append(Text(said, "red"))
    if recorded.policies > 1:
        lines.append(Text("The policy was replaced while recording; the first one is simulated.", "yellow"))
    return Group(*lines)


def _fidelity(fidelity: Fidelity) -> RenderableType:
    table = grid("", "measured", "simulated", "error", title="\nFidelity: the recorded policy, simulated")
    for row in fidelity.rows:
        big = abs(row.error) > 0.03 and row.name in LATENCIES
        error = f"{row.error:+.1%}" if math.isfinite(row.error) else "-"
        table.add_row(
            f"{row.name} {row.statistic}",
            duration(row.measured),
            duration(row.simulated),
            Text(error, "yellow" if big else ""),
        )
    said = (
        f"{fidelity.requests:,} requests ended well in both ({fidelity.measured_ok:,} measured,"
        f" {fidelity.simulated_ok:,} simulated). Largest error of TTFT, TPOT and E2E: {fidelity.error:.1%}."
    )
    if fidelity.calibrated_on:
        said += (
            f" The delays of the wire were measured on {fidelity.calibrated_on:,} other requests of the"
            f" recording: {duration(fidelity.network.typical_trip_s)} there and back, typically."
        )
    if fidelity.guessed:
        said += f" {fidelity.guessed:,} lengths are guesses: those requests were not answered to the end."
    return Group(table, Text(said))


def _print_ranking(out: Console, answer: Answer) -> None:
    out.print(_ranking(answer))
    if not answer.told_apart:
        out.print(
            f"[yellow]No ranking:[/] the candidates differ by less than the error of the model"
            f" ({answer.fidelity.error:.1%})."
        )


def _ranking(answer: Answer) -> Table:
    columns = ("candidate", "", "good", "TTFT p99", "TPOT p99", "E2E mean", "p99")
    table = grid("Rank", *columns, title=f"\nRanking by {answer.metric}", words=["candidate"])
    ranks = [one.rank for one in answer.standings]
    for one in answer.standings:
        metrics = one.results[0].metrics()
        shared = "=" if ranks.count(one.rank) > 1 else ""
        times = (duration(metrics[f"{n}_s"]) for n in ("ttft_p99", "tpot_p99", "e2e_mean", "e2e_p99"))
        good = f"{metrics['attainment']:.1%}"
        table.add_row(f"{one.rank}{shared}", escape(one.label), f"{one.value:.4g}", good, *times)
    return table
