"""Colours, units and the style sheet of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

SERIES: Final = ("#3b6fd4", "#d9662b", "#2a9d6f", "#a04fb5", "#b8912b", "#d0427e", "#4a9ab8", "#7a7f8a")
"""One per policy or group, told apart by most colour-blind readers; beyond eight they repeat."""
PREFILL: Final = "#e08a3c"
DECODE: Final = "#3f7fc4"
GOOD: Final = "#2a9d6f"
BAD: Final = "#cf4a3f"

PHASE_COLOURS: Final = {"prefill": PREFILL, "decode": DECODE}


def series(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, in order."""
    return {name: SERIES[i % len(SERIES)] for i, name in enumerate(names)}


def seconds(value: float) -> str:
    """Three significant digits in the unit that suits."""
    for scale, unit in ((3600.0, "h"), (60.0, "min")):
        if value >= 2 * scale:
            return f"{value / scale:.3g} {unit}"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return "0"


def clock(value: float) -> str:
    """A time on an axis from the start of a run."""
    if 60.0 <= value < 120.0 and value % 30.0 == 0.0:
        return f"{value / 60:.3g}\u202fmin"
    return seconds(value).replace(" ", "\u202f") if value else "0"


def percent(value: float) -> str:
    """Without decimals where they say nothing."""
    return f"{value:.0%}" if value in (0.0, 1.0) or 0.1 <= value < 0.99 else f"{value:.1%}"


def count(value: float) -> str:
    """Thousands and millions by their letters."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def usd(value: float) -> str:
    """Dollars; small amounts keep their digits."""
    return f"${value:,.2f}" if value >= 10 else f"${value:.3g}"


def joules(value: float) -> str:
    """J, kJ, MJ or GJ."""
    return _with_unit(value, "J")


def watts(value: float) -> str:
    """W, kW or MW."""
    return _with_unit(value, "W")


def _with_unit(value: float, unit: str) -> str:
    shown = count(value)
    return f"{shown[:-1]} {shown[-1]}{unit}" if shown[-1].isalpha() else f"{shown} {unit}"


CSS: Final = """
:root{--bg:#fbfaf8;--card:#fff;--ink:#1d2430;--soft:#5b6472;--faint:#8b93a0;--rule:#e6e3dd;--grid:#eceae5}
@media(prefers-color-scheme:dark){:root{--bg:#14171c;--card:#1c2027;--ink:#e8eaee;--soft:#aab1bd;
--faint:#7d8592;--rule:#2d333d;--grid:#282d36}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans",sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1180px;margin:0 auto;padding:36px 28px 64px}
h1{font-size:27px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:18px;margin:44px 0 4px;letter-spacing:-.005em}
h3{font-size:13.5px;margin:0 0 6px;font-weight:600}
p{margin:0 0 12px;color:var(--soft);max-width:78ch}
.lead{font-size:15px}
.eyebrow{color:var(--faint);font-size:12px;letter-spacing:.08em;text-transform:uppercase;margin:0 0 6px}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:16px 18px;margin:12px 0;
overflow-x:auto}
.grid{display:grid;gap:12px}
.two{grid-template-columns:repeat(auto-fit,minmax(430px,1fr))}
.three{grid-template-columns:repeat(auto-fit,minmax(300px,1fr))}
.four{grid-template-columns:repeat(auto-fit,minmax(240px,1fr))}
.grid .card{margin:0}
table{border-collapse:collapse;width:100%;font-size:13px}
th{font-weight:500;color:var(--faint);text-align:right;padding:4px 10px 6px;border-bottom:1px solid
var(--rule); white-space:nowrap}
td{text-align:right;padding:5px 10px;border-bottom:1px solid var(--grid);white-space:nowrap}
tr:last-child td{border-bottom:0}
th.l,td.l{text-align:left}
td.best{font-weight:650}
.good{color:#1f8a5f}.bad{color:#cf4a3f}.dim{color:var(--faint)}
.key{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:7px;vertical-align:-1px}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;color:var(--soft);font-size:12.5px;margin:2px 0 8px}
.warn{border-color:#d9a441;background:color-mix(in srgb,#d9a441 12%,var(--card));color:var(--ink)}
.warn p{color:inherit;margin:0 0 4px}
.note{font-size:12.5px;color:var(--faint);margin-top:6px}
svg{display:block;width:100%;height:auto}
svg text{font-size:11px;fill:var(--soft)}
svg text.tick{font-size:10.5px;fill:var(--faint)}
svg text.strong{font-weight:600;fill:var(--ink)}
svg .grid{stroke:var(--grid);stroke-width:1}
svg .axis{stroke:var(--faint);stroke-width:1}
svg .slo{stroke:var(--ink);stroke-width:1;stroke-dasharray:2 3;opacity:.65}
footer{margin-top:48px;color:var(--faint);font-size:12.5px;border-top:1px solid var(--rule);padding-top:14px}
@media print{body{background:#fff}.card{break-inside:avoid}}
"""
