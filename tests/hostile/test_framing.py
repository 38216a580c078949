"""Broken bytes, frames and messages on the data port of a real router."""

from __future__ import annotations

import asyncio
import struct
import zlib

import pytest

from tests.hostile.raw import (
    CONTINUATION,
    DATA,
    GENERATE,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Outcome,
    call_headers,
    connection,
    envelope,
)
from tests.hostile.victim import Victim
from tests.live.wires import END_HEADERS, END_STREAM, PREFACE, frame
from tests.shell.rig import request

pytestmark = pytest.mark.process

OK, INVALID, LATE, EXHAUSTED, INTERNAL = 0, 3, 4, 8, 13
BODY = request("raw", 4).SerializeToString()
NOT_HTTP2 = [
    ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200))),
    ("noise", bytes(range(256)) * 4),
    ("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n"),
]


@pytest.mark.parametrize("noise", [each for _, each in NOT_HTTP2], ids=[name for name, _ in NOT_HTTP2])
async def test_bytes_that_are_no_http2_end_the_connection(victim: Victim, noise: bytes) -> None:
    """Whoever speaks another protocol is hung up on, at once."""
    async with connection(victim.port, noise, polite=False) as raw:
        assert (await raw.end()).closed


def bomb() -> bytes:
    """A megabyte of gzip that unpacks to a gigabyte."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = pack.compress(bytes(1 << 20)) + pack.flush(zlib.Z_FULL_FLUSH)
    again = pack.compress(bytes(1 << 20)) + pack.flush(zlib.Z_FULL_FLUSH)
    return first + again * 1023 + pack.flush()  # its checksum is wrong, far behind where unpacking must end


MESSAGES: list[tuple[str, bytes, dict[str, str], int]] = [
    ("a message cut short", envelope(BODY)[:10], {}, INVALID),
    ("a length of 4 GiB", envelope(b"x", length=0xFFFF_FFFF), {}, EXHAUSTED),
    ("5 MiB", envelope(bytes(5 << 20)), {}, EXHAUSTED),
    ("an empty message", envelope(b""), {}, INVALID),
    ("compressed by nothing", envelope(BODY, 1), {}, INTERNAL),
    ("a flag of 255", envelope(BODY, 0xFF), {}, INVALID),
    ("an unknown encoding", envelope(BODY, 1), {"grpc_encoding": "lzma"}, INTERNAL),
    ("broken gzip", envelope(b"not gzip", 1), {"grpc_encoding": "gzip"}, INTERNAL),
    ("two messages", envelope(BODY) * 2, {}, OK),
    ("random bytes", envelope(bytes(range(255, 100, -1))), {}, INVALID),
    ("groups nested 10,000 deep", envelope(b"\xfb\x01" * 10_000 + b"\xfc\x01" * 10_000), {}, INVALID),
    ("a group without an end", envelope(BODY + b"\xfb\x01"), {}, INVALID),
    ("text that is not UTF-8", envelope(b"\x12\x02\xff\xfe" + BODY), {}, INVALID),
    ("tokens and text", envelope(BODY + b"\x22\x01x"), {}, INVALID),
    ("a varint of eleven bytes", envelope(b"\x28" + b"\xff" * 11), {}, INVALID),
    ("3 MiB of unknown fields", envelope(BODY + b"\xfa\x7f\x80\x80\xc0\x01" + bytes(3 << 20)), {}, OK),
    ("a token id of -1", envelope(BODY + b"\x1a\x0c\x0a\x0a" + b"\xff" * 9 + b"\x01"), {}, INVALID),
]


@pytest.mark.parametrize(
    ("body", "changed", "status"), [each[1:] for each in MESSAGES], ids=[each[0] for each in MESSAGES]
)
async def test_a_broken_message_gets_a_status(
    victim: Victim, body: bytes, changed: dict[str, str], status: int
) -> None:
    """The call ends typed, and the connection serves the next one."""
    async with connection(victim.port) as raw:
        await raw.call(1, body, **changed)
        outcome = await raw.outcome(1)
        assert outcome.status == status, outcome
        assert "Traceback" not in outcome.message
        await raw.call(3, envelope(BODY))
        assert (await raw.outcome(3)).status == OK


async def test_a_decompression_bomb_is_not_unpacked(victim: Victim) -> None:
    """A megabyte that would become a gigabyte ends at the message limit."""
    async with connection(victim.port) as raw:
        await raw.call(1, envelope(bomb(), 1), grpc_encoding="gzip")
        assert (await raw.outcome(1)).status == EXHAUSTED


async def test_a_call_without_a_message(victim: Victim) -> None:
    """END_STREAM where the request should be."""
    async with connection(victim.port) as raw:
        await raw.headers(1, call_headers(), END_HEADERS | END_STREAM)
        assert (await raw.outcome(1)).status == INVALID


async def test_a_half_sent_message_is_given_up(victim: Victim) -> None:
    """The first half, then silence: first_message_timeout_s ends it."""
    async with connection(victim.port) as raw:
        await raw.call(1, envelope(BODY)[: len(BODY) // 2], end=False)
        outcome = await raw.outcome(1)
        assert outcome.status == LATE and "no request message came" in outcome.message


async def test_a_message_byte_by_byte_is_given_up(victim: Victim) -> None:
    """Progress does not prolong the time for the first message."""
    async with connection(victim.port) as raw:
        await raw.headers(1, call_headers())
        for byte in envelope(BODY)[:-1]:
            await raw.message(1, bytes((byte,)), end=False)
            if 1 in raw.statuses:
                break
            await raw.pause(0.05)
        assert (await raw.outcome(1)).status == LATE


def update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


FRAMES: list[tuple[str, bytes]] = [
    ("a window update of 0 on the stream", update(1, 0)),
    ("a window update of 0 on the connection", update(0, 0)),
    ("a stream window above 2**31", update(1, 0x7FFF_FFFF) * 2),
    ("a connection window above 2**31", update(0, 0x7FFF_FFFF) * 2),
    ("a short PRIORITY", frame(PRIORITY, 0, 1, b"abc")),
    ("a stream that depends on itself", frame(PRIORITY, 0, 1, struct.pack(">IB", 1, 1))),
    ("data on stream 0", frame(DATA, 0, 0, b"x")),
    ("data on a stream that was never opened", frame(DATA, 0, 99, b"x")),
    ("headers on an even stream", frame(HEADERS, END_HEADERS, 2, b"")),
    ("a reset of a stream that was never opened", frame(RST_STREAM, 0, 77, bytes(4))),
    ("a short RST_STREAM", frame(RST_STREAM, 0, 1, b"x")),
    ("settings of three bytes", frame(SETTINGS, 0, 0, b"abc")),
    ("settings on a stream", frame(SETTINGS, 0, 1, b"")),
    ("an initial window of 2**32 - 1", frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0xFFFF_FFFF))),
    ("a short PING", frame(PING, 0, 0, b"abc")),
    ("a frame above the size limit", frame(DATA, 0, 1, bytes(20_000))),
    ("padding longer than the frame", frame(DATA, PADDED, 1, b"\xff")),
    ("a CONTINUATION out of place", frame(CONTINUATION, END_HEADERS, 1, b"")),
    ("a push from the client", frame(5, END_HEADERS, 1, struct.pack(">I", 2))),
    ("broken header compression", frame(HEADERS, END_HEADERS, 3, b"\xff" * 6)),
    ("data after the end", frame(DATA, END_STREAM, 1, b"") + frame(DATA, 0, 1, b"x")),
]


async def after(victim: Victim, bad: bytes) -> Outcome:
    """How a call ends in which this frame comes."""
    async with connection(victim.port) as raw:
        await raw.headers(1, call_headers())
        await raw.send(bad)
        return await raw.outcome(1)


async def test_broken_frames_end_their_own_call_only(victim: Victim) -> None:
    """Frames that make a server reset streams of its own, all at the same time: each ends a call with a
    status or a reset, or its connection, and nobody else's."""
    async with connection(victim.port) as bystander:
        outcomes = await asyncio.gather(*(after(victim, bad) for _, bad in FRAMES))
        for (name, _), outcome in zip(FRAMES, outcomes, strict=True):
            assert outcome.typed or outcome.reset is not None or outcome.closed, (name, outcome)
            assert outcome.status != OK, name
        await bystander.call(1, envelope(BODY))
        assert (await bystander.outcome(1)).status == OK


async def test_a_reader_without_a_window_is_given_up(victim: Victim) -> None:
    """A window of 0 for ever: the answer piles up to its bound, then the request is cancelled."""
    gone = 'polyphase_cancels_total{reason="SLOW_READER",stage="decode"}'
    before = await victim.metric(gone)
    closed = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
    async with connection(victim.port, PREFACE + closed) as raw:
        await raw.call(1, envelope(request("deaf", 131_072).SerializeToString()))
        await victim.until(lambda: victim.metric(gone), before + 1)


async def test_methods_other_than_post(victim: Victim) -> None:
    """HTTP's other methods are reset or refused."""
    for method in ("GET", "PUT", "CONNECT", "PRI"):
        async with connection(victim.port) as raw:
            await raw.call(1, envelope(BODY), **{":method": method})
            outcome = await raw.outcome(1)
            assert outcome.reset is not None or outcome.status in (12, INTERNAL), (method, outcome)


async def test_content_types_that_are_not_grpc(victim: Victim) -> None:
    """What the message is decides, not what it is called: it is served as gRPC."""
    for kind in ("application/json", "application/grpc-web", "text/html"):
        async with connection(victim.port) as raw:
            await raw.call(1, envelope(BODY), content_type=kind)
            assert await raw.outcome(1) == Outcome(status=OK)
    assert GENERATE
