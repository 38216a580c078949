"""Puts the page together: what was found first, then why, then the details. The same experiment gives the
same bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from router.sim.compare import estimate
from router.sim.experiment import Experiment
from router.sim.page import look
from router.sim.page.comparisons import comparisons
from router.sim.page.sections import (
    card,
    cost_and_energy,
    flows,
    goodput_section,
    latencies,
    utilisation_section,
)
from router.sim.result import SimResult


def page(experiment: Experiment) -> str:
    """The whole page as HTML. It needs no network and no scripts."""
    plan = experiment.plan
    title = f"{plan.workload.name} on {plan.fleet.name or 'a fleet'}"
    body = "\n".join(_body(experiment, title))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} · Polyphase</title><style>{look.CSS}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _body(experiment: Experiment, title: str) -> Iterator[str]:
    plan = experiment.plan
    shown = [experiment.of(one.label, plan.rate_scales[0])[0] for one in plan.policies]
    colours = look.series([one.label for one in plan.policies])
    yield '<p class="eyebrow">Polyphase simulation</p>'
    yield f"<h1>{escape(title)}</h1>"
    yield f'<p class="lead">{_lead(experiment, shown)}</p>'
    yield from _warnings(experiment)
    yield _overview(experiment, colours)
    yield goodput_section(experiment, colours)
    yield latencies(experiment, shown, colours)
    yield flows(shown)
    yield utilisation_section(shown)
    yield cost_and_energy(shown)
    yield comparisons(experiment)
    yield _footer(experiment)


def _lead(experiment: Experiment, shown: Sequence[SimResult]) -> str:
    plan = experiment.plan
    names = ", ".join(f"<b>{escape(one.label)}</b>" for one in plan.policies)
    requests = sum(result.arrived for result in experiment.results)
    seeds = f"{len(plan.seeds)} seeds" if len(plan.seeds) > 1 else f"seed {shown[0].seed}"
    length = look.seconds(shown[0].duration_s)
    return (
        f"{names}, {len(plan.fleet.backends)} backends, {seeds}; {look.count(requests)} requests in all. A"
        f" run at the first load lasts {length} of virtual time. Every policy sees the same arrivals;"
        " pictures are of the first seed and the first load unless they say otherwise. Point at a mark for"
        " its value."
    )


def _warnings(experiment: Experiment) -> Iterator[str]:
    lines: list[str] = []
    for result in experiment.results:
        name = f"{result.policy} at x{result.rate_scale:g}, seed {result.seed}"
        if result.stopped:
            lines.append(f"<b>{escape(name)} was stopped</b>: {escape(result.stopped)}.")
        if result.policy_faults:
            lines.append(f"<b>{escape(name)}</b>: {result.policy_faults:,} faults of the policy.")
        if result.failures:
            reasons = result.failures.items()
            failed = ", ".join(f"{count:,} &times; {escape(reason)}" for reason, count in reasons)
            lines.append(f"<b>{escape(name)}</b>: failed requests: {failed}.")
    if lines:
        yield card("".join(f"<p>{line}</p>" for line in lines), "warn")


# --- the table at the top --------------------------------------------------------------------------

_COLUMNS = (
    ("Good", "attainment", look.percent, True),
    ("Goodput /s", "goodput_per_s", look.count, True),
    ("TTFT p50", "ttft_p50_s", look.seconds, False),
    ("p99", "ttft_p99_s", look.seconds, False),
    ("TPOT p50", "tpot_p50_s", look.seconds, False),
    ("p99", "tpot_p99_s", look.seconds, False),
    ("E2E p50", "e2e_p50_s", look.seconds, False),
    ("p99", "e2e_p99_s", look.seconds, False),
    ("Fleet $/Mtok", "rent_usd_per_mtok", look.usd, False),
    ("J/token", "energy_j_per_token", look.count, False),
)


def _overview(experiment: Experiment, colours: dict[str, str]) -> str:
    plan = experiment.plan
    head = "".join(f"<th>{name}</th>" for name, *_ in _COLUMNS)
    rows: list[str] = []
    for scale in plan.rate_scales:
        rows += _overview_rows(experiment, scale, colours)
    load = "<th>Load</th>" if len(plan.rate_scales) > 1 else ""
    table = f'<table><tr><th class="l">Policy</th>{load}<th>Requests</th>{head}</tr>{"".join(rows)}</table>'
    note = "Means over the seeds. Good: ended well and met every objective. Bold: best at its load."
    return card(f'{table}<div class="note">{note}</div>')


def _overview_rows(experiment: Experiment, scale: float, colours: dict[str, str]) -> list[str]:
    plan = experiment.plan
    found: list[tuple[str, list[SimResult], dict[str, float]]] = []
    for policy in plan.policies:
        runs = experiment.of(policy.label, scale)
        metrics = [run.metrics() for run in runs]
        means = {key: estimate([one[key] for one in metrics]).mean for key in metrics[0]}
        found.append((policy.label, runs, means))
    best = {
        key: (max if higher else min)(means[key] for *_, means in found) for _, key, _, higher in _COLUMNS
    }
    rows: list[str] = []
    for label, runs, means in found:
        cells = [
            f'<td class="l"><span class="key" style="background:{colours[label]}"></span>{escape(label)}'
        ]
        cells[0] += ' <span class="bad">stopped</span></td>' if any(run.stopped for run in runs) else "</td>"
        if len(plan.rate_scales) > 1:
            cells.append(f"<td>&times;{scale:g}</td>")
        cells.append(f"<td>{sum(run.arrived for run in runs):,}</td>")
        for _, key, shown, _ in _COLUMNS:
            bold = ' class="best"' if len(found) > 1 and math.isclose(means[key], best[key]) else ""
            cells.append(f"<td{bold}>{shown(means[key])}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return rows


def _footer(experiment: Experiment) -> str:
    plan = experiment.plan
    again = (
        f"seeds {', '.join(map(str, plan.seeds))}" if len(plan.seeds) <= 12 else f"{len(plan.seeds)} seeds"
    )
    return (
        f"<footer>Workload {escape(plan.workload.name)}, fleet {escape(plan.fleet.name)}, {again}. The"
        " policies and the core are the daemon's own code, on modelled hardware in virtual time; latencies"
        " are those of the models, not of a machine. The same seeds give this page again, byte for"
        " byte.</footer>"
    )
