"""Writes dashboards/polyphase.json: python -m deploy.grafana.build

A dashboard of this size kept by hand drifts from the metrics; a table does not: tests parse every query, and
the JSON that is checked in is what this file writes. Layout: rows of panels, 24 columns wide.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from deploy.grafana.machines import DECISIONS, HANDOFFS, HARDWARE, ROUTER
from deploy.grafana.panels import Panel
from deploy.grafana.prices import PRICES
from deploy.grafana.requests import ERRORS, LATENCY, MONEY, OVERVIEW
from deploy.grafana.shadow import SHADOW

OUT: Final = Path(__file__).parent / "dashboards" / "polyphase.json"
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
KIND_COLOURS: Final = {
    "gpu": "green",
    "lpu": "purple",
    "tpu": "blue",
    "npu": "orange",
    "asic": "yellow",
    "cpu": "semi-dark-red",
}
PHASE_COLOURS: Final = {"queue": "red", "prefill": "blue", "handoff": "orange", "decode": "green"}


ROWS: Final = (OVERVIEW, LATENCY, HARDWARE, DECISIONS, HANDOFFS, MONEY, ERRORS, ROUTER, PRICES, SHADOW)


def dashboard() -> dict[str, Any]:
    """The whole dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        heading = {
            "id": _next_id(panels),
            "type": "row",
            "title": row.title,
            "collapsed": row.collapsed,
            "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
            "panels": [],
        }
        panels.append(heading)
        placed, y = _place(row.panels, y + 1, _next_id(panels))
        (heading["panels"] if row.collapsed else panels).extend(placed)  # type: ignore[attr-defined]
    return {
        "uid": "polyphase",
        "title": "Polyphase",
        "description": "A heterogeneous inference router: phases, hardware, decisions, cost.",
        "tags": ["polyphase", "inference"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "schemaVersion": 38,
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": [_alerts()]},
        "panels": panels,
    }


def _next_id(panels: Sequence[dict[str, Any]]) -> int:
    return 1 + sum(1 + len(panel.get("panels", ())) for panel in panels)


def _place(panels: Sequence[Panel], y: int, first_id: int) -> tuple[list[dict[str, Any]], int]:
    """Panels from left to right, wrapped at 24 columns; and the line below them."""
    x = tallest = 0
    placed = []
    for number, panel in enumerate(panels):
        if x + panel.width > 24:
            x, y, tallest = 0, y + tallest, 0
        grid = {"h": panel.height, "w": panel.width, "x": x, "y": y}
        placed.append({"id": first_id + number, "gridPos": grid, **_body(panel)})
        x, tallest = x + panel.width, max(tallest, panel.height)
    return placed, y + tallest


def _body(panel: Panel) -> dict[str, Any]:
    is_stat = panel.kind == "stat"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": [
            {"refId": chr(65 + i), "datasource": DATASOURCE, "expr": query.expr, "legendFormat": query.legend}
            for i, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": [] if is_stat else _colours(panel)},
        "options": _stat_options() if is_stat else _series_options(),
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = [{"value": value, "color": colour} for value, colour in panel.thresholds or ((None, "text"),)]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.kind == "stat":
        return {**defaults, "color": {"mode": "thresholds"}, "noValue": "none"}
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 5,
        "showPoints": "never",
        "spanNulls": 15000,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
    }
    return {**defaults, "color": {"mode": "palette-classic"}, "custom": custom}


def _colours(panel: Panel) -> list[dict[str, Any]]:
    """The same kind, or phase, has the same colour in every panel whose lines are named after it alone."""
    legends = {query.legend for query in panel.queries}
    named = KIND_COLOURS if legends == {"{{kind}}"} else PHASE_COLOURS if legends == {"{{phase}}"} else {}
    return [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for name, colour in named.items()
    ]


def _stat_options() -> dict[str, Any]:
    return {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "center",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }


def _series_options() -> dict[str, Any]:
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return [
        source,
        _variable("kind", "Hardware", "label_values(polyphase_backend_state, kind)"),
        _variable("backend", "Backend", 'label_values(polyphase_backend_state{kind=~"$kind"}, backend)'),
        _variable("model", "Model", "label_values(polyphase_e2e_seconds_count, model)"),
    ]


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # Not the list of values: a request that was never placed has kind "none", which no backend has.
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Polyphase.*", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    OUT.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"wrote {OUT}\n")
