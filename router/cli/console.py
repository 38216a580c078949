"""How the commands print: units, tables, the summary of a run, progress while it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from router.model import Seconds

PLAIN_EVERY_S: Final = 5.0
PLAIN_WIDTH: Final = 200
LATENCIES: Final = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}


def consoles(json_to: str | None) -> Console:
    """Standard output, or standard error while standard output carries the JSON."""
    out = Console(stderr=json_to == "-", highlight=False)
    # Without a terminal there is no width to keep to; 80 columns would cut cells short in a log.
    return out if out.is_terminal else Console(stderr=json_to == "-", highlight=False, width=PLAIN_WIDTH)


def duration(seconds: float | None) -> str:
    """Three significant digits in the unit that suits."""
    if seconds is None:
        return "-"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 1000 else f"{seconds:,.0f} s"
    return "0 s" if seconds == 0 else f"{seconds:.1e} s"


def joules(energy_j: float) -> str:
    """J, kJ or MJ."""
    for scale, unit in ((1e6, "MJ"), (1e3, "kJ")):
        if energy_j >= scale:
            return f"{energy_j / scale:.3g} {unit}"
    return f"{energy_j:.3g} J"


def usd(cost: float) -> str:
    """Dollars; small amounts keep their digits."""
    return f"${cost:,.2f}" if cost >= 10 else f"${cost:.3g}"


def grid(*columns: str, title: str = "", words: Collection[str] = ()) -> Table:
    """A table whose first column and those named in `words` are text, the others numbers."""
    table = Table(title=title or None, box=None, pad_edge=False, title_justify="left", title_style="bold")
    for column in columns:
        left = column in words or column == columns[0]
        table.add_column(column, justify="left" if left else "right", no_wrap=True, header_style="dim")
    return table


def summary(report: Mapping[str, Any]) -> RenderableType:
    """A finished run: what was sent, whether all tokens were right, where the time went and who did what."""
    return Group(_headline(report), _latencies(report), _backends(report), _pairs(report))


def _headline(report: Mapping[str, Any]) -> RenderableType:
    requests, integrity = report["requests"], report["integrity"]
    table = Table.grid(padding=(0, 2))
    bad = requests["failed"] or requests["not_sent"]
    done = f"{requests['total']:,} offered, {requests['ok']:,} ok, {requests['failed']:,} failed"
    extra = "".join(
        f", {requests[key]:,} {word}"
        for key, word in (("not_sent", "not sent"), ("cancelled", "cancelled"), ("retried", "retried"))
        if requests[key]
    )
    table.add_row("Requests", Text(done + extra, style="red" if bad else "green"))
    for reason, count in requests["failures"].items():
        table.add_row("", Text(f"{count:,} x {reason}", style="red"))
    wrong = any(integrity.values())
    table.add_row(
        "Tokens",
        f"{report['tokens']:,} ({report['tokens_per_s']:,.0f}/s)",
    )
    verdict = ", ".join(f"{count:,} {name}" for name, count in integrity.items())
    table.add_row("Integrity", Text(verdict, style="red" if wrong else "green"))
    table.add_row("Cost, energy", f"{usd(report['cost_usd'])}, {joules(report['energy_j'])}")
    table.add_row("Time", f"{duration(report['duration_s'])}, {report['sent_rate']:.1f} requests/s sent")
    return table


def _latencies(report: Mapping[str, Any]) -> Table:
    columns = ("p50", "p90", "p99", "mean")
    table = grid("", *columns, title="\nLatency")
    rows = [(label, report[key]) for key, label in LATENCIES.items()]
    rows += [(f"  {name}", samples) for name, samples in report["phases"].items()]
    for label, samples in rows:
        table.add_row(label, *(duration(samples[column]) for column in columns))
    return table


def _backends(report: Mapping[str, Any]) -> Table:
    table = grid(
        "Backend",
        "kind",
        "prefills",
        "decodes",
        "tokens out",
        "busy",
        "cost",
        "energy",
        title="\nBackends",
        words=["kind"],
    )
    for backend in report["backends"]:
        table.add_row(
            backend["id"],
            backend["kind"],
            f"{backend['prefills']:,}",
            f"{backend['decodes']:,}",
            f"{backend['tokens']:,}",
            f"{backend['busy_ratio']:.1%}",
            usd(backend["cost_usd"]),
            joules(backend["energy_j"]),
        )
    return table


def _pairs(report: Mapping[str, Any]) -> Table:
    table = grid("Prefill → decode", "requests", "share", title="\nWho fed whom")
    total = sum(pair["requests"] for pair in report["pairs"]) or 1
    for pair in report["pairs"]:
        count = pair["requests"]
        table.add_row(f"{pair['prefill']} → {pair['decode']}", f"{count:,}", f"{count / total:.1%}")
    return table


def write_json(report: Mapping[str, Any], json_to: str | None) -> None:
    """To a file, to standard output for `-`, or nowhere."""
    if json_to is None:
        return
    text = json.dumps(report, indent=2)
    if json_to == "-":
        print(text)
    else:
        Path(json_to).write_text(text + "\n", encoding="utf-8")


class PlainProgress:
    """A line now and then, where no terminal can redraw."""

    def __init__(self, out: IO[str], every_s: Seconds = PLAIN_EVERY_S) -> None:
        self._out = out
        self._every_s = every_s
        self._next = time.monotonic() + every_s

    def show(self, line: str) -> None:
        """Print the line if it is time."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._every_s
            print(line, file=self._out, flush=True)
