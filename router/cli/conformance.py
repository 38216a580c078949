"""`polyphase conformance`: the worker contract as checks, against workers that run."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from collections.abc import Sequence
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from backends.conformance.run import CHECKS, chosen, conform
from backends.conformance.verdicts import Control, NotCheckedError, Report, Result, Settings, Target, Verdict
from router.address import parse_host_port
from router.cli.console import consoles
from router.cli.options import address, seconds
from router.cli.trouble import RUN_FAILED, Trouble
from router.model import Seconds

STYLES: Final = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.SKIP: "yellow"}
NAME_WIDTH: Final = max(len(check.name) for check in CHECKS)
EPILOG = """
\b
Examples:
  polyphase conformance gpu-0@127.0.0.1:7620
  polyphase conformance prefill-0@10.0.0.1:7620 decode-0@10.0.0.2:7620 --listen 10.0.0.3:0
  polyphase conformance lpu-0@127.0.0.1:7620 --only cancel --only handle.fields --json
  polyphase conformance gpu-0@127.0.0.1:7620 --restart ./restart.sh --drain ./drain.sh

\b
Exit codes: 0 no check failed; 1 one failed, or none could be made; 2 a wrong option, or no
worker there; 78 an unknown check, or an address that cannot be listened on.
"""


def targets(_: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[Target, ...]:
    """Arguments that must be ID@HOST:PORT."""
    made: list[Target] = []
    for value in values:
        backend, at, place = value.rpartition("@")
        if not at or not backend:
            raise click.BadParameter(f"{value[:80]!r} is not ID@HOST:PORT", param=param)
        try:
            made.append(Target(backend, str(parse_host_port(place))))
        except ValueError as error:
            raise click.BadParameter(str(error), param=param) from error
    if len({one.backend for one in made}) < len(made):
        raise click.BadParameter("a worker is named twice", param=param)
    return tuple(made)


@click.command(epilog=EPILOG)
@click.argument("workers", metavar="TARGET...", nargs=-1, callback=targets)
@click.option("--only", multiple=True, metavar="NAME", help="A check, or a group of them; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--list", "listing", is_flag=True, help="Say what is checked, and check nothing.")
@seconds("--patience", "The longest wait for an answer.", default=30.0, show_default=True)
@click.option(
    "--longest-lease",
    type=click.FloatRange(0, 3600),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Wait for leases up to this long to end.",
)
@click.option(
    "--vocabulary",
    type=click.IntRange(4, 1 << 24),
    default=1000,
    show_default=True,
    metavar="N",
    help="Prompts are token ids from 3 to N - 1.",
)
@click.option(
    "--deterministic", is_flag=True, help="The workers promise equal answers to equal requests: check it."
)
@click.option(
    "--listen",
    default="127.0.0.1:0",
    show_default=True,
    callback=address,
    help="Where the suite plays a producer of KV; the decode worker connects to it.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the prompts.")
@click.option("--restart", metavar="COMMAND", help="Restarts the worker named in POLYPHASE_BACKEND.")
@click.option("--drain", metavar="COMMAND", help="Drains the worker named in POLYPHASE_BACKEND.")
def command(
    workers: tuple[Target, ...],
    only: tuple[str, ...],
    as_json: bool,
    listing: bool,
    patience: Seconds,
    longest_lease: Seconds,
    vocabulary: int,
    deterministic: bool,
    listen: str,
    seed: int,
    restart: str | None,
    drain: str | None,
) -> None:
    """Check workers against the contract of WorkerService.

    TARGET is ID@HOST:PORT: one worker, or one that prefills and one that decodes. They must be running, and
    nobody else may use them meanwhile. docs/guides/write-a-backend.md has the contract.
    """
    if listing:
        _list(only)
        return
    if not workers:
        raise click.UsageError("Name one worker or two, as ID@HOST:PORT.")
    settings = Settings(
        patience_s=patience,
        longest_lease_s=longest_lease,
        vocabulary=vocabulary,
        deterministic=deterministic,
        listen=listen,
        seed=seed,
        restart=_control("--restart", restart, patience),
        drain=_control("--drain", drain, patience),
    )
    console = consoles("-" if as_json else None)
    report = asyncio.run(conform(workers, settings, only, lambda result: _show(console, result)))
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    _judge(console, report)


def _list(only: Sequence[str]) -> None:
    console = consoles(None)
    for check in chosen(only):
        console.print(_row(Text(check.name), Text(check.rule).append(f" [{check.where}]", style="dim")))


def _row(*cells: Text) -> Table:
    """Cells side by side; the last one wraps within its column."""
    row = Table.grid(padding=(0, 2))
    for cell in cells[:-1]:
        row.add_column(width=NAME_WIDTH if len(cell) > len(Verdict.PASS) else len(Verdict.PASS))
    row.add_column(overflow="fold")
    row.add_row(*cells)
    return row


def _show(console: Console, result: Result) -> None:
    """A row of the table, as soon as it is known."""
    evidence = Text(result.evidence)
    if result.verdict is Verdict.FAIL:
        evidence.append(f"\nThe contract: {result.rule} [{result.where}].", style="dim")
    console.print(_row(Text(result.verdict, style=STYLES[result.verdict]), Text(result.name), evidence))


def _judge(console: Console, report: Report) -> None:
    counts = report.counts
    console.print(", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict))
    if report.failed:
        raise Trouble(
            f"{len(report.failed)} checks failed: {', '.join(report.failed)}. A router may lose requests or "
            "KV with such a worker. Correct it, and check again with --only.",
            RUN_FAILED,
        )
    if not counts[Verdict.PASS]:
        raise Trouble(
            "No check could be made, so that nothing is known. Name workers and options as each check says.",
            RUN_FAILED,
        )


def _control(option: str, line: str | None, patience_s: Seconds) -> Control | None:
    """Runs a command of the user's, without a shell."""
    if line is None:
        return None
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise click.BadParameter(f"{error}", param_hint=option) from error
    if not words:
        raise click.BadParameter("the command is empty", param_hint=option)

    async def control(backend: str) -> None:
        await _run(words, backend, patience_s)

    return control


async def _run(words: Sequence[str], backend: str, patience_s: Seconds) -> None:
    environment = {**os.environ, "POLYPHASE_BACKEND": backend}
    try:
        # Standard output is the report's.
        process = await asyncio.create_subprocess_exec(
            *words, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
        )
    except OSError as error:
        raise NotCheckedError(f"{words[0]!r} cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(patience_s):
            code = await process.wait()
    except TimeoutError:
        raise NotCheckedError(f"{words[0]!r} was not over within {patience_s:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code:
        raise NotCheckedError(f"{words[0]!r} ended with exit code {code}")
