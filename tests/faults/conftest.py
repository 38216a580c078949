"""After every test the event loop is as it was before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from tests.faults.client import eventually


@pytest_asyncio.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """A task that outlives what started it is a leak, in the router or in the mock workers."""
    before = asyncio.all_tasks()
    yield
    mine = {asyncio.current_task()}
    await eventually(lambda: not asyncio.all_tasks() - before - mine, "a task is left on the loop")
