"""Drawing: scales, axes and shapes as SVG text. Coordinates are rounded so that pages stay small."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from html import escape
from typing import Final

Points = Sequence[tuple[float, float]]
Format = Callable[[float], str]

FONT: Final = 11


def num(value: float) -> str:
    """A coordinate with one decimal, without a trailing zero."""
    return f"{value:.1f}".removesuffix(".0")


class Kind(Enum):
    """How a scale is divided."""

    LINEAR = "linear"
    LOG = "log"
    TIME = "time"
    """Linear, with ticks at whole seconds, minutes or hours."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float
    kind: Kind = Kind.LINEAR

    def __call__(self, value: float) -> float:
        """The pixel of a value; values outside the domain are drawn at its edge."""
        value = min(max(value, self.low), self.high)
        if self.kind is Kind.LOG:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the domain."""
        match self.kind:
            case Kind.LOG:
                return _log_ticks(self.low, self.high)
            case Kind.TIME:
                return _time_ticks(self.low, self.high, most)
            case Kind.LINEAR:
                return _ticks(self.low, self.high, most)


def _ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _time_ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / most
    steps = [m * unit for unit in (1.0, 60.0, 3600.0) for m in (1, 2, 5, 10, 15, 30)]
    step = next((step for step in steps if step >= raw), None)
    if step is None or raw < 0.5:
        return _ticks(low, high, most)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**p for p in powers for m in parts if low <= m * 10.0**p <= high]
        if len(found) <= 6:
            return found
    return found[:: -(-len(found) // 6)]


@dataclass(frozen=True, slots=True)
class Box:
    """A picture's size and the margins around its plot, in pixels."""

    width: float
    height: float
    left: float = 44.0
    right: float = 18.0
    top: float = 10.0
    bottom: float = 26.0

    @property
    def x(self) -> tuple[float, float]:
        """Pixels of the plot from left to right."""
        return self.left, self.width - self.right

    @property
    def y(self) -> tuple[float, float]:
        """Pixels of the plot from bottom to top."""
        return self.height - self.bottom, self.top


def picture(box: Box, parts: Iterable[str], label: str) -> str:
    """A complete picture that scales with the page; `label` is for those who cannot see it."""
    size = f"{num(box.width)} {num(box.height)}"
    inside = "".join(parts)
    return f'<svg viewBox="0 0 {size}" role="img" aria-label="{escape(label, quote=True)}">{inside}</svg>'


def text(x: float, y: float, words: str, cls: str = "", anchor: str = "start") -> str:
    """Words at a place."""
    kind = f' class="{cls}"' if cls else ""
    return f'<text x="{num(x)}" y="{num(y)}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    """A straight line."""
    return f'<line x1="{num(x1)}" y1="{num(y1)}" x2="{num(x2)}" y2="{num(y2)}" class="{cls}"/>'


def rect(
    x: float, y: float, width: float, height: float, fill: str, *, title: str = "", radius: float = 0
) -> str:
    """A filled rectangle, with words that show when pointed at."""
    place = f'x="{num(x)}" y="{num(y)}" width="{num(max(0, width))}" height="{num(max(0, height))}"'
    rounded = f' rx="{num(radius)}"' if radius else ""
    return f'<rect {place}{rounded} fill="{fill}">{_title(title)}</rect>'


def polyline(points: Points, colour: str, *, title: str = "", dash: str = "", width: float = 1.8) -> str:
    """A line through points."""
    path = "M" + "L".join(f"{num(x)},{num(y)}" for x, y in points)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    look = f'fill="none" stroke="{colour}" stroke-width="{num(width)}" stroke-linejoin="round"{dashed}'
    return f'<path d="{path}" {look}>{_title(title)}</path>'


def area(upper: Points, lower: Points, fill: str, *, title: str = "", opacity: float = 0.85) -> str:
    """The area between two lines."""
    path = "M" + "L".join(f"{num(x)},{num(y)}" for x, y in [*upper, *reversed(lower)]) + "Z"
    return f'<path d="{path}" fill="{fill}" fill-opacity="{opacity:g}">{_title(title)}</path>'


def dot(x: float, y: float, colour: str, *, title: str = "", radius: float = 3.5) -> str:
    """A filled circle."""
    return f'<circle cx="{num(x)}" cy="{num(y)}" r="{num(radius)}" fill="{colour}">{_title(title)}</circle>'


def axes(box: Box, x: Scale, y: Scale, x_format: Format, y_format: Format, x_ticks: int = 6) -> str:
    """Grid lines and tick labels."""
    (left, right), (bottom, top) = box.x, box.y
    parts: list[str] = []
    for value in y.ticks(4):
        parts.append(line(left, y(value), right, y(value), "grid"))
        parts.append(text(left - 6, y(value) + 3.5, y_format(value), "tick", "end"))
    for value in x.ticks(x_ticks):
        parts.append(line(x(value), bottom, x(value), top, "grid"))
        parts.append(text(x(value), bottom + 15, x_format(value), "tick", "middle"))
    parts.append(line(left, bottom, right, bottom, "axis"))
    return "".join(parts)


def _title(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""
