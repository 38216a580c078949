"""Connections that were opened before all other tests, and never spoke HTTP/2."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.hostile.victim import Victim

pytestmark = pytest.mark.process

SETTINGS_TIMEOUT_S = 10.0
"""As in router.grpc_options."""


@pytest.mark.parametrize("listener", ["data", "admin"])
@pytest.mark.parametrize("said", ["nothing", "half a preface", "a preface", "settings, unacknowledged"])
async def test_a_connection_that_does_not_speak_is_closed(victim: Victim, listener: str, said: str) -> None:
    """Ten seconds for the handshake of HTTP/2: whoever holds sockets for nothing holds them no longer."""
    squatter = victim.squatters[listener, said]
    async with asyncio.timeout(3 * SETTINGS_TIMEOUT_S):
        await asyncio.get_running_loop().run_in_executor(None, _drain, squatter)


def _drain(squatter: socket.socket) -> None:
    squatter.settimeout(3 * SETTINGS_TIMEOUT_S)
    try:
        while squatter.recv(65_536):
            pass
    except ConnectionError:
        return  # closed with a reset: as good
