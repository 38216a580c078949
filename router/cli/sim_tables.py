"""Simulations as tables in the terminal: the same that the HTML page shows as pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from router.cli.console import duration, grid, joules, usd
from router.sim.compare import Comparison, Difference, FateChange, estimate
from router.sim.experiment import Experiment
from router.sim.result import LATENCIES, PHASES, SimResult

FLOWS = 12
"""Pairs shown."""
TOLD = ("goodput_per_s", "attainment", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "e2e_p50_s",
        "e2e_p99_s", "device_usd_per_mtok", "energy_j_per_token")  # fmt: skip


def tables(experiment: Experiment) -> RenderableType:
    """Everything worth a look, most important first."""
    return Group(*_parts(experiment))


def _parts(experiment: Experiment) -> Iterator[RenderableType]:
    plan = experiment.plan
    yield Text(f"{plan.workload.name} on {plan.fleet.name}, {len(plan.seeds)} seed(s)", style="bold")
    yield _overview(experiment)
    for result in experiment.results:
        if result.stopped:
            yield Text(f"{_name(result)} was stopped: {result.stopped}.", style="yellow")
        if result.policy_faults:
            yield Text(f"{_name(result)}: {result.policy_faults:,} faults of the policy.", style="red")
        if result.failures:
            failures = ", ".join(f"{count:,} x {reason}" for reason, count in result.failures.items())
            yield Text(f"{_name(result)}: {failures}", style="yellow")
    for result in _shown(experiment):
        yield from _details(result)
    for comparison in experiment.comparisons:
        yield _comparison(comparison)
        yield _fates(comparison)


def _shown(experiment: Experiment) -> list[SimResult]:
    """The first seed of each policy, at the first load."""
    plan = experiment.plan
    return [experiment.of(one.label, plan.rate_scales[0])[0] for one in plan.policies]


def _name(result: SimResult) -> str:
    return f"{result.policy} at x{result.rate_scale:g}, seed {result.seed}"


def _overview(experiment: Experiment) -> Table:
    columns = ("load", "requests", "good", "goodput", "TTFT p50", "p99", "TPOT p50", "p99", "E2E p50", "p99")
    table = grid("Policy", *columns, "fleet $/Mtok", "J/token", title="\nPolicies (means over the seeds)")
    plan = experiment.plan
    for scale in plan.rate_scales:
        for bound in (one for one in experiment.bounds if one.rate_scale == scale):
            cells = ["", "", f"{bound.goodput_per_s:.3g}/s"]
            table.add_row(f"bound {bound.name}", f"x{scale:g}", *cells, style="cyan")
        for policy in plan.policies:
            runs = experiment.of(policy.label, scale)
            table.add_row(*_overview_row(policy.label, scale, runs))
    return table


def _overview_row(policy: str, scale: float, runs: Sequence[SimResult]) -> list[str]:
    metrics = [run.metrics() for run in runs]

    def mean(name: str) -> float:
        return estimate([one[name] for one in metrics]).mean

    times = [duration(mean(f"{name}_{p}_s")) for name in LATENCIES for p in ("p50", "p99")]
    good, half = mean("attainment"), estimate([one["goodput_per_s"] for one in metrics]).half_width
    plus = "" if half is None else f" ±{half:.2g}"
    return [
        escape(policy) + (" (stopped)" if any(run.stopped for run in runs) else ""),
        f"x{scale:g}",
        f"{sum(run.arrived for run in runs):,}",
        f"{good:.1%}",
        f"{mean('goodput_per_s'):.3g}{plus}/s",
        *times,
        usd(mean("rent_usd_per_mtok")),
        f"{mean('energy_j_per_token'):.3g}",
    ]


def _details(result: SimResult) -> Iterator[RenderableType]:
    yield Text(f"\n{_name(result)}: {duration(result.duration_s)} of virtual time", style="bold")
    yield _classes(result)
    yield _phases(result)
    yield _groups(result)
    yield _flows(result)


def _classes(result: SimResult) -> Table:
    table = grid("Class", "requests", "good", "TTFT p50", "p99", "TPOT p50", "p99", "E2E p50", "p99",
    "missed", words=["missed"])  # fmt: skip
    for one in result.classes:
        missed = ", ".join(f"{name} {1 - met / of:.1%}" for name, (met, of) in one.kept.items() if met < of)
        times = [duration(one.times[name].quantile(q)) for name in LATENCIES for q in (0.5, 0.99)]
        table.add_row(escape(one.name), f"{one.arrived:,}", f"{one.attainment:.1%}", *times, missed)
    return table


def _phases(result: SimResult) -> Table:
    table = grid("Phase", "p50", "p90", "p99", "mean", title="")
    for name in PHASES:
        summary = result.times(name).summary()
        table.add_row(name, *(duration(summary[column]) for column in ("p50", "p90", "p99", "mean")))
    return table


def _groups(result: SimResult) -> Table:
    table = grid(
        "Hardware",
        "backends",
        "prefills",
        "decodes",
        "tokens out",
        "busy prefill",
        "busy decode",
        "rent",
        "energy",
    )
    for group in dict.fromkeys(one.group for one in result.backends):
        rows = [one for one in result.backends if one.group == group]
        whole = len(rows) * result.duration_s or 1.0
        table.add_row(
            escape(group),
            str(len(rows)),
            f"{sum(r.prefills for r in rows):,}",
            f"{sum(r.decodes for r in rows):,}",
            f"{sum(r.output_tokens for r in rows):,}",
            f"{sum(r.busy_prefill_s for r in rows) / whole:.1%}",
            f"{sum(r.busy_decode_s for r in rows) / whole:.1%}",
            usd(sum(r.rent_usd for r in rows)),
            joules(math.fsum(r.energy_j for r in rows)),
        )
    return table


def _flows(result: SimResult) -> Table:
    table = grid("Prefill → decode", "requests", "share", "tokens in", "tokens out")
    for flow in result.flows[:FLOWS]:
        arrow = f"{flow.prefill} → {flow.decode}" if flow.split else f"{flow.prefill} (both)"
        share = f"{flow.requests / max(1, result.ok):.1%}"
        table.add_row(
            escape(arrow), f"{flow.requests:,}", share, f"{flow.prompt_tokens:,}", f"{flow.output_tokens:,}"
        )
    return table


def _comparison(comparison: Comparison) -> Table:
    title = (
        f"\n{comparison.other} against {comparison.base} at x{comparison.rate_scale:g}: the same arrivals,"
        f" {comparison.seeds} seed(s)"
    )
    table = grid("Metric", comparison.base, comparison.other, "change", "95 % interval", "", title=title)
    for one in comparison.differences:
        if one.metric in TOLD:
            table.add_row(*_difference_row(one))
    return table


def _difference_row(one: Difference) -> list[str | Text]:
    change, half = one.change.mean, one.change.half_width
    verdict = {True: Text("better", "green"), False: Text("worse", "red"), None: Text("not sure", "dim")}
    relative = f" ({change / one.base:+.1%})" if one.base else ""
    interval = "one seed" if half is None else f"{change - half:.3g} to {change + half:.3g}"
    return [
        one.metric,
        f"{one.base:.4g}",
        f"{one.other:.4g}",
        f"{change:+.3g}{relative}",
        interval,
        verdict[one.better],
    ]


def _fates(comparison: Comparison) -> RenderableType:
    head = (
        f"Of {comparison.sampled:,} requests under both, {comparison.gained:,} meet their objectives only"
        f" with {comparison.other}, {comparison.lost:,} only with {comparison.base}. Whose fate changed most:"
    )
    table = grid("Request", comparison.base, "where", comparison.other, "where ", words=["where", "where "])
    for change in (*comparison.worst[:5], *comparison.best[:5]):
        table.add_row(*_fate_row(change))
    return Group(Text(head), table)


def _fate_row(change: FateChange) -> list[str | Text]:
    style = "red" if change.ratio > 1 else "green"

    def shown(e2e_s: float) -> str:
        return duration(e2e_s) if math.isfinite(e2e_s) else "failed"

    return [
        escape(change.request),
        shown(change.base.e2e_s),
        escape(change.base.where),
        Text(shown(change.other.e2e_s), style),
        escape(change.other.where),
    ]
