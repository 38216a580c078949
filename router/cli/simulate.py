"""`polyphase simulate`: policies on a fleet and a workload in virtual time."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from backends.catalogue import load_fleet
from router.cli import console
from router.cli.options import POSITIVE, seconds
from router.cli.sim_tables import tables
from router.cli.trouble import RUN_FAILED
from router.config import load_config
from router.core.admission import Limits
from router.model import ServiceLevel
from router.plan.prices import prices_of
from router.sim.classes import Workload
from router.sim.contest import contestant
from router.sim.experiment import Experiment, Plan, carry_out
from router.sim.memory import ease_collection
from router.sim.recorded_workload import is_recording, workload_of_recording
from router.sim.run import Contestant, Failure, Progress
from router.sim.workload_file import load_workload, workload_of_trace

EPILOG = """
\b
Examples:
  polyphase simulate --fleet mixed --workload chat --policy predicted --policy least_loaded
  polyphase simulate --trace azure --policy predicted --seeds 5 --report report.html
  polyphase simulate --workload mixed --rate-scale 1 --rate-scale 2 --json out.json

\b
Exit codes: 0 done; 1 a load was too high and its run was stopped; 2 wrong usage;
78 a bad file, or a fleet that cannot serve the workload.
"""


@click.command(epilog=EPILOG)
@click.option("--fleet", default="mixed", show_default=True, metavar="NAME|FILE", help="Fleet to simulate.")
@click.option(
    "--workload", metavar="NAME|FILE", help="Workload: chat, code, agents, ..., mixed, or a TOML file."
)
@click.option(
    "--trace", metavar="FILE", help="A trace instead: CSV, JSONL or a recording; `azure` is bundled."
)
@click.option("--rate", type=POSITIVE, metavar="PER_S", help="With --trace: Poisson arrivals at this rate.")
@click.option("--model", metavar="NAME", help="Model that all requests ask for, instead of the workload's.")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=("predicted",),
    show_default=True,
    metavar="NAME|FILE",
    help="Policy to simulate; several are compared with the first.",
)
@click.option(
    "--rate-scale",
    "rate_scales",
    multiple=True,
    type=POSITIVE,
    default=(1.0,),
    metavar="X",
    help="Multiply the load; several give goodput against load.",
)
@click.option("--requests", type=click.IntRange(1, 1 << 40), metavar="N", help="Stop after so many requests.")
@seconds("--duration", "Let requests come for so long.")
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="Runs per policy.")
@click.option("--seed", type=click.IntRange(0, 1 << 62), default=1, show_default=True, help="The first seed.")
@seconds("--ttft-slo", "With --trace: ask for this time to first token.")
@seconds("--tpot-slo", "With --trace: ask for this time per output token.")
@click.option(
    "--fail",
    "failures",
    multiple=True,
    metavar="ID@S[+DOWN]",
    help="Let a backend die after S seconds, and come back DOWN seconds later.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take [admission] from a daemon's configuration.",
)
@click.option("--bound", is_flag=True, help="Work out what no policy could exceed (needs the extra `plan`).")
@click.option("--keep-going", is_flag=True, help="Do not stop a run whose load is too high.")
@click.option(
    "--json",
    "json_to",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write the results.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.html",
    help="Write one HTML page.",
)
def command(**given: Any) -> None:
    """Simulate policies on a fleet and a workload, in virtual time, with the daemon's own code.

    Every policy sees the same arrivals. The same seed gives the same results, byte for byte.
    """
    plan = _plan(given)
    out = console.consoles(given["json_to"])
    experiment = _run(plan, out)
    if given["bound"]:
        from router.cli.sim_bounds import bounds_for

        with out.status("bounds") as status:
            experiment = replace(experiment, bounds=tuple(bounds_for(plan, status.update)))
    out.print(tables(experiment))
    console.write_json(experiment.as_dict(), given["json_to"])
    if given["report"] is not None:
        from router.sim.page.page import page

        given["report"].write_text(page(experiment), encoding="utf-8")
        out.print(f"Report: {given['report']}")
    if any(result.stopped for result in experiment.results):
        raise SystemExit(RUN_FAILED)


def _plan(given: dict[str, Any]) -> Plan:
    labels = given["policies"]
    if len(set(labels)) < len(labels):
        raise click.UsageError("a policy is named twice; name each once")
    return Plan(
        load_fleet(given["fleet"]),
        _workload(given),
        tuple(contestant(label) for label in labels),
        tuple(range(given["seed"], given["seed"] + given["seeds"])),
        tuple(dict.fromkeys(given["rate_scales"])),
        given["requests"],
        given["duration"],
        _limits(given["config_file"]),
        stop_when_unstable=not given["keep_going"],
        failures=tuple(map(_failure, given["failures"])),
        solve=prices_of,
    )


def _limits(config_file: Path | None) -> Limits | None:
    """None keeps the daemon's defaults."""
    return None if config_file is None else Limits(**load_config(config_file).admission.model_dump())


def _failure(text: str) -> Failure:
    match = re.fullmatch(r"(.+)@([0-9.]{1,12})(?:\+([0-9.]{1,12}))?", text)
    try:
        if match is None:
            raise ValueError
        down_s = None if match[3] is None else float(match[3])
        return Failure(match[1], float(match[2]), down_s)
    except ValueError:
        raise click.UsageError(f"--fail {text!r}: give ID@SECONDS or ID@SECONDS+SECONDS") from None


def _workload(given: dict[str, Any]) -> Workload:
    if given["workload"] and given["trace"]:
        raise click.UsageError("give --workload or --trace, not both")
    if given["trace"] and is_recording(Path(given["trace"])):
        workload = workload_of_recording(Path(given["trace"]))
    elif given["trace"]:
        slo = ServiceLevel(given["ttft_slo"], given["tpot_slo"])
        workload = workload_of_trace(given["trace"], slo=slo, rate=given["rate"])
    else:
        for option in ("rate", "ttft_slo", "tpot_slo"):
            if given[option] is not None:
                raise click.UsageError(
                    f"--{option.replace('_', '-')} belongs to --trace; a workload has its own"
                )
        workload = load_workload(given["workload"] or "chat")
    if given["model"]:
        classes = tuple(replace(one, model=given["model"]) for one in workload.classes)
        workload = replace(workload, classes=classes)
    return workload


def _run(plan: Plan, out: Console) -> Experiment:
    ease_collection()
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    if not out.is_terminal:
        return carry_out(plan, _plain(plan, console.PlainProgress(out.file)))
    with Bar(*columns, console=out, transient=True, refresh_per_second=4) as bar:
        task = bar.add_task("simulating", total=float(plan.runs))

        def show(number: int, policy: Contestant, progress: Progress) -> None:
            text = f"{policy.label} {number + 1}/{plan.runs}: {progress.requests:,} requests"
            bar.update(task, completed=number + progress.share, description=text)

        return carry_out(plan, show)


def _plain(plan: Plan, lines: console.PlainProgress) -> Any:
    def show(number: int, policy: Contestant, progress: Progress) -> None:
        lines.show(
            f"{policy.label} {number + 1}/{plan.runs}: {progress.share:.0%}, {progress.requests:,} requests,"
            f" {progress.now:,.0f} s of virtual time"
        )

    return show
