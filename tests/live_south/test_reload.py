"""The policy file: first load, changes, broken files, SIGHUP's poke."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router.core.messages import PolicyReplaced
from router.core.ports import Policy
from router.errors import ConfigError
from router.live.reload import MAX_FILE_BYTES, PolicyWatch, load
from tests.live_south.scripted import Facts


class Named:
    """As much of a policy as a reload needs."""

    def __init__(self, name: str) -> None:
        self.name = name


def build(text: str) -> Policy:
    """Text that says "bad" is refused, "bug" fails in an unforeseen way."""
    if "bad" in text:
        raise ConfigError("weight is NaN; give a number")
    if "bug" in text:
        raise ZeroDivisionError
    return Named(text)  # type: ignore[return-value]


class Desk:
    """A watched file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts = Facts()
        self.outcomes: list[bool] = []
        path.write_text("one")
        self.watch = PolicyWatch(path, build, self.facts.tell, self.outcomes.append, poll_s=0.05)

    async def outcome(self, count: int) -> bool:
        """Wait for the count-th reload."""
        async with asyncio.timeout(10):
            while len(self.outcomes) < count:
                await asyncio.sleep(0.01)
        return self.outcomes[count - 1]


@asynccontextmanager
async def watching(path: Path) -> AsyncIterator[Desk]:
    """A desk whose watch runs."""
    desk = Desk(path)
    running = asyncio.create_task(desk.watch.run())
    try:
        yield desk
    finally:
        running.cancel()


async def test_a_change_is_followed(tmp_path: Path) -> None:
    """A new text becomes a new policy, with the text for replay."""
    async with watching(tmp_path / "policy.toml") as desk:
        desk.path.write_text("two two")
        assert await desk.outcome(1)
        [fact] = desk.facts.of(PolicyReplaced)
        assert (fact.policy.name, fact.text) == ("two two", "two two")


@pytest.mark.parametrize("text", ["bad", "bug", None])
async def test_a_broken_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    """A broken or missing file is logged and counted once; the next good one counts again."""
    async with watching(tmp_path / "policy.toml") as desk:
        if text is None:
            desk.path.unlink()
        else:
            desk.path.write_text(text)
        assert not await desk.outcome(1)
        await asyncio.sleep(0.3)
        assert desk.outcomes == [False]
        assert desk.facts.all == []
        assert any("stays in force" in record.getMessage() for record in caplog.records)
        desk.path.write_text("three")
        assert await desk.outcome(2)


async def test_a_poke_reloads_what_did_not_change(tmp_path: Path) -> None:
    """SIGHUP reads the file whatever its times say."""
    async with watching(tmp_path / "policy.toml") as desk:
        await asyncio.sleep(0.2)
        assert desk.outcomes == []
        desk.watch.poke()
        assert await desk.outcome(1)


async def test_an_atomic_replacement_with_the_old_time_is_noticed(tmp_path: Path) -> None:
    """Deployment tools move files into place and keep their times; the inode tells."""
    async with watching(tmp_path / "policy.toml") as desk:
        stat = desk.path.stat()
        fresh = tmp_path / "fresh"
        fresh.write_text("two")
        os.utime(fresh, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        fresh.rename(desk.path)
        assert await desk.outcome(1)


def test_the_first_load_refuses_broken_files(tmp_path: Path) -> None:
    """Without a last good policy there is no start; the message names the file."""
    path = tmp_path / "policy.toml"
    cases = {
        "missing": lambda: None,
        "bad": lambda: path.write_text("bad"),
        "large": lambda: path.write_bytes(b"x" * (MAX_FILE_BYTES + 1)),
        "binary": lambda: path.write_bytes(b"\xff\xfe\x00"),
    }
    for prepare in cases.values():
        prepare()
        with pytest.raises(ConfigError) as caught:
            load(path, build)
        assert str(path) in caught.value.message
