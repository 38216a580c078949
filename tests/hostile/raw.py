"""HTTP/2 by hand: frames that no gRPC library would send, and an understanding of what comes back.

RFC 9113 (frames) and RFC 7541 (header compression, by the hpack package).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import hpack

from tests.live.wires import END_HEADERS, END_STREAM, PREFACE, frame

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0,
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    9,
)
ACK, PADDED, PRIORITISED = 0x1, 0x8, 0x20
GENERATE = "/polyphase.v1.InferenceService/Generate"
LIMIT_S = 10.0
"""For an answer. The router promises about one second; a machine that others use may take longer."""
Headers = Sequence[tuple[str | bytes, str | bytes]]
START = PREFACE + frame(SETTINGS, 0, 0, b"")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a stream ended: with a gRPC status, with a reset, or with its connection."""

    status: int | None = None
    message: str = ""
    reset: int | None = None
    goaway: int | None = None
    closed: bool = False

    @property
    def typed(self) -> bool:
        """Whether the client was told a status."""
        return self.status is not None


def call_headers(
    path: str = GENERATE, more: Headers = (), **changed: str
) -> list[tuple[str | bytes, str | bytes]]:
    """The headers of a gRPC call; `changed` replaces some by name, with _ for -."""
    fields: dict[str, str] = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
    fields |= {"te": "trailers", "content-type": "application/grpc"}
    fields |= {name.replace("_", "-"): value for name, value in changed.items()}
    return [*fields.items(), *more]


def envelope(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """A message with gRPC's prefix, truthful unless told otherwise."""
    return bytes((flag,)) + struct.pack(">I", len(message) if length is None else length) + message


class Connection:
    """One connection. Streams end in an Outcome; windows of both sides are looked after."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, polite: bool) -> None:
        """A polite one acknowledges settings and pings."""
        self._polite = polite
        self._settled = False
        self._reader = reader
        self._writer = writer
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._decoder.max_header_list_size = 1 << 20
        self._windows: dict[int, int] = {0: 65_535}
        self._initial_window = 65_535
        self._changed = asyncio.Event()
        self.statuses: dict[int, Outcome] = {}
        self.data: dict[int, bytes] = {}
        self.goaway: int | None = None
        self.closed = False
        self._reading = asyncio.create_task(self._read())

    # --- sending ---

    async def send(self, *parts: bytes) -> None:
        """Write bytes as they are."""
        for part in parts:
            if self.closed:
                return  # the outcome says so
            self._writer.write(part)
            try:
                await self._writer.drain()
            except ConnectionError:
                self._close()

    async def headers(self, stream: int, fields: Headers, flags: int = END_HEADERS) -> None:
        """Open a stream; more than 16 KiB of headers go on in CONTINUATION frames."""
        block = self._encoder.encode(fields, huffman=False)
        first, rest = block[:16_384], block[16_384:]
        if not rest:
            await self.send(frame(HEADERS, flags, stream, block))
            return
        await self.send(frame(HEADERS, flags & ~END_HEADERS, stream, first))
        while rest:
            part, rest = rest[:16_384], rest[16_384:]
            await self.send(frame(CONTINUATION, 0 if rest else END_HEADERS, stream, part))

    async def message(self, stream: int, data: bytes, end: bool = True) -> None:
        """Send data as far as the windows allow, in turn with the other side's updates."""
        self._windows.setdefault(stream, self._initial_window)
        while data and stream not in self.statuses and not self.closed:
            room = min(self._windows[0], self._windows[stream], 16_384, len(data))
            if room <= 0:
                await self._change()
                continue
            part, data = data[:room], data[room:]
            self._windows[0] -= room
            self._windows[stream] -= room
            await self.send(frame(DATA, END_STREAM if end and not data else 0, stream, part))

    async def call(self, stream: int, data: bytes, *, end: bool = True, **changed: str) -> None:
        """A call with these bytes as its body."""
        await self.headers(stream, call_headers(**changed))
        await self.message(stream, data, end)

    async def end_stream(self, stream: int) -> None:
        """Say that nothing more comes."""
        await self.send(frame(DATA, END_STREAM, stream, b""))

    # --- waiting ---

    async def pause(self, limit_s: float) -> None:
        """Let some time pass, or something come in."""
        try:
            async with asyncio.timeout(limit_s):
                await self._change()
        except TimeoutError:
            return

    async def outcome(self, stream: int, limit_s: float = LIMIT_S) -> Outcome:
        """How a stream ends."""
        async with asyncio.timeout(limit_s):
            while stream not in self.statuses and not self.closed:
                await self._change()
        return self.statuses.get(stream) or Outcome(goaway=self.goaway, closed=True)

    async def end(self, limit_s: float = LIMIT_S) -> Outcome:
        """Wait until the other side has closed the connection."""
        async with asyncio.timeout(limit_s):
            while not self.closed:
                await self._change()
        return Outcome(goaway=self.goaway, closed=True)

    async def told_off(self, limit_s: float = LIMIT_S) -> Outcome:
        """Wait until the other side has said goodbye or closed."""
        async with asyncio.timeout(limit_s):
            while not self.closed and self.goaway is None:
                await self._change()
        return Outcome(goaway=self.goaway, closed=self.closed)

    async def settled(self) -> None:
        """Wait until the other side's settings are in force: some of its limits begin only then."""
        async with asyncio.timeout(LIMIT_S):
            while not self._settled and not self.closed:
                await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # --- receiving ---

    async def _read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(9)
                size = int.from_bytes(head[:3], "big")
                stream = int.from_bytes(head[5:], "big") & 0x7FFF_FFFF
                await self._take(head[3], head[4], stream, await self._reader.readexactly(size))
                self._changed.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            self._close()

    def _close(self) -> None:
        self.closed = True
        self._changed.set()

    async def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS:
            self._headers(stream, payload)
        elif kind == DATA:
            self.data[stream] = self.data.get(stream, b"") + payload
        elif kind == RST_STREAM:
            self.statuses.setdefault(stream, Outcome(reset=int.from_bytes(payload, "big")))
        elif kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8], "big")
        elif kind == WINDOW_UPDATE:
            grown = self._windows.get(stream, self._initial_window) + int.from_bytes(payload, "big")
            self._windows[stream] = grown
        elif kind == SETTINGS and not flags & ACK:
            self._settings(payload)
            await self._answer(frame(SETTINGS, ACK, 0, b""))
            self._settled = True
        elif kind == PING and not flags & ACK:
            await self._answer(frame(PING, ACK, 0, payload))

    async def _answer(self, reply: bytes) -> None:
        if self._polite:
            await self.send(reply)

    def _headers(self, stream: int, block: bytes) -> None:
        fields = dict(self._decoder.decode(block))
        if "grpc-status" in fields:
            outcome = Outcome(status=int(fields["grpc-status"]), message=fields.get("grpc-message", ""))
            self.statuses.setdefault(stream, outcome)
        elif fields.get(":status", "200") != "200":
            self.statuses.setdefault(stream, Outcome(reset=0, message=f"HTTP {fields[':status']}"))

    def _settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            key, value = struct.unpack(">HI", payload[at : at + 6])
            if key == 4:
                grown = value - self._initial_window
                self._initial_window = value
                self._windows |= {s: w + grown for s, w in self._windows.items() if s}

    async def close(self) -> None:
        """Reset the connection."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.transport.abort()


@asynccontextmanager
async def connection(port: int, first: bytes = START, *, polite: bool = True) -> AsyncIterator[Connection]:
    """A connection. A polite one has exchanged settings as HTTP/2 wants it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    made = Connection(reader, writer, polite)
    try:
        await made.send(first)
        if polite:
            await made.settled()
        yield made
    finally:
        await made.close()
