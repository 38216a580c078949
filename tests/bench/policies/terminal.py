"""The comparison as a table on the terminal, for whoever tunes a policy."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.policies.field import B2, CHAMPION, CLAIRVOYANTS
from tests.bench.policies.rows import Cell, Row, goodput, per_device_usd, ratio
from tests.bench.policies.targets import Verdict


def table(cells: Sequence[Cell], labels: Sequence[str]) -> str:
    """A line a cell: attainment of the named policies, the best baseline, and where ours stands."""
    ours = [label for label in labels if label not in (*CLAIRVOYANTS, B2)]
    heads = ["cell", "n", *(_short(label) for label in ours), "best baseline", "best", "B2"]
    heads += ["/base", "/best", "/B2", "$/base", "missed"]
    return _aligned([heads, *([*_line(cell, ours)] for cell in cells)])


def targets(found: Sequence[Verdict]) -> str:
    """A line a target that was measured."""
    words = {True: "reached", False: "SHORT"}
    return "\n".join(
        f"{words[each.reached]:8} {each.target}: {each.found} (asked {each.asked})"
        for each in found
        if each.reached is not None
    )


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _line(cell: Cell, labels: Sequence[str]) -> list[str]:
    arrived = max((row.total("arrived") for row in cell.rows.values()), default=0.0)
    best, ours = cell.best_baseline(goodput), cell.ours
    met = ours.met if ours else 0
    return [
        cell.name,
        f"{arrived:.0f}",
        *(_share(cell.rows.get(label)) for label in labels),
        "-" if best is None else f"{_short(best.policy)} {best.attainment:.3f}",
        _x(ratio(cell.best_known, arrived)),
        _x(None if cell.b2 is None else ratio(cell.b2, arrived)),
        _x(cell.over_best_baseline(goodput)),
        _x(ratio(met, cell.best_known)),
        _x(ratio(met, cell.b2)),
        _x(cell.over_best_baseline(per_device_usd)),
        "" if ours is None else " ".join(f"{k}:{v}" for k, v in ours.missed().items() if v),
    ]


def _short(label: str) -> str:
    return label.replace(f"{CHAMPION}, ", "+").replace(CHAMPION, "ours")[:14]


def _share(row: Row | None) -> str:
    return "-" if row is None else f"{row.attainment:.3f}"


def _x(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
