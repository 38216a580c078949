"""Ways to reach a server that gRPC's client does not offer: raw HTTP/2 frames, and a connection to cut."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM, END_HEADERS = 0x1, 0x4
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16_384)]
"""Options of a client whose flow-control window does not grow: else half a megabyte fits into it unread."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def header(name: str, value: str) -> bytes:
    """A literal header without indexing or Huffman code (RFC 7541, section 6.2.2); up to 126 bytes each."""
    return b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


def call_headers(path: str, **more: str) -> bytes:
    """The headers of a gRPC call."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
    fields |= {"te": "trailers", "content-type": "application/grpc"}
    fields |= {name.replace("_", "-"): value for name, value in more.items()}
    return b"".join(header(name, value) for name, value in fields.items())


def opening(path: str, **more: str) -> bytes:
    """Everything up to the headers of a call on stream 1."""
    return PREFACE + frame(4, 0, 0, b"") + frame(1, END_HEADERS, 1, call_headers(path, **more))


async def send_raw(port: int, *parts: bytes, wait_s: float = 2.0) -> bytes:
    """Send bytes; return what comes back until the server is quiet for a while or closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(wait_s):
            while chunk := await reader.read(65_536):
                received += chunk
                if b"grpc-status" in received:
                    break
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return received


@asynccontextmanager
async def cuttable(port: int) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A proxy in front of a port; setting the event resets its connections, as a dying machine would."""
    cut = asyncio.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        pumps = [
            asyncio.create_task(pump(reader, there_writer)),
            asyncio.create_task(pump(there_reader, writer)),
        ]
        cutting = asyncio.create_task(cut.wait())
        await asyncio.wait([*pumps, cutting], return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, there_writer):
            end.transport.abort()
        for task in (*pumps, cutting):
            task.cancel()
        await asyncio.gather(*pumps, cutting, return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], cut
    finally:
        cut.set()
        server.close()
        await asyncio.sleep(0.05)
