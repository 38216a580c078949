"""The prior's error is what the documents and the factors' own account say it is."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from backends.hardware import load_device
from backends.models.efficiency import FAMILIES
from tests.bench import prior

DOCUMENT = Path(__file__).parents[2] / "docs" / "hardware.md"


@pytest.fixture(scope="module")
def rows() -> tuple[prior.Row, ...]:
    """Every combination of the composed grids."""
    return prior.composed()


def test_all_grids_are_compared(rows: tuple[prior.Row, ...]) -> None:
    """74 combinations, each with decode and prefill."""
    assert len(rows) == 74
    assert all(row.decode is not None and row.prefill is not None for row in rows)


def test_the_prior_is_near_the_grids(rows: tuple[prior.Row, ...]) -> None:
    """Median errors: with the family's own factors, and with another generation's."""
    decode, prefill, cold_decode, cold_prefill = prior.medians(rows)
    assert decode < 0.07
    assert prefill < 0.08
    assert cold_decode < 0.13
    assert cold_prefill < 0.20


def test_families_state_their_own_error(rows: tuple[prior.Row, ...]) -> None:
    """The figure that goes into every profile of the family, to half a point."""
    of: dict[str, list[prior.Row]] = defaultdict(list)
    for row in rows:
        if row.model not in prior.NO_LAW_FITS:
            of[load_device(row.device).efficiency.value].append(row)
    stated = {name for name, family in FAMILIES.items() if family.decode_error is not None}
    assert set(of) == stated
    for name, members in of.items():
        decode = statistics.median(row.decode or 0.0 for row in members)
        prefill = statistics.median(row.prefill or 0.0 for row in members)
        assert decode == pytest.approx(FAMILIES[name].decode_error, abs=0.005), name
        assert prefill == pytest.approx(FAMILIES[name].prefill_error, abs=0.005), name


def test_the_document_has_the_tables_of_the_command() -> None:
    """Regenerate docs/hardware.md from `make hardware` when this fails."""
    document = DOCUMENT.read_text(encoding="utf-8")
    for table in prior.report().split("\n\n"):
        assert table in document
