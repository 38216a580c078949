"""Channels of the suite: each call on a connection of its own, that is up before the call begins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import grpc
import grpc.aio

from backends.conformance.patience import within
from backends.conformance.verdicts import ViolationError
from router.grpc_options import channel_options
from router.model import Seconds

CONNECT_S: Final[Seconds] = 15.0
"""A worker that restarts needs a moment; one that is not there is told within this."""

MAX_SEND_BYTES: Final = 16 << 20
"""Above what workers take: the suite sends messages that are too large on purpose."""


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel that is up. Raises ViolationError when nobody answers."""
    limits = {"grpc.max_send_message_length": MAX_SEND_BYTES}
    options = list({**dict(channel_options()), **limits}.items())
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        try:
            await within(channel.channel_ready(), CONNECT_S)
        except TimeoutError:
            raise ViolationError(f"nobody answers at {address} within {CONNECT_S:g} s") from None
        yield channel
