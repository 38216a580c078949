"""Writes what was found: policies.json with a row per cell, policies.md for reading."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.policies.additions import LOAD, Addition
from tests.bench.policies.field import CHAMPION, is_baseline
from tests.bench.policies.monotone import Trial, summary
from tests.bench.policies.rows import Row

Cell = tuple[str, str, float]


def write(
    folder: Path,
    rows: Sequence[Row],
    trials: Sequence[Trial],
    added: Sequence[Addition],
    about: Mapping[str, Any],
) -> None:
    """Both files."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "about": dict(about),
        "monotone": {
            **summary(trials),
            "trials": [each.as_dict() for each in trials],
            "additions": [each.as_dict() for each in added],
        },
        "summary": overall(rows),
        "rows": [row.as_dict() for row in rows],
    }
    text = json.dumps(_rounded(document), indent=1, sort_keys=True)
    (folder / "policies.json").write_text(text + "\n", encoding="utf-8")
    (folder / "policies.md").write_text(markdown(rows, trials, added, about), encoding="utf-8")


def cells(rows: Iterable[Row]) -> dict[Cell, dict[str, Row]]:
    """Rows by cell and policy."""
    found: dict[Cell, dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row.fleet, row.workload, row.load), {})[row.policy] = row
    return found


def best_baseline(cell: Mapping[str, Row], value: Callable[[Row], float]) -> tuple[str, float]:
    """The baseline with the highest value, and the value."""
    return max(
        ((label, value(row)) for label, row in cell.items() if is_baseline(label)), key=lambda each: each[1]
    )


def goodput(row: Row) -> float:
    """Good requests per second."""
    return row.goodput_per_s


def per_device_usd(row: Row) -> float:
    """Good requests per dollar of device time."""
    return row.met / row.device_usd if row.device_usd else 0.0


def overall(rows: Sequence[Row]) -> dict[str, Any]:
    """By fleet: our policy against the best baseline of each cell, and against the bounds."""
    found: dict[str, Any] = {}
    for fleet in dict.fromkeys(row.fleet for row in rows):
        table = {cell: each for cell, each in cells(rows).items() if cell[0] == fleet}
        ours = [(each[CHAMPION], each) for each in table.values() if CHAMPION in each]
        found[fleet] = {
            "cells": len(ours),
            "goodput_over_best_baseline": _spread(ours, goodput),
            "per_device_usd_over_best_baseline": _spread(ours, per_device_usd),
            "clairvoyant_ratio_median": _median(
                row.met / row.clairvoyant for row, _ in ours if row.clairvoyant
            ),
            "b2_ratio_median": _median(row.met / row.b2 for row, _ in ours if row.b2),
        }
    return found


def markdown(
    rows: Sequence[Row], trials: Sequence[Trial], added: Sequence[Addition], about: Mapping[str, Any]
) -> str:
    """The page."""
    parts = [
        _head(about),
        _monotone(trials),
        _added(added),
        _by_fleet(rows),
        _losses(rows),
        _all_policies(rows),
        _cells(rows),
    ]
    return "\n".join(parts)


def _head(about: Mapping[str, Any]) -> str:
    return f"""# Policies compared

Written by `make bench-policies`; every number is from simulation (router/sim: the router's own core and
policies, modelled backends). All policies see the same arrivals; in closed loops and sessions the next
request waits for the answer. A load of 1 is the capacity of the fluid bound B1, which no policy reaches;
requests come for a window of time, and goodput is the number of requests that met all their objectives per
second of that window. Baselines are re-implementations of other routers' published rules (policies/baselines
says what each is and what is approximated); round robin counts among them.

{about["spots"]} spots (fleet x workload x load x seed), {about["policies"]} policies,
{about["wall_s"]:.0f} s of wall time.
"""


def _monotone(trials: Sequence[Trial]) -> str:
    found = summary(trials)
    lines = [
        "## Adding a slow worker",
        "",
        "Prompts of 4,000 tokens, 60 out, a worker and one 8 times slower, against the fast one alone.",
        "Measured on Dynamo 1.6.1 with its own mocker: 2.5 to 3.1 times slower in the mean, 5.7 to 6.3 at",
        "p99.",
        "",
        f"Dynamo's rule: {found['dynamo_rule_ratio']:.2f} (mean over the rates). "
        f"Ours: {found['ours_ratio']:.3f} (worst of means and p99).",
        "",
        "| policy | requests/s | mean | p99 | alone | mean ratio | p99 ratio | on the slow one |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in trials:
        lines.append(
            f"| {each.policy} | {each.rate_per_s:g} "
            f"| {each.mean_s * 1e3:.0f} ms | {each.p99_s * 1e3:.0f} ms | "
            f"{each.alone_mean_s * 1e3:.0f} ms | {each.mean_ratio:.2f} | {each.p99_ratio:.2f} | "
            f"{each.slow_share:.0%} |"
        )
    return "\n".join([*lines, ""])


def _added(added: Sequence[Addition]) -> str:
    lines = [
        f"## Adding any backend (`{CHAMPION}`, chat at {LOAD:g} of the whole fleet's capacity)",
        "",
        "End-to-end latency of the shipped fleets with one backend of each device over that without it.",
        "",
        "| fleet | backend added | mean ratio | p99 ratio |",
        "|---|---|---:|---:|",
    ]
    lines += [f"| {a.fleet} | {a.backend} | {a.mean_ratio:.3f} | {a.p99_ratio:.3f} |" for a in added]
    return "\n".join([*lines, ""])


def _by_fleet(rows: Sequence[Row]) -> str:
    lines = [
        f"## `{CHAMPION}` against the best baseline of each cell",
        "",
        "Median over cells, and the worst cell. The fleet's rent is the same for all, so goodput per dollar",
        "of rent has the ratios of goodput; device time at list price is what a policy can save.",
        "",
        "| fleet | cells | goodput | worst | good requests per device $ | of clairvoyant | of B2 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for fleet, each in overall(rows).items():
        good, usd = each["goodput_over_best_baseline"], each["per_device_usd_over_best_baseline"]
        lines.append(
            f"| {fleet} | {each['cells']} | {_x(good['median'])} | {_x(good['worst'])} "
            f"| {_x(usd['median'])} | "
            f"{_x(each['clairvoyant_ratio_median'])} | {_x(each['b2_ratio_median'])} |"
        )
    return "\n".join([*lines, ""])


def _losses(rows: Sequence[Row]) -> str:
    found = []
    for cell, each in cells(rows).items():
        if CHAMPION not in each:
            continue
        label, value = best_baseline(each, goodput)
        own = goodput(each[CHAMPION])
        if own < 0.98 * value:
            found.append((own / value, cell, label, each[CHAMPION], each[label]))
    lines = [f"## Where `{CHAMPION}` is more than 2 % behind a baseline", ""]
    if not found:
        return "\n".join([*lines, "Nowhere in this grid.", ""])
    lines += [
        "| fleet | workload | load | ratio | best baseline | attainment | TTFT p99 | TPOT p99 |",
        "|---|---|---:|---:|---|---|---|---|",
    ]
    for ratio, (fleet, workload, load), label, own, theirs in sorted(found, key=lambda one: one[0]):
        ttft, tpot = (
            [row.times[name].quantile(0.99) * 1e3 for row in (own, theirs)] for name in ("ttft", "tpot")
        )
        lines.append(
            f"| {fleet} | {workload} | {load:g} | {ratio:.2f} | {label} | "
            f"{own.attainment:.2f} / {theirs.attainment:.2f} | {ttft[0]:.0f} / {ttft[1]:.0f} ms | "
            f"{tpot[0]:.1f} / {tpot[1]:.1f} ms |"
        )
    return "\n".join([*lines, ""])


def _all_policies(rows: Sequence[Row]) -> str:
    """Each policy's goodput relative to the best of the cell, median per fleet."""
    table = cells(rows)
    fleets = list(dict.fromkeys(row.fleet for row in rows))
    lines = [
        "## All policies: goodput relative to the best of the cell, median per fleet",
        "",
        "| policy | " + " | ".join(fleets) + " |",
        "|---|" + "---:|" * len(fleets),
    ]
    for label in dict.fromkeys(row.policy for row in rows):
        shares = [
            _median(_share(each, label) for cell, each in table.items() if cell[0] == fleet)
            for fleet in fleets
        ]
        lines.append(f"| {label} | " + " | ".join(_x(share) for share in shares) + " |")
    return "\n".join([*lines, ""])


def _cells(rows: Sequence[Row]) -> str:
    lines = [
        "## Cells",
        "",
        f"`{CHAMPION}`, then the best baseline of the cell by goodput. $ and kJ are of device time per 1,000",
        "good requests; TTFT and TPOT are p50 / p99 in ms. policies.json has a row for every policy.",
        "",
        "| fleet | workload | load | policy | goodput/s | attained | $ | kJ | TTFT | TPOT | of clairvoyant "
        "| of B2 |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (fleet, workload, load), each in cells(rows).items():
        for label in (CHAMPION, best_baseline(each, goodput)[0]):
            if label in each:
                lines.append(f"| {fleet} | {workload} | {load:g} | {label} | " + _figures(each[label]) + " |")
    return "\n".join([*lines, ""])


def _figures(row: Row) -> str:
    usd, joule = row.per_1000_good(row.device_usd), row.per_1000_good(row.device_j)
    times = [
        " / ".join(f"{value * 1e3:.1f}" for value in row.times[name].quantiles((0.5, 0.99)))
        for name in ("ttft", "tpot")
    ]
    known = row.as_dict()
    return " | ".join(
        [
            f"{row.goodput_per_s:.2f}",
            f"{row.attainment:.3f}",
            "-" if usd is None else f"{usd:.3f}",
            "-" if joule is None else f"{joule / 1e3:.0f}",
            *times,
            _x(known["clairvoyant_ratio"]),
            _x(known["b2_ratio"]),
        ]
    )


def _share(cell: Mapping[str, Row], label: str) -> float:
    best = max(goodput(row) for row in cell.values())
    return goodput(cell[label]) / best if label in cell and best else 0.0


def _spread(
    ours: Sequence[tuple[Row, Mapping[str, Row]]], value: Callable[[Row], float]
) -> dict[str, float | None]:
    ratios = []
    for row, cell in ours:
        best = best_baseline(cell, value)[1]
        if best > 0:
            ratios.append(value(row) / best)
    return {"median": _median(ratios), "worst": min(ratios, default=None), "best": max(ratios, default=None)}


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return median(known) if known else None


def _x(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _rounded(value: Any) -> Any:
    """Six significant figures: the same run gives the same bytes, and a reader can read them."""
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return float(f"{value:.6g}") if math.isfinite(value) else None
        case dict():
            return {key: _rounded(each) for key, each in value.items()}
        case _:
            return [_rounded(each) for each in value]
