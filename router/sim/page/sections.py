"""The sections of the page that show one experiment's runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from router.sim.compare import estimate
from router.sim.experiment import Experiment
from router.sim.histogram import Histogram
from router.sim.page import look
from router.sim.page.charts import Load, bars, distribution, goodput, over_time, sankey, utilisation
from router.sim.result import PHASES, BackendResult, SimResult

TITLES = {"ttft": "Time to first token", "tpot": "Time per output token", "e2e": "End to end"}


def card(inside: str, kind: str = "") -> str:
    """A framed part of the page."""
    return f'<div class="card{" " + kind if kind else ""}">{inside}</div>'


def grid(cards: Sequence[str], columns: str) -> str:
    """Cards side by side, as many as fit."""
    return f'<div class="grid {columns}">{"".join(cards)}</div>'


def legend(colours: Mapping[str, str]) -> str:
    """Names and their colours."""
    keys = (
        f'<span><span class="key" style="background:{c}"></span>{escape(n)}</span>'
        for n, c in colours.items()
    )
    return f'<div class="legend">{"".join(keys)}</div>'


def section(title: str, said: str, *parts: str) -> str:
    """A heading, a sentence, and what it is about."""
    return f"<section><h2>{title}</h2><p>{said}</p>{''.join(parts)}</section>"


# --- goodput against load --------------------------------------------------------------------------


def goodput_section(experiment: Experiment, colours: Mapping[str, str]) -> str:
    """Goodput against load, if there are several loads; the bound alone is shown with one load too."""
    plan = experiment.plan
    if len(plan.rate_scales) < 2 and not experiment.bounds:
        return ""
    lines = {
        one.label: [_load(experiment.of(one.label, scale)) for scale in sorted(plan.rate_scales)]
        for one in plan.policies
    }
    first = plan.policies[0].label
    offered = {scale: experiment.of(first, scale)[0].offered_per_s for scale in plan.rate_scales}
    bounds: dict[str, list[tuple[float, float]]] = {}
    for bound in sorted(experiment.bounds, key=lambda one: one.rate_scale):
        if bound.rate_scale in offered:
            bounds.setdefault(bound.name, []).append((offered[bound.rate_scale], bound.goodput_per_s))
    said = (
        "Requests per second that end well and meet all their objectives. The dotted line is the load"
        " itself; where a policy leaves it, requests begin to miss."
    )
    return section("Goodput against load", said, card(legend(colours) + goodput(lines, bounds, colours)))


def _load(runs: Sequence[SimResult]) -> Load:
    found = estimate([run.goodput_per_s for run in runs])
    offered = estimate([run.offered_per_s for run in runs]).mean
    return Load(offered, found.mean, found.half_width, any(run.stopped for run in runs))


# --- latencies -------------------------------------------------------------------------------------


def latencies(experiment: Experiment, shown: Sequence[SimResult], colours: Mapping[str, str]) -> str:
    """Distributions by class, then by phase."""
    objectives = {one.name: one.slo for one in experiment.plan.workload.classes}
    parts: list[str] = [legend(colours)]
    for i, kind in enumerate(shown[0].classes):
        cards: list[str] = []
        slo = objectives.get(kind.name)
        limits = {"ttft": slo.ttft_s if slo else None, "tpot": slo.tpot_s if slo else None, "e2e": None}
        for name, title in TITLES.items():
            histograms = {run.policy: run.classes[i].times[name] for run in shown}
            label = f"{kind.name}: {title}"
            chart = distribution(histograms, colours, limits[name], label)
            cards.append(card(f"<h3>{escape(label)}</h3>{chart}"))
        parts.append(grid([*cards, *_gaps(shown, i, colours)], "three"))
        parts.append('<div style="height:12px"></div>')
    said = (
        "How many requests (upwards) were at most so slow (to the right, logarithmic). A line further left"
        " is faster; a long flat end is a long tail."
    )
    phases = [
        card(
            f"<h3>{name.capitalize()}</h3>"
            + distribution({r.policy: r.times(name) for r in shown}, colours, None, name, 250)
        )
        for name in PHASES
    ]
    why = (
        "Where the time went, over all classes: waiting, computing the prompt, moving its KV cache (split"
        " requests alone), and generating. The four add up to the end-to-end time of a request."
    )
    return section("Latency by class", said, *parts) + section(
        "Latency by phase", why, legend(colours), grid(phases, "four")
    )


def _gaps(shown: Sequence[SimResult], i: int, colours: Mapping[str, str]) -> list[str]:
    """Times between tokens, for classes whose jitter was watched."""
    histograms = {run.policy: run.classes[i].times.get("itl", Histogram()) for run in shown}
    if not any(one.count for one in histograms.values()):
        return []
    label = f"{shown[0].classes[i].name}: Time between two tokens"
    return [card(f"<h3>{escape(label)}</h3>" + distribution(histograms, colours, None, label))]


# --- who fed whom ----------------------------------------------------------------------------------


def flows(shown: Sequence[SimResult]) -> str:
    """Which prefill hardware fed which decode hardware, one picture a policy."""
    cards = [
        card(f"<h3>{escape(run.policy)}</h3>" + sankey(run.flows, f"Flows of {run.policy}")) for run in shown
    ]
    said = (
        "Each band is a share of the requests, from the hardware that computed the prompt to the one that"
        " generated the answer. Strong bands crossed from backend to backend with their KV cache; pale ones"
        " stayed on one."
    )
    return section("Who fed whom", said, grid(cards, "two"))


# --- utilisation -----------------------------------------------------------------------------------


def utilisation_section(shown: Sequence[SimResult]) -> str:
    """Device time over time, by hardware and phase."""
    parts: list[str] = []
    for run in shown:
        cards: list[str] = []
        for group in dict.fromkeys(one.group for one in run.backends):
            layers = {phase: run.timeline.busy[group, phase] for phase in ("prefill", "decode")}
            size = sum(one.group == group for one in run.backends)
            title = f"{escape(group)} <span class='dim'>&times; {size}</span>"
            chart = utilisation(run.timeline.step_s, layers, f"{run.policy}: {group}")
            cards.append(card(f"<h3>{title}</h3>{chart}"))
        name = f"<h3>{escape(run.policy)}</h3>" if len(shown) > 1 else ""
        parts.append(name + grid(cards, "three") + '<div style="height:14px"></div>')
    said = (
        "Share of the device time of each kind of hardware that went into prefill and into decode. A decode"
        " step costs about as much for one sequence as for many: hardware can be busy all the time and still"
        " take more."
    )
    keys = legend({"prefill": look.PREFILL, "decode": look.DECODE})
    return section("Utilisation over time", said, keys, *parts, _backlog(shown))


def _backlog(shown: Sequence[SimResult]) -> str:
    colours = look.series([run.policy for run in shown])
    cards: list[str] = []
    for title, field in (("Requests under way", "live"), ("Of these, waiting for a backend", "backlog")):
        steps = max(run.timeline.step_s for run in shown)
        lines = {run.policy: _thinned(run, field, steps) for run in shown}
        cards.append(card(f"<h3>{title}</h3>" + over_time(steps, lines, colours, "", title)))
    return legend(colours) + grid(cards, "two")


def _thinned(run: SimResult, field: str, step_s: float) -> list[float]:
    """Values at the step of the coarsest run, so that all lines have one time axis."""
    every = max(1, round(step_s / run.timeline.step_s))
    values: Sequence[float] = getattr(run.timeline, field)
    return [float(max(values[i : i + every])) for i in range(0, len(values), every)]


# --- cost and energy -------------------------------------------------------------------------------


def cost_and_energy(shown: Sequence[SimResult]) -> str:
    """Rent and energy by hardware, and power over time."""
    groups = list(dict.fromkeys(one.group for run in shown for one in run.backends))
    colours = look.series(groups)
    cards: list[str] = []
    for title, unit, value in (
        ("Rent of the fleet per million output tokens", "$", _rent),
        ("Energy per output token, idle included", "J", _energy),
    ):
        rows = [(run.policy, [(g, value(run, g), colours[g]) for g in groups]) for run in shown]
        cards.append(card(f"<h3>{title}</h3>" + bars(rows, unit, title)))
    power = [
        card(
            f"<h3>Power over time{': ' + escape(run.policy) if len(shown) > 1 else ''}</h3>"
            + over_time(run.timeline.step_s, run.timeline.power_w, colours, "W", "Power over time")
        )
        for run in shown
    ]
    said = (
        "The rent is the list price of every backend for the whole run, busy or not; energy is that of the"
        " devices, without the servers and the building around them."
    )
    gap = '<div style="height:12px"></div>'
    return section("Cost and energy", said, legend(colours), grid(cards, "two"), gap, grid(power, "two"))


def _rent(run: SimResult, group: str) -> float:
    return math.fsum(one.rent_usd for one in _of(run, group)) / max(1, run.output_tokens) * 1e6


def _energy(run: SimResult, group: str) -> float:
    return math.fsum(one.energy_j for one in _of(run, group)) / max(1, run.output_tokens)


def _of(run: SimResult, group: str) -> list[BackendResult]:
    return [one for one in run.backends if one.group == group]
