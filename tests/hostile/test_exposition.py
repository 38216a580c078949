"""The metrics listener by itself: its time limit, and its room, are given back."""

from __future__ import annotations

import asyncio
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge

from router.address import HostPort
from router.live.exposition import CONNECTIONS, exposed

ANYWHERE = HostPort("127.0.0.1", 0)


@pytest.fixture
def metrics() -> CollectorRegistry:
    """One series."""
    registry = CollectorRegistry()
    Gauge("answer", "To everything.", registry=registry).set(42)
    return registry


async def scrape(at: HostPort) -> str:
    """What a scraper gets."""
    return await asyncio.to_thread(_get, f"http://{at}/metrics")


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as response:  # noqa: S310  (our own listener)
        return str(response.read().decode())


async def drip(at: HostPort) -> float:
    """Send a header byte by byte; gives the seconds until the other side has had enough."""
    reader, writer = await asyncio.open_connection(at.host, at.port)
    start = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(20):
            while not reader.at_eof():
                writer.write(b"G")
                try:
                    async with asyncio.timeout(0.02):
                        await reader.read(1)
                except TimeoutError:
                    continue
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return asyncio.get_running_loop().time() - start


async def test_a_scrape(metrics: CollectorRegistry) -> None:
    """Metrics over HTTP; afterwards the port is free."""
    async with exposed(metrics, ANYWHERE) as at:
        assert "answer 42.0" in await scrape(at)
    async with exposed(metrics, at):
        assert "answer 42.0" in await scrape(at)


async def test_a_scraper_that_drips_is_cut_off(metrics: CollectorRegistry) -> None:
    """Progress does not prolong the time for a request."""
    async with exposed(metrics, ANYWHERE, request_s=0.3) as at:
        assert await drip(at) >= 0.2
        assert "answer 42.0" in await scrape(at)


async def test_room_is_given_back(metrics: CollectorRegistry) -> None:
    """While all places are held, others are turned away; when their time is over, others are served."""
    async with exposed(metrics, ANYWHERE, request_s=0.5) as at:
        held = [await asyncio.open_connection(at.host, at.port) for _ in range(CONNECTIONS)]
        for _, writer in held:
            writer.write(b"GET /metr")
        async with asyncio.timeout(20):
            for reader, _ in held:
                assert await reader.read() == b""
        assert "answer 42.0" in await scrape(at)
        for _, writer in held:
            writer.close()


async def test_a_port_in_use(metrics: CollectorRegistry) -> None:
    """The second listener says so, and the first one goes on."""
    async with exposed(metrics, ANYWHERE) as at:
        with pytest.raises(OSError, match="in use"):
            async with exposed(metrics, at):
                pass
        assert "answer 42.0" in await scrape(at)
