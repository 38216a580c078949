"""docs/metrics.md and the registry name the same metrics, types and labels."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from router.model import BackendKind, Phase
from router.observe.catalogue import CATALOGUE
from router.observe.metrics import Metrics
from tests.deploy.promql import selectors
from tests.observe.stories import join, request, spec, split_request

DOC = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(polyphase_\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \| ([^|]+) \|$", re.M)
EXAMPLES = "\n".join(re.findall(r"```promql\n(.*?)```", DOC, re.S))


USED = {selector.metric for line in EXAMPLES.splitlines() for selector in selectors(line.partition("#")[0])}


def test_the_page_lists_what_exists_and_nothing_else() -> None:
    """Name, type and labels, in the order of the labels."""
    rows = ROW.findall(DOC)
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, *_ in rows}
    assert documented == {family.name: (family.type, family.labels) for family in CATALOGUE}


def test_every_metric_has_a_unit_a_meaning_and_an_example() -> None:
    """A name alone does not tell an operator what to do with it."""
    bare = {re.sub("_(bucket|sum|count)$", "", name) for name in USED} | USED
    for name, _, _, unit, meaning in ROW.findall(DOC):
        assert unit.strip(), name
        assert meaning.strip(), name
        assert name in bare, f"{name} has no example query"


def test_every_example_asks_for_what_exists() -> None:
    """An example that returns nothing is worse than none."""
    series = {family.name for family in CATALOGUE}
    histograms = [family.name for family in CATALOGUE if family.type == "histogram"]
    series |= {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    assert series >= USED


def test_the_registry_exports_the_catalogue() -> None:
    """The table of names is what a scrape shows, with the labels it says."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    join(metrics, spec("gpu-0"), spec("lpu-0", BackendKind.LPU, phases=frozenset({Phase.DECODE})))
    split_request(metrics, request())
    exported = {}
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        exported[name] = (family.type, labels)
    assert exported.keys() == {family.name for family in CATALOGUE}
    for family in CATALOGUE:
        kind, labels = exported[family.name]
        assert kind == family.type
        assert labels in (set(family.labels), set()), family.name
