"""Every query that ships, in dashboard, rules and alerts, asks for metrics and labels that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana import build
from router.observe.catalogue import CATALOGUE
from tests.deploy.promql import grouped_by, selectors

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "polyphase.json"
TARGET_LABELS = {"job", "instance"}
VARIABLES = {"$__rate_interval": "1m", "$__all": ".*", "$kind": ".*", "$backend": ".*", "$model": ".*"}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def rules(file: str) -> list[Mapping[str, Any]]:
    """All rules of a file."""
    groups = yaml.safe_load((PROMETHEUS / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels(dashboard: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All panels, those of collapsed rows included."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())


def dashboard_queries() -> list[tuple[str, str]]:
    """Title and query, with the template variables filled in."""
    shown = json.loads(DASHBOARD.read_text())
    found = [
        (panel["title"], target["expr"]) for panel in panels(shown) for target in panel.get("targets", ())
    ]
    found += [(note["name"], note["expr"]) for note in shown["annotations"]["list"]]
    return [(title, filled(query)) for title, query in found]


def filled(query: str) -> str:
    """A query as Grafana sends it."""
    for variable, text in VARIABLES.items():
        query = query.replace(variable, text)
    return query


def known() -> dict[str, set[str]]:
    """Every series name that can exist, with its labels."""
    names: dict[str, set[str]] = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
    for family in CATALOGUE:
        labels = set(family.labels)
        if family.type == "histogram":
            names[f"{family.name}_bucket"] = labels | {"le"}
            names[f"{family.name}_sum"] = names[f"{family.name}_count"] = labels
        else:
            names[family.name] = labels
    for rule in rules("recording.yml"):
        names[rule["record"]] = grouped_by(rule["expr"])
    return {name: labels | TARGET_LABELS for name, labels in names.items()}


ALL = [
    *((f"record {rule['record']}", rule["expr"]) for rule in rules("recording.yml")),
    *((f"alert {rule['alert']}", rule["expr"]) for rule in rules("alerts.yml")),
    *((f"panel {title}", query) for title, query in dashboard_queries()),
]


@pytest.mark.parametrize(("where", "query"), ALL, ids=[where for where, _ in ALL])
def test_a_query_asks_for_what_exists(where: str, query: str) -> None:
    """Metric names, the labels they are selected by, and the labels they are grouped by."""
    names = known()
    found = selectors(query)
    assert found, f"{where} reads no metric"
    for selector in found:
        assert selector.metric in names, f"{where} reads {selector.metric}, which does not exist"
        stray = set(selector.labels) - names[selector.metric]
        assert not stray, f"{where} selects {selector.metric} by {stray}, which it does not have"
    available = set().union(*(names[selector.metric] for selector in found))
    assert grouped_by(query) <= available, f"{where} groups by a label that nothing in it has"


def test_the_reader_of_queries_sees_what_is_wrong() -> None:
    """A check that finds nothing anywhere would pass as well."""
    query = (
        'sum by (kind, le) (rate(polyphase_x_bucket{kind=~"a{b", phase!="c"}[5m]))'
        " / on () group_left () up > 0.5"
    )
    found = selectors(query)
    assert [(s.metric, s.labels) for s in found] == [("polyphase_x_bucket", ("kind", "phase")), ("up", ())]
    assert grouped_by(query) == {"kind", "le"}
    assert [s.metric for s in selectors('a:b:c offset 5m unless count("x", d) or vector(0) > 1e6 * 2')] == [
        "a:b:c",
        "d",
    ]


def test_the_names_of_the_router_are_read_by_the_dashboard_or_a_rule() -> None:
    """A metric nobody looks at is either a missing panel or a missing reason to exist."""
    read = {selector.metric for _, query in ALL for selector in selectors(query)}
    bare = {re.sub("_(bucket|sum|count)$", "", name) for name in read} | read
    unread = {family.name for family in CATALOGUE} - bare
    assert unread == set()


@needs_promtool
def test_rules_are_valid_and_their_unit_tests_pass() -> None:
    """promtool's own check, and deploy/prometheus/tests.yml."""
    _promtool("check", "rules", "recording.yml", "alerts.yml")
    _promtool("check", "config", "prometheus.yml")
    _promtool("test", "rules", "tests.yml")


@needs_promtool
def test_dashboard_queries_are_valid_promql(tmp_path: Path) -> None:
    """Each of them as a rule, which promtool can check."""
    made = [{"record": f"q:{i}", "expr": query} for i, (_, query) in enumerate(dashboard_queries())]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": made}]}))
    _promtool("check", "rules", str(file))


def test_every_alert_has_a_unit_test() -> None:
    """An alert that never fired in a test may never fire."""
    text = (PROMETHEUS / "tests.yml").read_text()
    untested = [rule["alert"] for rule in rules("alerts.yml") if rule["alert"] not in text]
    assert untested == []


@pytest.mark.parametrize("rule", rules("alerts.yml"), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_and_what_to_do(rule: Mapping[str, Any]) -> None:
    """A summary, a description, and one of two severities."""
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]


def test_the_dashboard_is_what_its_table_writes() -> None:
    """After a change of the table: python -m deploy.grafana.build"""
    assert DASHBOARD.read_text(encoding="utf-8") == build.text()


def test_the_dashboard_is_well_formed() -> None:
    """A stable uid, ids that differ, a data source that can be chosen, panels that do not overlap."""
    shown = json.loads(DASHBOARD.read_text())
    assert shown["uid"] == "polyphase"
    ids = [panel["id"] for panel in panels(shown)]
    assert len(ids) == len(set(ids))
    for panel in panels(shown):
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["description"], panel["title"]
    taken: set[tuple[int, int]] = set()
    for panel in shown["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} overlaps another panel"
        taken |= cells


def _promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
