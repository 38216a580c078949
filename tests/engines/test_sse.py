"""The parser of server-sent events against bytes that arrive in any pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.engines.failures import PhaseError
from backends.engines.sse import MAX_EVENT_BYTES, EventParser
from router.errors import Reason

STREAM = (
    b'\xef\xbb\xbf: hello\r\n\r\nevent: x\r\ndata: {"a":1}\r\nid: 7\r\n\r\n'
    b"data:one\ndata: two\ndata\n\n:\n\nretry: 3\n\n\n\ndata: \xc3\xa4\n\ndata: [DONE]\n\n"
)
EVENTS = ['{"a":1}', "one\ntwo\n", "ä", "[DONE]"]


def _all(parts: list[bytes]) -> list[str]:
    parser = EventParser()
    return [event for part in parts for event in parser.feed(part)]


def test_events_of_every_form() -> None:
    """A byte order mark, comments, other fields, CRLF, data of several lines, and UTF-8."""
    assert _all([STREAM]) == EVENTS


def test_byte_by_byte() -> None:
    """No event is lost or split when every byte comes alone, a CRLF and a character in two."""
    assert _all([STREAM[i : i + 1] for i in range(len(STREAM))]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_any_cuts(cuts: list[int]) -> None:
    """The events do not depend on where the network cuts the stream."""
    edges = [0, *sorted(cuts), len(STREAM)]
    assert _all([STREAM[a:b] for a, b in pairwise(edges)]) == EVENTS


def test_lines_that_end_in_cr_alone() -> None:
    """An old form that the standard allows; the event comes with the next byte."""
    assert _all([b"data: x\r\r", b"data: y\r\r", b":"]) == ["x", "y"]


def test_an_event_without_its_end_is_none() -> None:
    """A stream that breaks off in an event does not deliver half of it."""
    assert _all([b'data: {"a":']) == []


@pytest.mark.parametrize("tail", [b"data: " + b"x" * MAX_EVENT_BYTES, b"data: " + b"x" * 70_000 + b"\n"])
def test_an_endless_event_is_refused(tail: bytes) -> None:
    """Neither one endless line nor endless lines fill the memory."""
    parser = EventParser()
    with pytest.raises(PhaseError) as caught:
        for _ in range(5):
            parser.feed(tail)
    assert caught.value.reason is Reason.BACKEND_BROKE_CONTRACT


def test_bytes_that_are_no_text_are_refused() -> None:
    """Broken UTF-8 is the engine's fault and says so."""
    with pytest.raises(PhaseError, match="UTF-8"):
        EventParser().feed(b"data: \xff\n\n")
