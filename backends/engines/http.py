"""HTTP to one engine: bounded in time and size, without redirects, proxies or cookies, TLS verified.

The only file that knows aiohttp. What goes wrong becomes a PhaseError; closing an answer before its end is
how work is aborted at every engine that speaks HTTP.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from backends.engines.failures import PhaseError, broken, error_body, refusal
from backends.engines.sse import EventParser
from router.errors import Reason
from router.model import Seconds

MAX_BODY_BYTES: Final = 1 << 20
"""Of an answer that is read as a whole: a probe, a prefill, an error."""
KEEP_ALIVE_S: Final[Seconds] = 4.0
"""Idle connections are closed earlier than uvicorn closes them (5 s by default, as vLLM and SGLang run it):
a request on a connection that the engine is closing would be lost."""
_READ_OVER_S: Final[Seconds] = 0.2
_READ_OVER_BYTES: Final = 4096
_EVENTS: Final = "text/event-stream"
_TRACE: Final = "X-Request-Id"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine is, and how to be let in."""

    url: str
    """Without a slash at its end."""
    headers: Mapping[str, str]
    """Sent with every request; may hold a credential, so it is never logged."""
    ca_file: Path | None = None
    """Certificates to trust instead of the system's."""

    def __repr__(self) -> str:
        return f"Place({self.url!r})"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an engine may take, in seconds."""

    connect_s: Seconds = 5.0
    probe_s: Seconds = 5.0
    answer_s: Seconds = 600.0
    """Until the first token, or the whole answer of a prefill: a bound of last resort, as the router watches
    prefills by their predicted time."""
    stall_s: Seconds = 10.0
    """Between tokens, and from the last one to the end of the answer."""


class HttpEngine:
    """A client of one engine, within `opened`."""

    def __init__(self, place: Place, patience: Patience, session: aiohttp.ClientSession) -> None:
        self.patience = patience
        self._url = place.url
        self._session = session

    async def probe(self, path: str) -> None:
        """GET a path; raise PhaseError unless the answer is 200."""
        try:
            async with (
                asyncio.timeout(self.patience.probe_s),
                self._session.get(self._url + path, allow_redirects=False) as response,
            ):
                await response.content.read(MAX_BODY_BYTES)
                if response.status != 200:
                    raise refusal(response.status)
        except TimeoutError:
            text = f"it did not answer {path} within {self.patience.probe_s:g} s"
            raise PhaseError(Reason.BACKEND_STALLED, text) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(error) from None

    async def get(self, path: str) -> Any:
        """GET a JSON document."""
        async with self._asked("GET", path, None, "", self.patience.probe_s) as response:
            return _json(await _body(response, self.patience.probe_s))

    async def post(self, path: str, body: Mapping[str, Any], trace: str) -> Any:
        """POST, and wait for the whole answer. `trace` names the request to the engine."""
        async with self._asked("POST", path, body, trace, self.patience.answer_s) as response:
            answer = _json(await _body(response, self.patience.answer_s))
        if (failure := error_body(answer)) is not None:
            raise failure
        return answer

    async def stream(
        self, path: str, body: Mapping[str, Any], trace: str, take: Callable[[str], bool]
    ) -> None:
        """POST, and hand over the data of each event of the answer until `take` says that it was the last.

        The first event is waited for `answer_s`, the others `stall_s`; comments do not count, so that an
        engine that only keeps the connection alive is found out. What comes after the last is read over, for
        a moment: a connection is used again only when its answer was read to the end.
        """
        parser = EventParser()
        async with self._asked("POST", path, body, trace, self.patience.answer_s) as response:
            if response.content_type != _EVENTS:
                answer = _json(await _body(response, self.patience.answer_s))
                raise error_body(answer) or broken("it is no stream of events")
            try:
                async with asyncio.timeout(self.patience.answer_s) as limit:
                    async for chunk in response.content.iter_any():
                        for data in parser.feed(chunk):
                            if take(data):
                                await _read_over(response)
                                return
                            limit.reschedule(_loop_time() + self.patience.stall_s)
            except TimeoutError:
                raise PhaseError(
                    Reason.BACKEND_STALLED, "the engine's answer stalled", suspect=True
                ) from None

    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, body: Mapping[str, Any] | None, trace: str, limit_s: Seconds
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask, and check the status. The answer is closed at the end, read or not."""
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json"} | ({_TRACE: trace} if trace else {})
        try:
            async with asyncio.timeout(limit_s):
                response = await self._session.request(
                    method, self._url + path, data=data, headers=headers, allow_redirects=False
                )
        except TimeoutError:
            raise PhaseError(Reason.BACKEND_STALLED, "the engine did not answer", suspect=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(error) from None
        try:
            async with response:
                if response.status != 200:
                    raise refusal(response.status, _json_or_none(await _body(response, limit_s)))
                yield response
        except (aiohttp.ClientError, OSError) as error:
            text = f"the engine's answer broke off ({type(error).__name__})"
            raise PhaseError(Reason.BACKEND_LOST, text, suspect=True) from None


@asynccontextmanager
async def opened(place: Place, patience: Patience) -> AsyncIterator[HttpEngine]:
    """A client of an engine, closed at the end with all that runs on it."""
    # The system's certificates take a file read of some milliseconds.
    tls = await asyncio.to_thread(_tls, place.ca_file) if place.url.startswith("https:") else True
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ssl=tls),
        headers=dict(place.headers),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=patience.connect_s),
        trust_env=False,
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
    ) as session:
        yield HttpEngine(place, patience, session)


async def _read_over(response: aiohttp.ClientResponse) -> None:
    try:
        async with asyncio.timeout(_READ_OVER_S):
            await response.content.read(_READ_OVER_BYTES)
    except TimeoutError:
        return


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))


def _loop_time() -> Seconds:
    return asyncio.get_running_loop().time()


def _unreachable(error: Exception) -> PhaseError:
    text = f"the engine cannot be reached ({type(error).__name__})"
    return PhaseError(Reason.BACKEND_LOST, text, suspect=True)


async def _body(response: aiohttp.ClientResponse, limit_s: Seconds) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limit_s):
            async for part in response.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise broken(f"it has more than {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise PhaseError(Reason.BACKEND_STALLED, "the engine's answer stalled", suspect=True) from None
    return b"".join(parts)


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise broken("it is not JSON") from None


def _json_or_none(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
