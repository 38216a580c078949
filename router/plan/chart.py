"""The answers as a picture: total cost by part, and power, as one SVG file without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from router.plan.advice import Advice, Answer
from router.plan.verify import named

WIDTH = 900
LEFT = 330
BAR = 360
ROW = 46
TOP = 64
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")
"""Observable's categorical palette, distinct also for most colour-blind readers."""
POWER_COLOUR = "#888888"


def chart(advice: Advice) -> str:
    """One bar a fleet: rent by device type, electricity at the end; watts and rigidity beside it."""
    types = sorted({name for one in advice.answers for name in one.fleet})
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(types)}
    longest = max((one.usd_per_hour for one in advice.answers), default=1.0)
    height = TOP + ROW * len(advice.answers) + 24 + 20 * ((len(types) + 1 + 3) // 4)
    body = [_text(16, 28, f"Fleets for {advice.brief.workload.name}: USD an hour", 18, weight="bold")]
    body.append(
        _text(16, 46, f"{advice.brief.target:.0%} of the requests of each class within their objectives", 12)
    )
    for number, one in enumerate(advice.answers):
        body += _row(one, advice, colours, longest, TOP + ROW * number)
    body += _legend([*colours.items(), ("electricity", POWER_COLOUR)], TOP + ROW * len(advice.answers) + 16)
    style = "font-family:system-ui,sans-serif;background:#ffffff"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" style="{style}" role="img">'
    )
    title = f"<title>{escape('Fleets for ' + advice.brief.workload.name)}</title>"
    return "\n".join([head, title, *body, "</svg>"]) + "\n"


def _row(one: Answer, advice: Advice, colours: dict[str, str], longest: float, y: int) -> list[str]:
    label = ", ".join(one.goals) or "for comparison"
    parts = [_text(16, y + 14, named(one.fleet), 13, weight="bold"), _text(16, y + 30, label, 11)]
    x = float(LEFT)
    specs = {supply.name: supply.spec for supply in advice.market.supplies}
    for name, count in one.fleet.items():
        usd = count * advice.brief.prices.unit_usd_per_hour(name, specs[name])
        x = _bar(parts, x, y, usd / longest * BAR, colours[name], f"{count} x {name}: {usd:.2f} USD/h")
    power = one.power_usd_per_hour
    x = _bar(parts, x, y, power / longest * BAR, POWER_COLOUR, f"electricity: {power:.3f} USD/h")
    told = f"{one.usd_per_hour:.2f} USD/h, {_watts(one.trial.watts)}, rigidity {one.rigidity:.0%}"
    parts.append(_text(x + 8, y + 18, told, 12))
    return parts


def _bar(parts: list[str], x: float, y: int, width: float, colour: str, title: str) -> float:
    parts.append(
        f'<rect x="{x:.1f}" y="{y}" width="{max(0.0, width):.1f}" height="26" fill="{colour}">'
        f"<title>{escape(title)}</title></rect>"
    )
    return x + max(0.0, width)


def _legend(entries: Sequence[tuple[str, str]], y: int) -> list[str]:
    parts: list[str] = []
    for number, (name, colour) in enumerate(entries):
        x, at = 16 + 220 * (number % 4), y + 20 * (number // 4)
        parts.append(f'<rect x="{x}" y="{at}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 18, at + 11, name, 12))
    return parts


def _text(x: float, y: int, text: str, size: int, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}">{escape(text)}</text>'


def _watts(watts: float) -> str:
    return f"{watts / 1000:.2f} kW" if watts >= 1000 else f"{watts:.0f} W"
