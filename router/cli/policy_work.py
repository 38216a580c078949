"""What `polyphase policy diff` and `tune` do and show; imports the simulator."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.text import Text

from backends.catalogue import load_fleet
from policies.registry import build
from router.cli.console import PlainProgress, grid, joules, usd
from router.sim.compare import Comparison
from router.sim.experiment import Plan, carry_out
from router.sim.memory import ease_collection
from router.sim.result import SimResult
from router.sim.run import Contestant, simulate
from router.sim.workload_file import load_workload
from router.tune.diff import (
    ParameterDifference,
    PlacementDifference,
    parameter_differences,
    placement_differences,
)
from router.tune.pareto import Prefer, Trial
from router.tune.policy_file import Provenance, named, tuned_file
from router.tune.scene_file import PolicyText, policy_text
from router.tune.search import Asked, Found, search
from router.tune.space import Point, space_of

Shown = Sequence[RenderableType]
MAX_MOVES = 8


# --- diff ------------------------------------------------------------------------------------------


def compare(first: str, second: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], Shown]:
    """The differences as JSON values, and as tables."""
    one, other = policy_text(first), policy_text(second)
    apart = parameter_differences(one, other)
    report: dict[str, Any] = {
        "parameters": [{"key": d.key, "first": d.first, "second": d.second} for d in apart]
    }
    parts = [_parameters(apart, first, second)]
    if given["workload"]:
        fleet, workload = load_fleet(given["fleet"]), load_workload(given["workload"])
        placed = placement_differences(one, other, fleet, workload, requests=given["requests"])
        contestants = (_contestant(one, "A"), _contestant(other, "B"))
        seeds = tuple(range(1, given["seeds"] + 1))
        plan = Plan(fleet, workload, contestants, seeds, requests=given["requests"], stop_when_unstable=False)
        (outcome,) = carry_out(plan).comparisons
        report |= {"placements": _placed_dict(placed), "outcomes": outcome.as_dict()}
        parts += [*_placements(placed), *_outcomes(outcome)]
    return report, parts


def _contestant(text: PolicyText, label: str) -> Contestant:
    build_it = text
    return Contestant(label, lambda see: build(build_it.name, build_it.params, see.models, see.rng))


def _parameters(apart: Sequence[ParameterDifference], first: str, second: str) -> RenderableType:
    if not apart:
        return Text("Parameters: none differ.")
    table = grid("Parameter", f"A: {first}", f"B: {second}", title="Parameters that differ")
    for one in apart:
        table.add_row(one.key, _value(one.first), _value(one.second))
    return table


def _value(value: object) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _placed_dict(placed: PlacementDifference) -> dict[str, Any]:
    return {
        "decisions": placed.agreement.asked,
        "agreement": placed.agreement.ratio,
        "verdicts": dict(placed.verdicts),
        "moves": [{"first": a, "second": b, "decisions": n} for (a, b), n in placed.moves],
    }


def _placements(placed: PlacementDifference) -> Shown:
    asked = placed.agreement.asked
    head = (
        f"\nPlacements: {asked - placed.agreement.same:,} of {asked:,} decisions of A would differ under B "
        f"({1 - placed.agreement.ratio:.1%})"
    )
    table = grid("A", "B", "decisions", words=["B"])
    for (one, other), count in placed.moves[:MAX_MOVES]:
        table.add_row(one, other, f"{count:,}")
    return [Text(head), table] if placed.moves else [Text(head)]


def _outcomes(outcome: Comparison) -> Shown:
    fates = f"{outcome.gained:,} requests meet their objectives only under B, {outcome.lost:,} only under A"
    head = f"\nOutcomes over {outcome.seeds} seeds; of {outcome.sampled:,} followed, {fates}"
    table = grid("", "A", "B", "B - A", "95 % interval")
    for one in outcome.differences:
        width = one.change.half_width
        style = {True: "green", False: "red", None: ""}[one.better]
        interval = "-" if width is None else f"+-{width:.3g}"
        change = Text(f"{one.change.mean:+.3g}", style)
        table.add_row(one.metric, f"{one.base:.4g}", f"{one.other:.4g}", change, interval)
    return [Text(head), table]


# --- tune ------------------------------------------------------------------------------------------


def tuned(given: Mapping[str, Any], out: Console) -> tuple[dict[str, Any], Shown, str]:
    """Search, and say what was found: as JSON values, as tables, and as a policy file."""
    ease_collection()
    fleet, workload = load_fleet(given["fleet"]), load_workload(given["workload"])
    start = policy_text(given["policy"])
    narrowed, only = _narrowed(given["narrowed"])
    space = space_of(start.name, start.params, narrowed, only)
    workload = replace(workload, duration_s=float("inf"))  # a run ends by its number of requests

    def measure(point: Point, seed: int, share: float) -> SimResult:
        text = PolicyText(space.policy, space.params(point))
        requests = max(1, round(given["requests"] * share))
        return simulate(
            fleet, workload, _contestant(text, "setting"), seed,
            rate_scale=given["rate_scale"], requests=requests, stop_when_unstable=False,
        )  # fmt: skip

    seeds = tuple(range(1, given["seeds"] + 1))
    asked = Asked(given["budget"], seeds, Prefer(given["prefer"]), given["search_seed"])
    lines = PlainProgress(out.file)
    found = search(space, asked, measure, lambda what, done, of: lines.show(f"{what}: run {done} of {of}"))
    of = Provenance(
        metadata.version("polyphase"), named(workload), named(fleet), given["requests"], _command(given)
    )
    return _tuned_dict(found, of), _tuned_view(found), tuned_file(found, of)


def _narrowed(texts: Sequence[str]) -> tuple[dict[str, tuple[float, float]], list[str]]:
    ranges: dict[str, tuple[float, float]] = {}
    only: list[str] = []
    for text in texts:
        match = re.fullmatch(r"([\w.]+)(?:=([-+.\deE]+):([-+.\deE]+))?", text)
        try:
            if match is None:
                raise ValueError
            if match[2] is None:
                only.append(match[1])
            else:
                ranges[match[1]] = (float(match[2]), float(match[3]))
        except ValueError:
            raise click.UsageError(f"--param {text!r}: give KEY, or KEY=LOW:HIGH") from None
    return ranges, only


def _command(given: Mapping[str, Any]) -> str:
    names = (
        "policy",
        "workload",
        "fleet",
        "rate_scale",
        "budget",
        "requests",
        "seeds",
        "search_seed",
        "prefer",
    )
    options = " ".join(f"--{name.replace('_', '-')} {given[name]}" for name in names)
    params = "".join(f" --param {text}" for text in given["narrowed"])
    return f"polyphase policy tune {options}{params}"


def _tuned_dict(found: Found, of: Provenance) -> dict[str, Any]:
    return {
        "policy": found.space.policy,
        "version": of.version,
        "command": of.command,
        "workload": of.workload,
        "fleet": of.fleet,
        "seeds": list(found.asked.seeds),
        "fresh_seeds": list(found.fresh_seeds),
        "runs": found.runs,
        "front": [_trial(found, one) for one in found.front],
        "given": _trial(found, found.given),
        "chosen": _trial(found, found.best),
        "given_fresh": found.given_fresh.figures.as_dict(),
        "chosen_fresh": found.best_fresh.figures.as_dict(),
        "goodput_gain_per_s": found.gain.mean,
        "goodput_gain_half_width_95": found.gain.half_width,
        "is_better": found.is_better,
    }


def _trial(found: Found, one: Trial) -> dict[str, Any]:
    settings = {d.key: v for d, v in zip(found.space.dimensions, one.point, strict=True)}
    return {"settings": settings, "figures": one.figures.as_dict()}


def _tuned_view(found: Found) -> Shown:
    rows = [("*" if one.point == found.best.point else "", one) for one in found.front]
    if found.given not in found.front:
        rows.append(("start", found.given))
    fresh = [("chosen", found.best_fresh), ("start", found.given_fresh)]
    return [
        Text(f"Settings that none beats in everything ({found.runs} runs; * is chosen)"),
        _figures(rows),
        *(Text(f"{number}: {_changed(found, one)}") for number, (_, one) in enumerate(rows, 1)),
        Text("\nOn seeds that the search did not see"),
        _figures(fresh),
        Text(_verdict(found)),
    ]


def _figures(rows: Sequence[tuple[str, Trial]]) -> RenderableType:
    table = grid("", "", "goodput/s", "good", "device $/1,000 good", "J/1,000 good")
    for number, (mark, one) in enumerate(rows, 1):
        figures = one.figures
        table.add_row(
            str(number),
            mark,
            f"{figures.goodput_per_s:.4g}",
            f"{figures.attainment:.1%}",
            usd(figures.usd_per_1000_good),
            joules(figures.joule_per_1000_good),
        )
    return table


def _changed(found: Found, one: Trial) -> str:
    """What a setting has that the start has not."""
    pairs = zip(found.space.dimensions, found.given.point, one.point, strict=True)
    apart = [f"{d.key} = {_value(value)}" for d, before, value in pairs if value != before]
    return ", ".join(apart) or "as at the start"


def _verdict(found: Found) -> str:
    width = found.gain.half_width
    interval = "" if width is None else f" +-{width:.3g}"
    gain = f"goodput {found.gain.mean:+.3g}/s{interval} against the start, on seeds the search did not see"
    if found.best.point == found.given.point:
        return "The start is the best that was found."
    return f"Better: {gain}." if found.is_better else f"Not sure to be more goodput than the start's: {gain}."
