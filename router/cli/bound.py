"""`polyphase bound`: how near a policy is to what any policy could reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from rich.console import Group, RenderableType

from backends.catalogue import load_fleet
from router.cli import console
from router.cli.options import POSITIVE, seconds
from router.model import ServiceLevel
from router.plan.ladder import RATIOS, Ladder, Question, climb, phases
from router.plan.recipe import azure_rows, load_units
from router.plan.supply import Limits
from router.sim.classes import Workload
from router.sim.contest import contestant
from router.sim.workload_file import load_workload, workload_of_trace

DEFAULT_DURATION_S = 600.0
DEFAULT_REQUESTS = 10_000
"""Whichever is over first; more make simulations and programs that take minutes."""
UNITS = {
    "device": "one {0} more of device time",
    "prompts": "one {0} more of prompt time",
    "kv": "one {0} more of KV room",
    "link": "one {0} more of KV egress",
    "ingress": "one {0} more of KV ingress",
    "unit": "one {0} more",
    "power": "one watt more",
    "usd": "one USD/h more",
}
LIMITS = {
    "device": "device time of {0}",
    "prompts": "prompt time of {0}",
    "kv": "KV room of {0}",
    "link": "KV egress of {0}",
    "ingress": "KV ingress of {0}",
    "unit": "the number of {0}",
    "power": "power",
}
EPILOG = """
\b
Examples:
  polyphase bound --fleet mixed --workload chat --rate-scale 10
  polyphase bound --fleet gpu-lpu --trace azure --ttft-slo 1 --tpot-slo 0.05 --rate-scale 20
  polyphase bound --example azure

\b
Needs SciPy: pip install 'polyphase[plan]'.
Exit codes: 0 done; 2 wrong usage; 78 a bad file, no SciPy, or a program that is too large.
"""


@click.command(epilog=EPILOG)
@click.option("--fleet", default="mixed", show_default=True, metavar="NAME|FILE", help="Fleet to bound.")
@click.option("--workload", metavar="NAME|FILE", help="Workload, by name or TOML file.")
@click.option("--trace", metavar="FILE", help="A trace instead; `azure` is bundled.")
@click.option(
    "--policy", default="predicted", show_default=True, metavar="NAME|FILE", help="The online policy."
)
@click.option(
    "--rate-scale", type=POSITIVE, default=1.0, show_default=True, metavar="X", help="Multiply the load."
)
@seconds("--duration", "Let requests come for so long.  [default: 600, and at most 10,000 requests]")
@click.option("--requests", type=click.IntRange(1, 100_000), metavar="N", help="Stop after so many requests.")
@click.option(
    "--seed", type=click.IntRange(0, 1 << 62), default=1, show_default=True, help="Of the arrivals."
)
@seconds("--window", "Length of a window of B2.", default=5.0, show_default=True)
@click.option("--power-cap-w", type=POSITIVE, metavar="W", help="What all backends together may draw.")
@seconds("--ttft-slo", "With --trace: ask for this time to first token.")
@seconds("--tpot-slo", "With --trace: ask for this time per output token.")
@click.option("--example", type=click.Choice(["azure"]), help="Work the published example instead.")
@click.option(
    "--json",
    "json_to",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write the results.",
)
def command(**given: Any) -> None:
    """Bound what any policy can serve within its objectives on a fleet.

    Simulates the online policy and clairvoyant ones (B4), and solves the fluid program over the whole span
    (B1) and in windows (B2). The dual prices say what one more of each thing that binds is worth.
    """
    out = console.consoles(given["json_to"])
    if given["example"]:
        out.print(_example_table())
        console.write_json({"rows": _example_dict()}, given["json_to"])
        return
    ladder = climb(
        _question(given), lambda text: out.print(f"[dim]{text}[/dim]") if out.is_terminal else None
    )
    out.print(tables(ladder))
    console.write_json(ladder.as_dict(), given["json_to"])


def _question(given: Mapping[str, Any]) -> Question:
    workload = _workload(given)
    duration_s = given["duration"]
    requests = given["requests"]
    if duration_s is None and requests is None:
        duration_s = min(DEFAULT_DURATION_S, workload.duration_s)
        requests = min(DEFAULT_REQUESTS, workload.requests or DEFAULT_REQUESTS)
    limits = Limits(power_w=given["power_cap_w"]) if given["power_cap_w"] else Limits()
    return Question(
        load_fleet(given["fleet"]).backends,
        workload,
        contestant(given["policy"]),
        given["seed"],
        given["rate_scale"],
        requests,
        duration_s,
        given["window"],
        limits,
    )


def _workload(given: Mapping[str, Any]) -> Workload:
    if given["workload"] and given["trace"]:
        raise click.UsageError("give --workload or --trace, not both")
    if given["trace"]:
        return workload_of_trace(given["trace"], slo=ServiceLevel(given["ttft_slo"], given["tpot_slo"]))
    if given["ttft_slo"] or given["tpot_slo"]:
        raise click.UsageError("--ttft-slo and --tpot-slo belong to --trace; a workload has its own")
    return load_workload(given["workload"] or "chat")


def tables(ladder: Ladder) -> RenderableType:
    """The ladder on a terminal."""
    parts = [_rungs(ladder), _ratios(ladder), _capacity(ladder), _phases(ladder), _verdict(ladder)]
    return Group(*(part for part in parts if part))


def _rungs(ladder: Ladder) -> RenderableType:
    table = console.grid("", "requests", "of offered", "how", title="Within all objectives", words=["how"])
    for rung in ladder.rungs:
        share = rung.requests / ladder.offered if ladder.offered else 0.0
        table.add_row(rung.name, f"{rung.requests:,.1f}", f"{share:.1%}", rung.how)
    table.add_row("offered", f"{ladder.offered:,}", "100.0%", f"{ladder.offered_per_s:.3g} requests/s")
    return table


def _ratios(ladder: Ladder) -> RenderableType:
    table = console.grid("Ratio", "", title="\nHow near")
    for below, above in RATIOS:
        value = ladder.ratio(below, above)
        table.add_row(f"{below} / {above}", "-" if value is None else f"{value:.1%}")
    return table


def _capacity(ladder: Ladder) -> RenderableType | None:
    if not ladder.binding:
        return None
    plan = ladder.capacity
    table = console.grid("Worth of", "requests/s")
    shown = {name: value for name, value in ladder.binding.items() if not _is_repeated(name, ladder.binding)}
    for name, value in shown.items():
        limit, _, supply = name.partition(":")
        table.add_row(UNITS[limit].format(supply), f"+{value:.3g}")
    told = f"\nAt most {plan.served:.3g} requests/s of this mix, {plan.objective:.3g} times the load."
    return Group(told, table)


def _is_repeated(name: str, binding: Mapping[str, float]) -> bool:
    """Whether a whole backend more is worth no more than its device time, which stands there already."""
    limit, _, supply = name.partition(":")
    return (
        limit == "unit" and abs(binding[name] - binding.get(f"device:{supply}", 0.0)) < 1e-6 * binding[name]
    )


def _phases(ladder: Ladder) -> RenderableType:
    table = console.grid("Type", "units", "prefill", "decode", title="\nWhere the phases go at that rate")
    shares = phases(ladder.capacity, ladder.supplies)
    for supply in ladder.supplies:
        row = shares[supply.name]
        table.add_row(supply.name, f"{supply.units:g}", f"{row['prefill']:.1%}", f"{row['decode']:.1%}")
    return table


def _verdict(ladder: Ladder) -> str:
    lines: list[str] = []
    if ladder.is_overload:
        names = [name for name in ladder.binding if not _is_repeated(name, ladder.binding)]
        limit, _, supply = names[0].partition(":") if names else ("", "", "")
        binds = LIMITS.get(limit, "the objectives").format(supply)
        lines.append(
            f"Unstable: {ladder.offered_per_s:.3g} requests/s came and no policy can sustain more than"
            f" {ladder.capacity.served:.3g}/s; what binds first is {binds}."
        )
    for name, why in ladder.unservable.items():
        reasons = "; ".join(f"{supply}: {reason}" for supply, reason in why.items())
        lines.append(f"Class {name!r} has requests that nobody can serve in time, even idle ({reasons}).")
    return "\n" + "\n".join(lines) if lines else ""


def _example_table() -> RenderableType:
    title = "Llama-3.1-70B, Azure 2023 traffic: fluid bound (B1)"
    table = console.grid(
        "Fleet", "req/s", "req/s per USD/h", "prefill", "decode", title=title, words=["prefill", "decode"]
    )
    units = load_units()
    for row in azure_rows():
        fleet = " + ".join(f"{count} x ({units[name].device})" for name, count in row.fleet.items())
        table.add_row(
            fleet,
            f"{row.goodput:.1f}",
            f"{row.goodput_per_usd_h:.2f}",
            _shares(row.prefill),
            _shares(row.decode),
        )
    return table


def _shares(shares: Mapping[str, float]) -> str:
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ordered if share >= 0.005) or "-"


def _example_dict() -> list[dict[str, Any]]:
    return [
        {
            "fleet": dict(row.fleet),
            "requests_per_s": row.goodput,
            "requests_per_s_per_usd_h": row.goodput_per_usd_h,
            "prefill": dict(row.prefill),
            "decode": dict(row.decode),
            "duals": {name: value for name, value in row.plan.duals.items() if value > 0},
        }
        for row in azure_rows()
    ]
