"""The worked example of the fluid bound comes out as published, from our own code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from router.plan.classes import Cell, cut, derive, inner_edges, parse_table, table
from router.plan.recipe import Row, azure_rows, load_classes

PUBLISHED = {
    "a100": (0.0, 0.0),
    "h100": (25.1, 1.34),
    "h200": (17.3, 1.24),
    "b200": (43.9, 2.00),
    "a100 h100 h200 b200": (51.9, 1.37),
    "a100 b200": (29.4, 1.37),
}
"""Fleet -> goodput in requests/s, and per USD/h."""


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    """The six rows, by the types of their fleets."""
    return {" ".join(row.fleet): row for row in azure_rows()}


@pytest.mark.parametrize("fleet", PUBLISHED)
def test_goodput_is_as_published_to_three_digits(rows: dict[str, Row], fleet: str) -> None:
    """Goodput, and goodput for a dollar."""
    goodput, per_usd = PUBLISHED[fleet]
    assert rows[fleet].goodput == pytest.approx(goodput, abs=0.05)
    assert rows[fleet].goodput_per_usd_h == pytest.approx(per_usd, abs=0.005)


def test_phases_specialise_on_the_mixed_fleet(rows: dict[str, Row]) -> None:
    """fp4 takes the prompts, fp8 the answers, and the oldest devices are of use for prompts alone."""
    mixed = rows["a100 h100 h200 b200"]
    assert mixed.prefill == pytest.approx(
        {"b200": 0.83, "a100": 0.07, "h200": 0.06, "h100": 0.03}, abs=0.0055
    )
    assert mixed.decode == pytest.approx({"b200": 0.0, "a100": 0.0, "h200": 0.29, "h100": 0.71}, abs=0.005)
    small = rows["a100 b200"]
    assert small.prefill == pytest.approx({"b200": 0.87, "a100": 0.13}, abs=0.005)
    assert small.decode == pytest.approx({"b200": 1.0, "a100": 0.0}, abs=0.005)


def test_the_pool_is_worth_a_fifth_more_than_its_silos(rows: dict[str, Row]) -> None:
    """Sum of the parts: 0 + 12.6 + 8.7 + 22.0 = 43.2; the pool does 51.9."""
    silos = sum(rows[name].goodput for name in ("h100", "h200", "b200")) / 2
    assert silos == pytest.approx(43.2, abs=0.05)
    assert rows["a100 h100 h200 b200"].goodput / silos == pytest.approx(1.20, abs=0.005)


def test_duals_price_the_device_time(rows: dict[str, Row]) -> None:
    """In theta; times the load, one more backend of each type is worth what the objective gains."""
    mixed = rows["a100 h100 h200 b200"]
    total = mixed.goodput / mixed.plan.objective
    worth = {name: mixed.plan.duals[f"device:{name}"] * total for name in mixed.fleet}
    # With everything but device time slack, the duals times the units add up to the optimum (duality).
    assert sum(worth[name] * units for name, units in mixed.fleet.items()) == pytest.approx(mixed.goodput)
    assert worth["b200"] > worth["h100"] > worth["h200"] > worth["a100"] > 0


def test_the_class_table_has_the_traces_in_it() -> None:
    """47 cells, and as many requests as the two traces hold."""
    cells = load_classes()
    assert [sum(c.trace == name for c in cells) for name in ("conversation", "code")] == [23, 24]
    assert [sum(c.requests for c in cells if c.trace == name) for name in ("conversation", "code")] == [
        19366,
        8819,
    ]


def test_cells_keep_means_and_counts() -> None:
    """What goes into cells comes out of them, however the edges fall."""
    lengths = [(10 * i % 97 + 1, i % 7) for i in range(200)]
    cells = cut("t", lengths)
    assert sum(c.requests for c in cells) == 200
    total = sum(c.prompt_tokens * c.requests for c in cells)
    assert total == pytest.approx(sum(prompt for prompt, _ in lengths))
    assert min(c.output_tokens for c in cells) >= 1.0
    assert inner_edges([1, 1, 1, 1], 4) == []


def test_the_table_survives_its_text() -> None:
    """Written and read again."""
    cells = [Cell("a", 1.5, 2.0, 3)]
    assert parse_table("# remark\n" + table(cells)) == cells


@pytest.mark.skipif("POLYPHASE_TRACES" not in os.environ, reason="POLYPHASE_TRACES names no folder of traces")
def test_the_table_is_derived_from_the_traces() -> None:
    """The command in the table's first lines gives the table that ships."""
    folder = Path(os.environ["POLYPHASE_TRACES"])
    named = [f"conversation={folder}/azure_2023_conv.csv.gz", f"code={folder}/azure_2023_code.csv.gz"]
    assert parse_table(derive(named)) == load_classes()
