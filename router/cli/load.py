"""`polyphase load`: an open-loop load test that checks every token."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from router.cli import console
from router.cli.interrupt import stopping
from router.cli.options import address, seconds, workload_options
from router.cli.trouble import RUN_FAILED
from router.load.limits import Limits
from router.load.report import Tally
from router.load.requests import RequestOptions
from router.load.run import LoadPlan, LoadRun
from router.sim.workload import load_trace

DEFAULT_MODEL = "llama-3.1-8b"
DEFAULT_RATE = 10.0
DEFAULT_DURATION_S = 30.0
OWN_OPTIONS = {
    "prompt_tokens": "prompt_tokens",
    "output_tokens": "output_tokens",
    "sessions": "connections",
    "generate": "per_call",
    "max_in_flight": "max_in_flight",
    "timeout": "timeout_s",
    "verify": "verify",
}
"""Options that only this command has, and the fields of the plan they set."""
REDRAW_EVERY_S = 0.25
RECENT = 1000
TOKENS = click.IntRange(1, 1_000_000)
EPILOG = """
\b
Examples:
  polyphase load 127.0.0.1:7600 --rate 100 --duration 60 --output-tokens 100
  polyphase load 127.0.0.1:7600 --trace azure --speed 4 --json report.json
  polyphase load 127.0.0.1:7600 --trace mooncake.jsonl.gz --speed 2 --max-ttft-p99 1.5

\b
Exit codes: 0 all went well; 1 a limit was crossed, a token was lost, doubled or wrong,
or (without --max-failed-ratio) a request failed; 2 wrong usage or no router; 78 a bad trace.
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a run is not good; empty when it is."""

    complaints: tuple[str, ...]


def judge(tally: Tally, limits: Limits) -> Verdict:
    """Hold a run against its limits; integrity has no tolerance, failures have none unless one was given."""
    complaints = limits.crossed(tally)
    if tally.integrity.violations:
        complaints.append(f"{tally.integrity.violations} tokens were lost, duplicated or mismatched")
    if limits.max_failed_ratio is None and tally.failed + tally.not_sent_count:
        complaints.append(f"{tally.failed} requests failed, {tally.not_sent_count} were not sent")
    if not tally.ok and not tally.cancelled:
        complaints.append("no request ended well")
    return Verdict(tuple(complaints))


@click.command(epilog=EPILOG)
@click.argument("target", callback=address)
@seconds(
    "--duration",
    "Offer requests for so long; a shorter trace starts over.  [default: 30, or one pass of the trace]",
)
@workload_options()
@click.option("--prompt-tokens", type=TOKENS, default=512, show_default=True, metavar="N")
@click.option("--output-tokens", type=TOKENS, default=128, show_default=True, metavar="N")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME", help="Model to ask for.")
@click.option(
    "--sessions",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    metavar="N",
    help="Connections.",
)
@click.option("--generate", is_flag=True, help="One call per request instead of multiplexed sessions.")
@click.option(
    "--max-in-flight",
    type=click.IntRange(1, 100_000),
    default=4096,
    show_default=True,
    metavar="N",
    help="Beyond it, requests that are due count as not sent.",
)
@seconds("--timeout", "Give up on a request after so long.", default=120.0, show_default=True)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Compare token values; switch it off where the backends are no mocks.",
)
@seconds("--max-ttft-p99", "Fail above this time to first token.")
@seconds("--max-tpot-p99", "Fail above this time per output token.")
@seconds("--max-e2e-p99", "Fail above this end-to-end time.")
@click.option(
    "--max-failed-ratio",
    type=click.FloatRange(0, 1),
    metavar="R",
    help="Tolerate this share of failed requests, 0 to 1.",
)
def command(**given: Any) -> None:
    """Send requests to the router at TARGET (host:port of its data port) and check every token.

    Requests leave at their times whether or not earlier ones have been answered (an open loop), and every
    latency counts from the time a request should have left. Without --trace or --rate, 10 requests of one
    size are sent per second.
    """
    limits = Limits(
        given["max_ttft_p99"], given["max_tpot_p99"], given["max_e2e_p99"], given["max_failed_ratio"]
    )
    plan = plan_of(given, target=given["target"], model=given["model"])
    out = console.consoles(given["json_to"])
    tally = asyncio.run(_run(plan, out))
    report = tally.report()
    out.print(console.summary(report))
    console.write_json(report, given["json_to"])
    finish(judge(tally, limits))


def plan_of(given: Mapping[str, Any], *, target: str, model: str) -> LoadPlan:
    """The plan that the options describe; an option that a command does not have keeps the plan's default."""
    trace = load_trace(given["trace"], given["workload_class"]) if given["trace"] else []
    own = {field: given[option] for option, field in OWN_OPTIONS.items() if option in given}
    return LoadPlan(
        target,
        RequestOptions(model, given["ttft_slo"], given["tpot_slo"], given["deadline"]),
        trace=trace,
        rate=given["rate"] if given["rate"] or trace else DEFAULT_RATE,
        speed=given["speed"],
        duration_s=given["duration"] if given["duration"] or trace else DEFAULT_DURATION_S,
        workload_class=given["workload_class"],
        seed=given["seed"],
        run=f"load-{secrets.token_hex(4)}",
        **own,
    )


def finish(verdict: Verdict) -> None:
    """Say what is wrong and leave with exit code 1, or return."""
    for complaint in verdict.complaints:
        click.echo(f"polyphase: {complaint}.", err=True)
    if verdict.complaints:
        sys.exit(RUN_FAILED)


async def _run(plan: LoadPlan, out: Console) -> Tally:
    run = LoadRun(plan)
    with stopping(run.stop):
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(_watch(run, out))
            tally = await run.run()
            watching.cancel()
    return tally


async def _watch(run: LoadRun, out: Console) -> None:
    """A progress bar on a terminal, lines elsewhere."""
    if not out.is_terminal:
        await _lines(run, out)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, auto_refresh=False) as progress:
        bar = progress.add_task("connecting", total=run.plan.expected_s)
        while True:
            await asyncio.sleep(REDRAW_EVERY_S)
            elapsed = min(run.elapsed_s, run.plan.expected_s)
            progress.update(bar, completed=elapsed, description=line(run), refresh=True)


async def _lines(run: LoadRun, out: Console) -> None:
    plain = console.PlainProgress(out.file)
    while True:
        await asyncio.sleep(REDRAW_EVERY_S)
        plain.show(f"{run.elapsed_s:.0f} s  {line(run)}")


def line(run: LoadRun) -> str:
    """A run in one line."""
    tally = run.tally
    ttft = tally.ttft.recent(RECENT)
    rate = tally.tokens / run.elapsed_s if run.elapsed_s > 0 else 0.0
    text = (
        f"{tally.sent_count:,} sent, {run.loop.in_flight:,} in flight, {tally.ok:,} ok, "
        f"{tally.failed:,} failed, {rate:,.0f} tokens/s, "
        f"TTFT p50 {console.duration(ttft['p50'])} p99 {console.duration(ttft['p99'])}"
    )
    bad = tally.integrity.violations
    return f"{text}, {bad:,} BAD TOKENS" if bad else text
