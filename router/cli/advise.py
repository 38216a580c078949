"""`polyphase advise`: which fleet to buy for a workload."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType

from router.cli import console
from router.cli.options import POSITIVE
from router.cli.trouble import RUN_FAILED
from router.plan.advice import Advice, Answer, Brief, as_dict
from router.plan.advise import advise
from router.plan.chart import chart
from router.plan.supply import Limits
from router.plan.tco import Prices
from router.plan.verify import named
from router.plan.workload_files import find_workload
from router.sim.contest import contestant

SHOWN_FLIPS = 8
NOT_NEGATIVE = click.FloatRange(min=0, max=1e6)
SHARE = click.FloatRange(0, 1)
EPILOG = """
\b
Examples:
  polyphase advise --workload overnight-classification
  polyphase advise --workload coding-assistant --budget-usd-h 20 --power-kw 4 --chart fleets.svg
  polyphase advise --workload on-device-assistant --assumed --power-kw 0.03
  polyphase advise --workload chat --devices h100,h100:fp8,2xb200 --min-flexible 0.5

\b
Needs SciPy: pip install 'polyphase[plan]'.
Exit codes: 0 done; 1 no fleet was found that holds; 2 wrong usage; 78 a bad file, no SciPy,
or a workload that nothing on offer can serve, with the reason.
"""


@click.command(epilog=EPILOG)
@click.option("--workload", required=True, metavar="NAME|FILE", help="Workload, by name or TOML file.")
@click.option(
    "--rate-scale", type=POSITIVE, default=1.0, show_default=True, metavar="X", help="Multiply the load."
)
@click.option(
    "--devices",
    metavar="A,B,...",
    help="Devices of the catalogue or profiles to choose from; `4xh100:fp8` names number and format."
    "  [default: all with a published price]",
)
@click.option("--assumed", is_flag=True, help="Also devices whose price is an assumption.")
@click.option("--budget-usd-h", type=POSITIVE, metavar="USD", help="Most rent an hour.")
@click.option(
    "--power-kw", type=POSITIVE, metavar="KW", help="Most power that may be provisioned at the site."
)
@click.option(
    "--min-flexible",
    type=SHARE,
    default=0.0,
    metavar="0..1",
    help="Share that loadable devices alone must serve.",
)
@click.option(
    "--pue", type=click.FloatRange(1, 5), default=1.3, show_default=True, help="Site power over IT power."
)
@click.option(
    "--usd-per-kwh",
    type=NOT_NEGATIVE,
    default=0.10,
    show_default=True,
    help="Electricity; 0 where rent includes it.",
)
@click.option(
    "--capital",
    multiple=True,
    metavar="DEVICE=USD",
    help="Buy rather than rent: price of one device. Repeatable.",
)
@click.option(
    "--years", type=POSITIVE, default=4.0, show_default=True, help="Over which capital is written off."
)
@click.option("--rack-kw", type=NOT_NEGATIVE, default=0.0, help="What one rack can feed.")
@click.option("--usd-per-rack-month", type=NOT_NEGATIVE, default=0.0, help="What one rack costs.")
@click.option(
    "--attainment",
    type=SHARE,
    default=0.95,
    show_default=True,
    help="Share of each class within its objectives.",
)
@click.option(
    "--policy", default="predicted", show_default=True, metavar="NAME|FILE", help="Policy to verify with."
)
@click.option(
    "--seed", type=click.IntRange(0, 1 << 62), default=1, show_default=True, help="Of the arrivals."
)
@click.option(
    "--sensitivity/--no-sensitivity", default=True, help="Say at which price, load or SLO it flips."
)
@click.option("--chart", "chart_to", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.svg")
@click.option(
    "--json",
    "json_to",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write the results.",
)
def command(**given: Any) -> None:
    """Find the cheapest, the least-energy and the most flexible fleet for a workload.

    A program sizes each fleet, and a simulation with the real policy verifies that it holds the objectives;
    devices are added until it does.
    """
    out = console.consoles(given["json_to"])
    advice = _advise(_brief(given), out)
    out.print(tables(advice))
    if given["chart_to"] is not None:
        given["chart_to"].write_text(chart(advice), encoding="utf-8")
        out.print(f"Chart: {given['chart_to']}")
    console.write_json(as_dict(advice), given["json_to"])
    if not advice.answers:
        raise SystemExit(RUN_FAILED)


def _advise(brief: Brief, out: Console) -> Advice:
    if not out.is_terminal:
        lines = console.PlainProgress(out.file)
        return advise(brief, lines.show)
    with out.status("sizing") as status:
        return advise(brief, status.update)


def _brief(given: Mapping[str, Any]) -> Brief:
    limits = Limits(
        usd_per_hour=given["budget_usd_h"] or float("inf"),
        provisioned_w=(given["power_kw"] or float("inf")) * 1000.0 / given["pue"],
    )
    prices = Prices(
        given["pue"],
        given["usd_per_kwh"],
        dict(_capital(text) for text in given["capital"]),
        given["years"],
        given["rack_kw"],
        given["usd_per_rack_month"],
    )
    return Brief(
        find_workload(given["workload"]),
        contestant(given["policy"]),
        tuple(filter(None, (given["devices"] or "").split(","))),
        given["assumed"],
        limits,
        given["min_flexible"],
        prices,
        given["attainment"],
        given["rate_scale"],
        given["seed"],
        given["sensitivity"],
    )


def _capital(text: str) -> tuple[str, float]:
    name, _, usd = text.partition("=")
    try:
        return name, float(usd)
    except ValueError:
        raise click.UsageError(f"--capital {text!r}: write DEVICE=USD, as in h100=30000") from None


# --- on a terminal ---------------------------------------------------------------------------------


def tables(advice: Advice) -> RenderableType:
    """The advice in words and numbers."""
    ranked = _ranked(advice) if advice.answers else None
    parts = [_demand(advice), ranked, _routes(advice), _flips(advice), _remarks(advice)]
    return Group(*(part for part in parts if part))


def _demand(advice: Advice) -> str:
    rates = ", ".join(f"{name} {rate:.3g}/s" for name, rate in advice.asked.rates.items())
    return (
        f"{advice.brief.workload.name}: {rates}; at least {advice.brief.target:.0%} within all objectives\n"
    )


def _ranked(advice: Advice) -> RenderableType:
    columns = (
        "USD/h",
        "rent",
        "power",
        "mean",
        "peak",
        "site",
        "attained",
        "rigidity",
        "headroom",
        "best at",
    )
    table = console.grid("Fleet", *columns, title="Fleets that hold, by total cost", words=["best at"])
    for one in advice.answers:
        table.add_row(
            named(one.fleet),
            f"{one.usd_per_hour:.2f}",
            f"{one.rent_usd_per_hour:.2f}",
            f"{one.power_usd_per_hour:.3f}",
            f"{one.trial.watts:,.0f} W",
            f"{one.trial.peak_w:,.0f} W",
            f"{one.provisioned_kw:.3g} kW",
            f"{min(one.trial.attainment.values(), default=1.0):.1%}",
            f"{one.rigidity:.0%}",
            f"{one.headroom:.2f}x",
            ", ".join(one.goals) or "(for comparison)",
        )
    return table


def _routes(advice: Advice) -> RenderableType | None:
    best = advice.best
    if best is None:
        return None
    title = f"\nWhere the phases run in {named(best.fleet)}"
    table = console.grid("Class", "prefill", "decode", "requests", title=title, words=["prefill", "decode"])
    for route in best.trial.flows:
        if route.share >= 0.01:
            table.add_row(route.workload_class, route.prefill, route.decode, f"{route.share:.0%}")
    return table


def _flips(advice: Advice) -> RenderableType | None:
    if not advice.flips:
        return None
    table = console.grid("If", "becomes", "then", title="\nWhat flips the cheapest", words=["then"])
    for flip in sorted(advice.flips, key=lambda one: max(one.at, 1 / one.at))[:SHOWN_FLIPS]:
        table.add_row(flip.what, f"x {flip.at:.2f}", flip.then)
    return table


def _remarks(advice: Advice) -> str:
    lines = [f"{goal}: {why}" for goal, why in advice.unmet.items()]
    lines += [_pooling(one) for one in advice.answers if one.is_mixed and one.pooling > 1.005]
    assumed = {c.supply.name for c in advice.market.candidates if c.price_is_assumed}
    if shown := sorted(assumed & {name for one in advice.answers for name in one.fleet}):
        lines.append(f"The price of {', '.join(shown)} is an assumption (polyphase hardware show).")
    priors = sorted({c.supply.name for c in advice.market.candidates if c.origin == "prior"})
    if shown := [name for name in priors if any(name in one.fleet for one in advice.answers)]:
        lines.append(
            f"The speed of {', '.join(shown)} is worked out, not measured; calibrate before you buy."
        )
    lines.append(f"{advice.trials} fleets were simulated; what was not simulated may be better.")
    return "\n" + "\n".join(lines)


def _pooling(one: Answer) -> str:
    return (
        f"{named(one.fleet)}: as one pool it can do {one.pooling - 1:.0%} more than its types as silos (B1)."
    )
