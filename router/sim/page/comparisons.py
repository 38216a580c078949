"""The section of the page that sets policies against each other, in pairs."""

from __future__ import annotations

import math
from html import escape

from router.sim.compare import Comparison, Difference, FateChange
from router.sim.experiment import Experiment
from router.sim.page import look
from router.sim.page.charts import Change, forest
from router.sim.page.sections import card, section
from router.sim.result import Fate

MANY_TIMES = 9.0
"""Relative change above which a percentage says little."""
SHOWN = {
    "goodput_per_s": "goodput",
    "ttft_p50_s": "TTFT p50",
    "ttft_p99_s": "TTFT p99",
    "tpot_p50_s": "TPOT p50",
    "tpot_p99_s": "TPOT p99",
    "e2e_p50_s": "E2E p50",
    "e2e_p99_s": "E2E p99",
    "rent_usd_per_mtok": "fleet $/Mtok",
    "device_usd_per_mtok": "device $/Mtok",
    "energy_j_per_token": "J/token",
}


def comparisons(experiment: Experiment) -> str:
    """Every policy against the first; nothing for a single policy."""
    if not experiment.comparisons:
        return ""
    said = (
        "Change of each number when the other policy takes over, with 95 % intervals over the seeds. Green"
        " is better and red is worse; grey cannot be told from chance."
    )
    return section("Policies in pairs", said, *map(_pair, experiment.comparisons))


def _pair(one: Comparison) -> str:
    title = f"{one.other} instead of {one.base}" + (
        f", at x{one.rate_scale:g}" if one.rate_scale != 1 else ""
    )
    changes = [
        _change(SHOWN[d.metric], d)
        for d in one.differences
        if d.metric in SHOWN and d.base > 0 and d.other > 0
    ]
    notes = [
        f"{SHOWN[d.metric]}: {d.base:.3g} with {escape(one.base)}, {d.other:.3g} with {escape(one.other)}"
        for d in one.differences
        if d.metric in SHOWN and (d.base > 0) != (d.other > 0)
    ]
    if one.seeds == 1:
        notes.append("one seed: no intervals; give --seeds for them")
    note = f'<div class="note">{"; ".join(notes)}.</div>' if notes else ""
    return card(f"<h3>{escape(title)}</h3>{forest(changes, title)}{note}") + card(_fates(one))


def _change(name: str, one: Difference) -> Change:
    change, half = one.change.mean / one.base, one.change.half_width
    low, high = (None, None) if half is None else (change - half / one.base, change + half / one.base)
    said = f"{change:+.1%}" + ("" if half is None else f" ± {half / one.base:.1%}")
    if change > MANY_TIMES:
        said = f"{1 + change:.3g} times as much"
    return Change(name, change, low, high, one.better, said)


def _fates(one: Comparison) -> str:
    said = (
        f"Of {one.sampled:,} requests that both served, {one.gained:,} meet their objectives only with"
        f" {escape(one.other)} and {one.lost:,} only with {escape(one.base)}."
    )
    head = (
        f'<tr><th class="l">Request</th><th>{escape(one.base)}</th><th class="l">where</th>'
        f'<th>{escape(one.other)}</th><th class="l">where</th><th></th></tr>'
    )
    rows = "".join(_row(change) for change in (*one.worst[:6], *one.best[:6]))
    if not rows:
        return f"<p>{said}</p>"
    return f"<p>{said} Those whose fate changed most:</p><table>{head}{rows}</table>"


def _row(change: FateChange) -> str:
    kind = "bad" if change.ratio > 1 else "good"
    factor = f"&times;{change.ratio:.3g}" if 0 < change.ratio < math.inf else ""
    return (
        f'<tr><td class="l">{escape(change.request)}</td><td>{_end(change.base)}</td>'
        f'<td class="l dim">{escape(change.base.where)}</td><td>{_end(change.other)}</td>'
        f'<td class="l dim">{escape(change.other.where)}</td><td class="{kind}">{factor}</td></tr>'
    )


def _end(fate: Fate) -> str:
    return look.seconds(fate.e2e_s) if math.isfinite(fate.e2e_s) else '<span class="bad">failed</span>'
