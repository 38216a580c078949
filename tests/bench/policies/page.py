"""docs/benchmarks/policies.md: targets first, then what stands in the way, then every cell."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from tests.bench.policies.experiments_page import experiments
from tests.bench.policies.field import CHAMPION, CLAIRVOYANTS
from tests.bench.policies.findings import Findings
from tests.bench.policies.markdown import ms, number, table, times
from tests.bench.policies.obstacles import BOUND, INFORMATION, POLICY, Obstacle, obstacles
from tests.bench.policies.rows import Cell, Row, goodput, per_device_usd, ratio
from tests.bench.policies.targets import Verdict, fair, of_b2, of_best_known, of_clairvoyant, verdicts


def page(cells: Sequence[Cell], found: Findings, about: Mapping[str, Any]) -> str:
    """The whole page."""
    parts = [
        _head(about),
        _targets(verdicts(cells, found)),
        _by_fleet(cells),
        _obstacles(obstacles(fair(cells) + fair(cells, equal=True))),
        _losses(cells),
        experiments(found),
        _all_policies(cells),
        _cells(cells),
    ]
    return "\n".join(parts)


def _head(about: Mapping[str, Any]) -> str:
    kept = f" {about['kept']} runs are of another state of the code." if about["kept"] else ""
    paragraphs = (
        "Written by `make bench-policies`; every number but those of decisions and live runs is from "
        "simulation (router/sim: the router's own core and policies, modelled backends). All policies see "
        "the same arrivals; in closed loops and sessions the next request waits for the answer. A load of 1 "
        "is the capacity of the fluid bound B1 for what arrives, which no policy reaches; requests come for "
        "a window of time, and goodput is the number of requests that met all their objectives per second "
        "of that window. Baselines are re-implementations of other routers' published rules "
        "(policies/baselines says what each is and what is approximated); round robin counts among them. "
        "Latencies are means over the seeds of each seed's percentile.",
        "The *clairvoyant* policy is ours with answers' lengths known (router/plan/clairvoyant.py). The "
        "*best known* schedule is the best of the clairvoyant ones and of all policies on the same "
        "arrivals, and therefore a harder measure. *B2* is an upper bound that no schedule crosses; jitter "
        "objectives are left out of it.",
        f"{about['spots']} spots (fleet x workload x load x seed), {about['policies']} policies.{kept}",
    )
    return "\n\n".join(["# Policies compared", *(textwrap.fill(each, 110) for each in paragraphs), ""])


def _targets(found: Sequence[Verdict]) -> str:
    words = {True: "reached", False: "**short**", None: "-"}
    rows = [[each.target, each.asked, each.found, words[each.reached]] for each in found]
    return table("## Targets", "", ["target", "asked", "found", ""], rows)


def _by_fleet(cells: Sequence[Cell]) -> str:
    some = [cell for cell in cells if cell.load <= 1.0]
    rows = []
    for fleet in dict.fromkeys(cell.fleet for cell in some):
        own = [cell for cell in some if cell.fleet == fleet]
        good = _known(cell.over_best_baseline(goodput) for cell in own)
        usd = _known(cell.over_best_baseline(per_device_usd) for cell in own)
        bounds = [_middle(_known(map(by, own))) for by in (of_clairvoyant, of_best_known, of_b2)]
        worst = number(min(good, default=None))
        rows.append([fleet, f"{len(own)}", _middle(good), worst, _middle(usd), *bounds])
    text = (
        "Median over cells up to full load, and the worst cell. The fleet's rent is the same for "
        "all, so that goodput per dollar of rent has the ratios of goodput; device time at list "
        "price is what a policy can save."
    )
    heads = ["fleet", "cells", "goodput", "worst", "per device $", "of clairvoyant", "of best known", "of B2"]
    return table(f"## `{CHAMPION}` against the best baseline of each cell", text, heads, rows)


def _obstacles(found: Sequence[Obstacle]) -> str:
    text = (
        "Cells up to full load below 0.9 of the best known schedule or 0.8 of B2. Ours over B2 is "
        f"the product of three factors: {INFORMATION} (ours over ours that knows lengths), {POLICY} "
        f"(that over the best known schedule), {BOUND} (best known over B2: looseness, or a schedule "
        "yet to be found)."
    )
    rows = [
        [
            each.cell.name,
            number(each.of_best),
            number(each.of_b2),
            *(number(each.factors[name]) for name in (INFORMATION, POLICY, BOUND)),
            each.name,
            each.best,
            _missed(each.cell.ours),
        ]
        for each in found
    ]
    heads = [
        "cell",
        "of best known",
        "of B2",
        INFORMATION,
        POLICY,
        BOUND,
        "in the way",
        "best known",
        "missed",
    ]
    return table("## What stands in the way", text, heads, rows)


def _losses(cells: Sequence[Cell]) -> str:
    found = []
    for cell in cells:
        over, best, own = cell.over_best_baseline(goodput), cell.best_baseline(goodput), cell.ours
        if over is not None and over < 0.98 and best is not None and own is not None:
            found.append((over, cell, best, own))
    rows = [
        [
            cell.name,
            number(over),
            best.policy,
            f"{own.attainment:.3f} / {best.attainment:.3f}",
            f"{ms(own.latency('ttft', 2))} / {ms(best.latency('ttft', 2))}",
            f"{ms(own.latency('tpot', 2))} / {ms(best.latency('tpot', 2))}",
        ]
        for over, cell, best, own in sorted(found, key=lambda one: (one[0], one[1].name))
    ]
    heads = ["cell", "ratio", "best baseline", "attained", "TTFT p99, ms", "TPOT p99, ms"]
    text = "" if rows else "Nowhere in this grid."
    return table(f"## Where `{CHAMPION}` is more than 2 % behind a baseline", text, heads, rows)


def _all_policies(cells: Sequence[Cell]) -> str:
    fleets = list(dict.fromkeys(cell.fleet for cell in cells))
    labels = dict.fromkeys(label for cell in cells for label in cell.rows if label not in CLAIRVOYANTS)
    rows = [[label, *(_middle(_shares(cells, fleet, label)) for fleet in fleets)] for label in labels]
    text = "Median over all cells of a fleet, overload included."
    return table("## All policies: goodput relative to the best of the cell", text, ["policy", *fleets], rows)


def _shares(cells: Iterable[Cell], fleet: str, label: str) -> list[float]:
    found = []
    for cell in cells:
        best = max((r.met for name, r in cell.rows.items() if name not in CLAIRVOYANTS), default=0)
        if cell.fleet == fleet and label in cell.rows and best:
            found.append(cell.rows[label].met / best)
    return found


def _cells(cells: Sequence[Cell]) -> str:
    text = (
        f"`{CHAMPION}`, then the best baseline of the cell by goodput. $ and kJ are of device time "
        "per 1,000 good requests; TTFT and TPOT are p50 / p99 in ms. policies.json has every policy."
    )
    heads = ["fleet", "workload", "load", "policy", "goodput/s", "attained", "$", "kJ", "TTFT", "TPOT"]
    heads += ["of best known", "of B2"]
    rows = []
    for cell in cells:
        for row in (cell.ours, cell.best_baseline(goodput)):
            if row is not None:
                rows.append([cell.fleet, cell.workload, f"{cell.load:g}", row.policy, *_figures(cell, row)])
    return table("## Cells", text, heads, rows)


def _figures(cell: Cell, row: Row) -> list[str]:
    joule = row.per_1000_good("device_j")
    return [
        f"{row.goodput_per_s:.2f}",
        f"{row.attainment:.3f}",
        number(row.per_1000_good("device_usd"), 3),
        number(None if joule is None else joule / 1e3, 0),
        times(row, "ttft"),
        times(row, "tpot"),
        number(ratio(row.met, cell.best_known)),
        number(ratio(row.met, cell.b2)),
    ]


def _missed(row: Row | None) -> str:
    if row is None:
        return ""
    return ", ".join(f"{name} {count}" for name, count in row.missed().items() if count)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _middle(values: Sequence[float]) -> str:
    return number(median(values) if values else None)
