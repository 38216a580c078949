"""The policy in force: built at the start, replaced when its file changes or on SIGHUP.

A broken file never takes the last good policy out of force; at the first start there is none, and the
daemon refuses to start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router.core.messages import Fact, PolicyReplaced
from router.core.ports import Policy
from router.errors import ConfigError
from router.model import Seconds

log = logging.getLogger(__name__)

MAX_FILE_BYTES: Final = 1 << 20
"""A larger file is taken for a mistake and not read."""
POLL_S: Final[Seconds] = 1.0

Build = Callable[[str], Policy]
"""Policy file text -> policy. Raises ConfigError."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy and the text it was built from."""

    policy: Policy
    text: str


def load(path: Path, build: Build) -> Loaded:
    """Read and build. Raises ConfigError that names the file."""
    text = _read(path)
    try:
        return Loaded(build(text), text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from error


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise ConfigError(
                f"{path} is larger than {MAX_FILE_BYTES} bytes; it was not read; name a policy file"
            )
        return raw.decode()
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; no policy was read from it; name a readable file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text; it was not read; save it as UTF-8") from error


class PolicyWatch:
    """Follows one policy file. `poke` makes it look at once, whatever the file's times say."""

    def __init__(
        self,
        path: Path,
        build: Build,
        tell: Callable[[Fact], None],
        reloaded: Callable[[bool], None],
        poll_s: Seconds = POLL_S,
    ) -> None:
        """`reloaded` hears whether a reload succeeded; a file that did not change is no reload."""
        self._path = path
        self._build = build
        self._tell = tell
        self._reloaded = reloaded
        self._poll_s = poll_s
        self._poked = asyncio.Event()
        self._seen = _signature(path)

    def poke(self) -> None:
        """Reload now."""
        self._poked.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._pause()
            seen = _signature(self._path)
            if self._poked.is_set() or seen != self._seen:
                self._poked.clear()
                self._seen = seen
                self._reload()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._poll_s):
                await self._poked.wait()
        except TimeoutError:
            return

    def _reload(self) -> None:
        try:
            loaded = load(self._path, self._build)
        except ConfigError as error:
            self._keep(error.message)
        except Exception:
            # A supervision point: a policy's constructor is plugged-in code.
            log.exception("a policy's constructor failed")
            self._keep(f"{self._path} names a policy that cannot be built")
        else:
            self._tell(PolicyReplaced(loaded.policy, loaded.text))
            log.info("policy %s reloaded from %s", loaded.policy.name, self._path)
            self._reloaded(True)

    def _keep(self, why: str) -> None:
        log.error("policy not reloaded: %s. The policy before it stays in force.", why)
        self._reloaded(False)


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file is written, replaced or removed."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
