"""Writes what was found: policies.json with a row per cell, policies.md for reading."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.policies.findings import Findings
from tests.bench.policies.monotone import summary
from tests.bench.policies.obstacles import obstacle
from tests.bench.policies.page import page
from tests.bench.policies.rows import COLUMNS, Cell
from tests.bench.policies.targets import of_b2, of_best_known, of_clairvoyant, verdicts


def write(folder: Path, cells: Sequence[Cell], found: Findings, about: Mapping[str, Any]) -> None:
    """Both files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policies.json").write_text(text_of(document(cells, found, about)), encoding="utf-8")
    (folder / "policies.md").write_text(page(cells, found, about), encoding="utf-8")


def document(cells: Sequence[Cell], found: Findings, about: Mapping[str, Any]) -> dict[str, Any]:
    """All values of the comparison."""
    return {
        "about": dict(about),
        "targets": [each.as_dict() for each in verdicts(cells, found)],
        "monotone": {
            **(summary(found.trials) if found.trials else {}),
            "trials": [each.as_dict() for each in found.trials],
            "additions": [each.as_dict() for each in found.added],
        },
        "energy": [each.as_dict() for each in found.savings],
        "power_cap": None if found.capped is None else found.capped.as_dict(),
        "jitter": [each.as_dict() for each in found.voices],
        "flood": [each.as_dict() for each in found.floods],
        "bulk": None if found.starved is None else found.starved.as_dict(),
        "decisions": [each.as_dict() for each in found.decided],
        "live": list(found.live),
        "columns": list(COLUMNS),
        "rows": [row(cell) for cell in cells],
    }


def row(cell: Cell) -> dict[str, Any]:
    """A cell: its bounds, our policy's ratios, and every policy's values as `columns` names them."""
    way = obstacle(cell)
    return {
        "fleet": cell.fleet,
        "workload": cell.workload,
        "load": cell.load,
        "rate_per_s": cell.rate_per_s,
        "seeds": cell.seeds,
        "b2": cell.b2,
        "clairvoyant": cell.clairvoyant(),
        "best_known": cell.best_known,
        "clairvoyant_ratio": of_clairvoyant(cell),
        "best_known_ratio": of_best_known(cell),
        "b2_ratio": of_b2(cell),
        "factors": None if way is None else way.factors,
        "policies": {label: each.values() for label, each in cell.rows.items()},
    }


def text_of(values: Mapping[str, Any]) -> str:
    """JSON of which a part, and a row, has a line: what changed shows in a comparison of two versions."""
    parts = []
    for name, value in values.items():
        known = _rounded(value)
        if isinstance(known, list) and known and isinstance(known[0], dict):
            lines = ",\n".join(json.dumps(each, separators=(",", ":")) for each in known)
            parts.append(f'"{name}": [\n{lines}\n]')
        else:
            parts.append(f'"{name}": {json.dumps(known)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _rounded(value: Any) -> Any:
    """Five significant figures: the same run gives the same bytes, and a reader can read them."""
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return float(f"{value:.5g}") if math.isfinite(value) else None
        case dict():
            return {key: _rounded(each) for key, each in value.items()}
        case _:
            return [_rounded(each) for each in value]
