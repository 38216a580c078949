"""The pictures of the page: each function takes values and gives SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from router.sim.histogram import Histogram
from router.sim.page import look
from router.sim.page.svg import (
    Box,
    Kind,
    Points,
    Scale,
    area,
    axes,
    dot,
    line,
    picture,
    polyline,
    rect,
    text,
)
from router.sim.result import Flow

SANKEY_TOP: Final = 30.0
SANKEY_HEIGHT: Final = 190.0
"""Of all requests together."""
LABEL_HEIGHT: Final = 32.0
"""Room for the two lines beside a node."""
COLUMNS: Final = 140
"""Columns of a picture over time, at most."""
LEAST_S: Final = 1e-5
"""Left end of a logarithmic time axis: shorter times are drawn there."""


def distribution(
    histograms: Mapping[str, Histogram],
    colours: Mapping[str, str],
    slo: float | None,
    label: str,
    width: float = 340,
) -> str:
    """Share of the requests at most so slow, one line a policy; the objective as a dotted line."""
    box = Box(width, 190)
    curves = {name: one.curve() for name, one in histograms.items() if one.count}
    values = [value for curve in curves.values() for value, _ in curve] + ([slo] if slo else [])
    if not values:
        return picture(box, [text(width / 2, 95, "no requests", "tick", "middle")], label)
    low = max(LEAST_S, min(values)) * 0.9
    x = Scale(low, max(max(values) * 1.1, low * 2), *box.x, kind=Kind.LOG)
    y = Scale(0.0, 1.0, *box.y)
    parts = [axes(box, x, y, look.clock, look.percent)]
    if slo:
        parts.append(line(x(slo), box.y[0], x(slo), box.y[1], "slo"))
        end = "end" if x(slo) > 0.6 * width else "start"
        parts.append(text(x(slo) + (-4 if end == "end" else 4), box.y[0] - 6, "objective", "tick", end))
    for name, curve in curves.items():
        p50, p99 = histograms[name].quantiles((0.5, 0.99))
        title = f"{name}: p50 {look.seconds(p50)}, p99 {look.seconds(p99)}"
        points = [(x(max(value, x.low)), y(share)) for value, share in curve]
        parts.append(polyline(points, colours[name], title=title))
    return picture(box, parts, label)


def utilisation(
    step_s: float, layers: Mapping[str, Sequence[float]], label: str, *, height: float = 120.0
) -> str:
    """Shares of device time over time, stacked: prefill below, decode above."""
    box = Box(340, height)
    every = -(-max((len(values) for values in layers.values()), default=1) // COLUMNS)
    layers = {name: _coarser(values, every) for name, values in layers.items()}
    step_s *= every
    steps = max((len(values) for values in layers.values()), default=0)
    x = Scale(0.0, max(step_s * steps, step_s), *box.x, kind=Kind.TIME)
    y = Scale(0.0, 1.0, *box.y)
    parts = [axes(box, x, y, look.clock, look.percent, 4)]
    below = [0.0] * steps
    for name, values in layers.items():
        above = [min(1.0, a + b) for a, b in zip(below, values, strict=True)]
        parts.append(
            area(
                _steps(x, y, above, step_s),
                _steps(x, y, below, step_s),
                look.PHASE_COLOURS[name],
                title=f"{name}: {math.fsum(values) / max(1, steps):.1%} on average",
            )
        )
        below = above
    return picture(box, parts, label)


def _coarser(values: Sequence[float], every: int) -> list[float]:
    """Means of so many values at a time: more columns than pixels only make the picture restless."""
    parts = [values[i : i + every] for i in range(0, len(values), every)]
    return [math.fsum(part) / len(part) for part in parts]


def _steps(x: Scale, y: Scale, values: Sequence[float], step_s: float) -> Points:
    """A value holds for its whole step."""
    points: list[tuple[float, float]] = []
    for i, value in enumerate(values):
        points += [(x(i * step_s), y(value)), (x((i + 1) * step_s), y(value))]
    return points


def over_time(
    step_s: float, lines: Mapping[str, Sequence[float]], colours: Mapping[str, str], unit: str, label: str
) -> str:
    """Lines over the time of the run."""
    box = Box(520, 180, left=54)
    every = -(-max((len(values) for values in lines.values()), default=1) // COLUMNS)
    lines = {name: _coarser(values, every) for name, values in lines.items() if values}
    step_s *= every
    most = max((max(values) for values in lines.values()), default=0.0) or 1.0
    steps = max((len(values) for values in lines.values()), default=1)
    x, y = Scale(0.0, step_s * steps, *box.x, kind=Kind.TIME), Scale(0.0, most * 1.08, *box.y)
    if unit == "W":  # a kind that draws a hundred times as much as another must not flatten it
        y = Scale(max(most / 1e4, 1.0), most * 2, *box.y, kind=Kind.LOG)
    shown = look.watts if unit == "W" else look.count
    parts = [axes(box, x, y, look.clock, shown)]
    for name, values in lines.items():
        if max(values) > 0:
            points = [(x((i + 0.5) * step_s), y(value)) for i, value in enumerate(values)]
            parts.append(polyline(points, colours[name], title=name, width=1.5))
    return picture(box, parts, label)


@dataclass(frozen=True, slots=True)
class Load:
    """Goodput at one load."""

    offered_per_s: float
    goodput_per_s: float
    half_width: float | None
    stopped: bool


def goodput(
    lines: Mapping[str, Sequence[Load]],
    bounds: Mapping[str, Sequence[tuple[float, float]]],
    colours: Mapping[str, str],
) -> str:
    """Goodput against load; the grey line is what is offered, dashed lines are bounds."""
    box = Box(1080, 360, left=54, bottom=40)
    every = [one for some in lines.values() for one in some]
    tops = [value for some in bounds.values() for _, value in some] + [one.goodput_per_s for one in every]
    right = max(one.offered_per_s for one in every) * 1.08 or 1.0
    x, y = (
        Scale(0.0, right, *box.x),
        Scale(0.0, min(max(tops, default=1.0) * 1.15, right * 1.05) or 1.0, *box.y),
    )
    parts = [axes(box, x, y, look.count, look.count)]
    parts.append(text(sum(box.x) / 2, box.height - 6, "offered, requests/s", "tick", "middle"))
    ideal = [(x(v), y(v)) for v in (0.0, min(x.high, y.high))]
    parts.append(polyline(ideal, "#9aa1ac", dash="1 4", title="everything offered is good"))
    for i, (name, points) in enumerate(bounds.items()):
        path = [(x(a), y(b)) for a, b in points]
        parts.append(polyline(path, "#555c68", dash="7 4" if i == 0 else "2 3", title=f"bound {name}"))
        # Bounds often meet: their names stand above each other.
        parts.append(text(path[-1][0] - 4, path[-1][1] - 6 - 13 * i, f"bound {name}", "tick", "end"))
    for name, loads in lines.items():
        parts.append(_goodput_line(x, y, name, loads, colours[name]))
    return picture(box, parts, "Goodput against load")


def _goodput_line(x: Scale, y: Scale, name: str, loads: Sequence[Load], colour: str) -> str:
    parts = [polyline([(x(one.offered_per_s), y(one.goodput_per_s)) for one in loads], colour, title=name)]
    for one in loads:
        here, there = x(one.offered_per_s), y(one.goodput_per_s)
        if one.half_width:
            low, high = y(one.goodput_per_s - one.half_width), y(one.goodput_per_s + one.half_width)
            parts.append(polyline([(here, low), (here, high)], colour, width=1.2))
        said = f"{name}: {one.goodput_per_s:.3g} of {one.offered_per_s:.3g} requests/s are good"
        if one.stopped:
            parts.append(text(here, there - 8, "stopped", "tick", "middle"))
        parts.append(dot(here, there, colour, title=said))
    return "".join(parts)


def sankey(flows: Sequence[Flow], label: str) -> str:
    """Which hardware prefilled for which: the width of a band is its share of the requests."""
    whole = sum(flow.requests for flow in flows)
    left = list(dict.fromkeys(flow.prefill for flow in flows))
    right = list(dict.fromkeys(flow.decode for flow in flows))
    if not whole:
        box = Box(520, 160)
        return picture(box, [text(260, 80, "no request ended well", "tick", "middle")], label)
    colours = look.series(list(dict.fromkeys((*left, *right))))
    sources, low = _stack(left, {g: sum(f.requests for f in flows if f.prefill == g) for g in left}, whole)
    targets, low_too = _stack(
        right, {g: sum(f.requests for f in flows if f.decode == g) for g in right}, whole
    )
    box = Box(520, max(low, low_too), left=150, right=150, top=SANKEY_TOP)
    per_request = SANKEY_HEIGHT / whole
    parts = [text(box.x[0], 16, "prefill", "strong", "end"), text(box.x[1], 16, "decode", "strong")]
    parts += _bands(flows, whole, sources, targets, per_request, colours, box)
    for side, places in ((0, sources), (1, targets)):
        for group, (start, size) in places.items():
            parts += _node(box, side, group, start, size, size / per_request / whole, colours[group])
    return picture(box, parts, label)


def _stack(
    groups: Sequence[str], requests: Mapping[str, int], whole: int
) -> tuple[dict[str, tuple[float, float]], float]:
    """Where each node begins and how high it is; and where the last one's label ends."""
    places: dict[str, tuple[float, float]] = {}
    at = SANKEY_TOP
    for group in groups:
        size = requests[group] * SANKEY_HEIGHT / whole
        at += max(0.0, (LABEL_HEIGHT - size) / 2)
        places[group] = (at, size)
        at += size + max(12.0, (LABEL_HEIGHT - size) / 2)
    return places, at + 4.0


def _node(box: Box, side: int, group: str, start: float, size: float, share: float, colour: str) -> list[str]:
    edge = box.x[side]
    words = edge - 18 if side == 0 else edge + 18
    anchor = "end" if side == 0 else "start"
    middle = start + size / 2
    return [
        rect(edge - 5, start, 10, max(1.5, size), colour, title=f"{group}: {share:.1%}", radius=2),
        text(words, middle + 1, group, "strong", anchor),
        text(words, middle + 14, look.percent(share), "tick", anchor),
    ]


def _bands(
    flows: Sequence[Flow],
    whole: int,
    sources: Mapping[str, tuple[float, float]],
    targets: Mapping[str, tuple[float, float]],
    per_request: float,
    colours: Mapping[str, str],
    box: Box,
) -> list[str]:
    """Bands leave and arrive in the order of the nodes on the other side, so that few of them cross."""
    order_left, order_right = list(sources), list(targets)
    out = dict.fromkeys(sources, 0.0)
    into = dict.fromkeys(targets, 0.0)
    starts: dict[Flow, float] = {}
    ends: dict[Flow, float] = {}
    for flow in sorted(
        flows, key=lambda f: (order_left.index(f.prefill), order_right.index(f.decode), f.split)
    ):
        starts[flow] = sources[flow.prefill][0] + out[flow.prefill]
        out[flow.prefill] += flow.requests * per_request
    for flow in sorted(
        flows, key=lambda f: (order_right.index(f.decode), order_left.index(f.prefill), f.split)
    ):
        ends[flow] = targets[flow.decode][0] + into[flow.decode]
        into[flow.decode] += flow.requests * per_request
    left, right = box.x[0] + 5, box.x[1] - 5
    bend = (right - left) / 2
    bands: list[str] = []
    for flow in flows:
        size, a, b = flow.requests * per_request, starts[flow], ends[flow]
        path = (
            f"M{left:.1f},{a:.1f}C{left + bend:.1f},{a:.1f} {right - bend:.1f},{b:.1f} {right:.1f},{b:.1f}"
            f"L{right:.1f},{b + size:.1f}C{right - bend:.1f},{b + size:.1f} {left + bend:.1f},{a + size:.1f}"
            f" {left:.1f},{a + size:.1f}Z"
        )
        how = "split over two backends" if flow.split else "both phases on one backend"
        said = (
            f"{flow.prefill} → {flow.decode}: {flow.requests:,} requests ({flow.requests / whole:.1%}), {how}"
        )
        opacity = 0.42 if flow.split else 0.2
        bands.append(
            f'<path d="{path}" fill="{colours[flow.prefill]}" fill-opacity="{opacity}">'
            f"<title>{escape(said)}</title></path>"
        )
    return bands


def bars(
    rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]],
    unit: str,
    label: str,
    *,
    left: float = 130.0,
) -> str:
    """Horizontal stacked bars: (name, parts of (name, value, colour))."""
    box = Box(520, 18.0 + 34.0 * max(1, len(rows)), left=left, right=70, top=6, bottom=6)
    most = max((math.fsum(v for _, v, _ in parts) for _, parts in rows), default=0.0) or 1.0
    x = Scale(0.0, most, *box.x)
    shown = {"$": look.usd, "J": look.joules}.get(unit, look.count)
    out: list[str] = []
    for i, (name, parts) in enumerate(rows):
        y, at = box.top + 34.0 * i, 0.0
        out.append(text(box.left - 10, y + 17, name, "strong", "end"))
        for part, value, colour in parts:
            title = f"{part}: {shown(value)}"
            out.append(rect(x(at), y + 3, x(at + value) - x(at), 20, colour, title=title, radius=2))
            at += value
        out.append(text(x(at) + 6, y + 17, shown(at)))
    return picture(box, out, label)


@dataclass(frozen=True, slots=True)
class Change:
    """One row of a forest plot: a relative change with its interval."""

    name: str
    change: float
    low: float | None
    high: float | None
    better: bool | None
    said: str


def forest(changes: Sequence[Change], label: str) -> str:
    """Relative changes and their 95 % intervals around zero, where doubling and halving look alike."""
    box = Box(1080, 40.0 + 26.0 * len(changes), left=150, right=190, top=8, bottom=28)
    ends = [abs(_log(v)) for c in changes for v in (c.change, c.low, c.high) if v is not None]
    reach = min(max(max(ends, default=0.0) * 1.1, 0.1), math.log(20))
    x = Scale(-reach, reach, *box.x)
    parts: list[str] = []
    for value in _forest_ticks(reach):
        at = x(_log(value))
        parts.append(line(at, box.y[0], at, box.y[1], "axis" if value == 0 else "grid"))
        parts.append(text(at, box.y[0] + 15, f"{value:+.0%}" if value else "same", "tick", "middle"))
    for i, one in enumerate(changes):
        parts.append(_forest_row(box, x, box.top + 26.0 * i + 13.0, one))
    return picture(box, parts, label)


def _forest_row(box: Box, x: Scale, y: float, one: Change) -> str:
    colour = {True: look.GOOD, False: look.BAD, None: "#9aa1ac"}[one.better]
    parts = [text(box.left - 12, y + 4, one.name, "strong", "end"), text(box.x[1] + 10, y + 4, one.said)]
    if one.low is not None and one.high is not None:
        parts.append(polyline([(x(_log(one.low)), y), (x(_log(one.high)), y)], colour, width=2.5))
    parts.append(dot(x(_log(one.change)), y, colour, title=one.said, radius=4.5))
    return "".join(parts)


def _forest_ticks(reach: float) -> list[float]:
    """Zero, and pairs of changes that undo each other, far enough apart for their labels."""
    chosen = [0.0]
    last = 0.0
    for step in (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 9.0):
        if last + 0.22 * reach <= _log(step) <= reach:
            chosen += [step, 1.0 / (1.0 + step) - 1.0]
            last = _log(step)
    return chosen


def _log(change: float) -> float:
    return math.log(max(1.0 + change, 1e-3))
