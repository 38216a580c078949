"""`polyphase replay`: prove that the code still decides what it decided."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.markup import escape

from router.cli import console
from router.cli.trouble import RUN_FAILED
from router.observe.replay import Difference
from router.sim.recorded import Recorded, read_recording

EPILOG = """
\b
Examples:
  polyphase replay polyphase.jsonl

\b
A daemon records with observe.record in its configuration.
Exit codes: 0 every action was the recorded one; 1 some were not, and the first is shown;
2 the recording is damaged or incomplete; 78 no such recording.
"""


@click.command(epilog=EPILOG)
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--json", "json_to", type=click.Path(dir_okay=False, allow_dash=True), metavar="FILE")
def command(recording: Path, json_to: str | None) -> None:
    """Feed a RECORDING to a fresh core, built the same way, and compare every action, to the last field."""
    out = console.consoles(json_to)
    recorded = read_recording(recording)
    result = recorded.replayed
    if json_to is not None:
        console.write_json(_as_dict(recorded), json_to)
    done = f"{result.facts:,} facts and deadlines, {len(recorded.arrivals):,} requests"
    if result.same:
        out.print(f"[green]Identical[/]: {done}; every action is the recorded one.")
        return
    out.print(f"[red]Different[/]: {result.facts - result.identical:,} of {done}.")
    if result.first_difference is not None:
        out.print(escape(_difference(result.first_difference)))
    sys.exit(RUN_FAILED)


def _difference(one: Difference) -> str:
    lines = [f"First at entry {one.n}, {one.fact} at {one.now:.6f} s:"]
    lines += [f"  recorded  {action}" for action in one.recorded or ("nothing",)]
    lines += [f"  replayed  {action}" for action in one.replayed or ("nothing",)]
    if one.recorded == one.replayed:
        lines.append("  (the same actions with other fields, such as the numbers of a decision)")
    return "\n".join(lines)


def _as_dict(recorded: Recorded) -> dict[str, object]:
    result, first = recorded.replayed, recorded.replayed.first_difference
    shown = None
    if first is not None:
        shown = {name: getattr(first, name) for name in first.__slots__}
    value = {"entries": result.facts, "identical": result.identical, "first_difference": shown}
    return json.loads(json.dumps(value))  # type: ignore[no-any-return]  # tuples become lists
