"""Whether a query lies beyond a profile's data."""

from __future__ import annotations

import re

import pytest

from backends.catalogue import load_profile, profile_names
from backends.models.prior_text import GRIDS
from backends.models.valid_range import range_note, stated_ranges


@pytest.mark.parametrize(
    ("words", "ranges"),
    [
        (GRIDS, {"batch": (1, 512), "context": (256, 32_768), "prompt": (64, 32_768)}),
        ("batch 1, context 1k-128k tokens", {"batch": (1, 1), "context": (1024, 131_072)}),
        ("prompt 1k - 2k tokens, by operators", {"prompt": (1024, 2048)}),
        ("one sequence; nobody publishes a batch curve", {}),
        ("none: no measurement stands behind this profile", {}),
        ("batch 1-512; batch 9 elsewhere", {"batch": (1, 512)}),
    ],
)
def test_ranges_are_read_from_the_sentence(words: str, ranges: dict[str, tuple[int, int]]) -> None:
    """1k is 1,024; what is not stated has no range."""
    assert stated_ranges(words) == ranges


def test_inside_there_is_nothing_to_say() -> None:
    """The ends belong to the range."""
    assert range_note(GRIDS, batch=1, context=256, prompt=64) == ""
    assert range_note(GRIDS, batch=512, context=32_768, prompt=32_768) == ""
    assert range_note("") == ""


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"batch": 513}, "batch 513 lies outside the 1 to 512"),
        ({"context": 255}, "context 255 lies outside the 256 to 32,768"),
        ({"batch": 600, "prompt": 50_000}, "batch 600 .*; prompt 50,000 lies"),
    ],
)
def test_outside_it_says_what_lies_where(query: dict[str, int], words: str) -> None:
    """All that lies outside, in one sentence."""
    note = range_note(GRIDS, **query)
    assert note.startswith("Extrapolated: ") and note.endswith(".")
    assert re.search(words, note)


def test_what_no_data_covers_is_said() -> None:
    """A profile of one published speed has no context range."""
    note = range_note("batch 1; nobody publishes a batch curve", batch=8, context=100)
    assert "batch 8 lies outside the 1 that" in note
    assert "no data of any context" in note


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_can_be_asked(name: str) -> None:
    """Whatever their sentence, a query far out is noticed."""
    assert range_note(load_profile(name).provenance.valid_range, batch=60_000, context=1 << 24)
