"""Fixtures of the northbound tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.live.rig import Rig, serve


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    """A front with default limits."""
    async with serve() as rig:
        yield rig
