"""Server-sent events out of bytes that arrive in any pieces. Pure.

After https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6: lines end in LF, CR or
CRLF, data lines of one event are joined by LF, an empty line ends an event, lines that begin with a colon are
comments. Only the data of events is of interest here.
"""

from __future__ import annotations

from typing import Final

from backends.engines.failures import broken

MAX_EVENT_BYTES: Final = 1 << 18
"""Of one event, its data and what has come of the next line: an engine's delta has a few hundred."""
_MARK: Final = b"\xef\xbb\xbf"


class EventParser:
    """Takes bytes and gives the data of the events that are complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self._at_start = True

    def feed(self, chunk: bytes) -> list[str]:
        """Data of the events that end in this chunk. Raises PhaseError for one too long, or no UTF-8."""
        text = self._rest + chunk
        if self._at_start:
            if _MARK.startswith(text[:3]) and len(text) < 3:
                self._rest = text
                return []
            text, self._at_start = text.removeprefix(_MARK), False
        lines, self._rest = _split(text)
        events = [event for line in lines if (event := self._line(line)) is not None]
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise broken(f"an event has more than {MAX_EVENT_BYTES} bytes")
        return events

    def _line(self, line: bytes) -> str | None:
        if not line:
            return self._end()
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
            if self._size > MAX_EVENT_BYTES:
                raise broken(f"an event has more than {MAX_EVENT_BYTES} bytes")
        return None

    def _end(self) -> str | None:
        if not self._data:
            return None
        data, self._data, self._size = b"\n".join(self._data), [], 0
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise broken("an event is not UTF-8") from None


def _split(text: bytes) -> tuple[list[bytes], bytes]:
    """Complete lines, and what is left. A CR at the very end may be half of a CRLF: it is left."""
    tail = b""
    if text.endswith(b"\r"):
        text, tail = text[:-1], b"\r"
    lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return lines[:-1], lines[-1] + tail
