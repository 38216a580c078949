"""A value behaves as a frozen dataclass does, except that only type checkers refuse to change it."""

import copy
from dataclasses import asdict, fields, replace

import pytest

from router.core.messages import FirstToken
from router.model import IDLE, InFlight, PhaseCost
from router.value import value


def test_values_are_compared_and_hashed_by_their_fields() -> None:
    """Equal fields make equal values, which find each other in sets and dictionaries."""
    one, same, other = PhaseCost(1.0, 2.0, 3.0), PhaseCost(1.0, 2.0, 3.0), PhaseCost(1.0, 2.0, 4.0)
    assert one == same and hash(one) == hash(same)
    assert one != other
    assert {one, same, other} == {one, other}
    assert PhaseCost() != InFlight()


def test_values_are_made_anew_by_replace_and_copied_whole() -> None:
    """`replace` leaves the value it starts from as it was; copies are equal to it."""
    booked = replace(IDLE, decodes=2)
    assert (booked.decodes, IDLE.decodes) == (2, 0)
    assert copy.deepcopy(booked) == booked == copy.copy(booked)
    assert asdict(booked)["decodes"] == 2
    assert [field.name for field in fields(FirstToken)] == ["request_id", "epoch"]


def test_values_match_by_position() -> None:
    """Fields are matched in the order of their declaration."""
    match FirstToken("r", 3):
        case FirstToken(request_id, epoch):
            assert (request_id, epoch) == ("r", 3)


def test_values_have_no_other_fields() -> None:
    """A misspelt field is refused at run time as well."""
    with pytest.raises(AttributeError):
        setattr(FirstToken("r", 3), "epocj", 4)  # noqa: B010 - the checkers refuse it otherwise


def test_type_checkers_are_told_that_values_are_frozen() -> None:
    """What makes mypy and pyright refuse an assignment to a field."""
    told = getattr(value, "__dataclass_transform__")  # noqa: B009 - not in its type
    assert {**told["kwargs"], **told}["frozen_default"] is True  # Python 3.11 has it among the others
