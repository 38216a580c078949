"""Facts survive the way through JSON; damage is told apart from facts."""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core import messages
from router.errors import Reason
from router.model import Candidate, Decision, Request
from router.observe.codec import ACTIONS, FACTS, FactReader, RecordingError, tagged, to_json
from router.observe.record import digest
from tests.observe.stories import DECISION, handle, report, request

# Times are numbers, infinity included; no clock gives a NaN, which would not equal itself.
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    float: st.floats(allow_nan=False) | st.integers(-(2**60), 2**60),
    int: st.integers(),
    str: st.text(),
    bytes: st.binary(max_size=64),
    bool: st.booleans(),
    types.NoneType: st.none(),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Anything a field of this type may hold."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in SCALARS:
        return SCALARS[hint]
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(values(arg) for arg in args))
    if origin is tuple:
        return st.lists(values(args[0]), max_size=4).map(tuple)
    if origin is frozenset:
        return st.frozensets(values(args[0]))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    return instances(hint)


class NamedPolicy:
    """A policy that is known by the text it was built from."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = "named"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedPolicy) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


REPLACED = st.text().map(lambda text: messages.PolicyReplaced(typing.cast(Any, NamedPolicy(text)), text))


def instances(cls: type) -> st.SearchStrategy[Any]:
    """Any instance of a dataclass, by its field types."""
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{field.name: values(hints[field.name]) for field in dataclasses.fields(cls)})


@pytest.mark.parametrize("name", FACTS)
def test_every_fact_type_survives_json(name: str) -> None:
    """Whatever its fields hold, a fact that is read back equals the one that was written."""
    cls = FACTS[name]

    @settings(deadline=None)  # a machine that is busy elsewhere is no failure
    @given(REPLACED if cls is messages.PolicyReplaced else instances(cls))
    def survives(fact: Any) -> None:
        line = json.dumps(tagged(fact))
        back = FactReader(typing.cast(Any, NamedPolicy)).read(json.loads(line))
        assert back == fact
        assert type(back) is cls
        assert json.dumps(tagged(back)) == line  # to the digit, an int in a float field included

    survives()


def test_the_tables_hold_all_facts_and_actions() -> None:
    """A new message is recorded without a change here."""
    assert {"RequestArrived", "DrainStarted", "PolicyOverran"} <= FACTS.keys()
    assert {"StartPrefill", "NotePolicyFault"} <= ACTIONS.keys()
    assert len(FACTS) == len(typing.get_args(messages.Fact))


def test_defaults_are_left_out() -> None:
    """Most fields of most facts hold them; a recording is read by people too."""
    assert to_json(Request("r", "m", 3, 4)) == {
        "id": "r",
        "model": "m",
        "prompt_tokens": 3,
        "max_new_tokens": 4,
    }


def test_infinity_is_a_string() -> None:
    """JSON has no infinity; Python's own extension would make files others cannot read."""
    text = json.dumps(to_json(handle()), allow_nan=False)
    assert json.loads(text)["expires_at"] == 40.0
    forever = dataclasses.replace(handle(), expires_at=float("inf"))
    assert to_json(forever)["expires_at"] == "inf"


def test_what_no_recording_holds_is_refused() -> None:
    """An object of an unknown type is an error, not its repr."""
    with pytest.raises(TypeError, match="set"):
        to_json({"x": {1, 2}})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "one object"),
        ({"RequestArrived": {}, "DrainStarted": {}}, "one object"),
        ({"os.system": {}}, "not a fact of this version"),
        ({"BackendLost": {}}, "cannot be read"),
        ({"BackendLost": {"backend": 5}}, "not a str"),
        ({"BackendLost": {"backend": "a", "extra": 1}}, "no extra"),
        ({"BackendLost": 7}, "cannot be read"),
        ({"KVMoved": {"request_id": "a", "epoch": True, "moved_bytes": 1}}, "not a int"),
        ({"PolicyOverran": {"duration_s": "soon"}}, "soon"),
        ({"RequestCancelled": {"request_id": "a", "reason": "WHIM"}}, "WHIM"),
        ({"PolicyReplaced": {"text": "x"}}, "give the function"),
    ],
)
def test_damage_is_a_typed_error(value: Any, says: str) -> None:
    """A recording comes from a disk, or from somebody else."""
    with pytest.raises(RecordingError, match=says):
        FactReader().read(value)


def test_the_digest_depends_on_every_field_and_on_order() -> None:
    """Two answers with the same digest are the same answer."""
    one = messages.NoteDecision("r1", DECISION)
    two = messages.NoteDecision("r2", DECISION)
    other = Decision("predicted", "earliest_finish", (Candidate("a", "b", 1.0, {"queue": 0.5}),))
    assert digest([one, two]) != digest([two, one])
    assert digest([one]) != digest([messages.NoteDecision("r1", other)])
    assert digest([messages.FinishRequest("r1", report(request()))]) == digest(
        [messages.FinishRequest("r1", report(request()))]
    )


def test_every_action_can_be_digested() -> None:
    """Actions hold values of the same closed types."""

    @given(st.one_of(*(instances(cls) for cls in ACTIONS.values() if cls.__name__.startswith("St"))))
    def digests(action: Any) -> None:
        assert len(digest([action])) == 16

    digests()
    assert len(digest([messages.FailRequest("r", Reason.SHED, "m", 1.0, report(request()))])) == 16
