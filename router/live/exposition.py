"""The metrics listener: Prometheus scrapes over HTTP, in a few threads of their own.

It may be reachable by more than the data port is, so a client that opens connections and says nothing, or
says it slowly, holds a bounded number of threads for a bounded time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import AF_INET, AF_INET6, SHUT_RDWR, socket
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from router.address import HostPort
from router.model import Seconds

log = logging.getLogger(__name__)

REQUEST_S: Final[Seconds] = 10.0
"""For a whole request, from the connection to the last byte of the answer."""
CONNECTIONS: Final = 32
"""Open at a time; more are closed at once. A fleet has a handful of scrapers."""
_POLL_S: Final[Seconds] = 0.1
_JOIN_S: Final[Seconds] = 1.0


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class names it so)
        """Scrapes are not news."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128
    """Connections that the kernel keeps for us; with the default of 5 a burst waits for seconds."""

    def __init__(self, place: HostPort, request_s: Seconds) -> None:
        self.address_family = AF_INET6 if ":" in place.host else AF_INET
        self._request_s = request_s
        self._due: dict[socket, Seconds] = {}
        self._lock = threading.Lock()
        super().__init__((place.host, place.port), _Handler)

    def server_bind(self) -> None:
        """Bind without asking a name server who we are, as HTTPServer does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there is one left."""
        with self._lock:
            is_full = len(self._due) >= CONNECTIONS
            if not is_full:
                self._due[request] = time.monotonic() + self._request_s
        if is_full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The connection is over."""
        with self._lock:
            self._due.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Several times a second: end what takes too long; its thread wakes up and leaves."""
        now = time.monotonic()
        with self._lock:
            for connection, due in self._due.items():
                if due <= now:
                    _end(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left, or sent nonsense: not worth a traceback on standard error."""
        log.debug("a scrape failed", exc_info=True)


def _end(connection: socket) -> None:
    try:
        connection.shutdown(SHUT_RDWR)
    except OSError:
        return  # gone by itself


@asynccontextmanager
async def exposed(
    metrics: CollectorRegistry, place: HostPort, request_s: Seconds = REQUEST_S
) -> AsyncIterator[HostPort]:
    """Serve metrics; gives the address with the port that was taken. Raises OSError when it cannot bind."""
    server = _Server(place, request_s)
    server.set_app(make_wsgi_app(metrics))
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True)
    thread.start()
    try:
        yield HostPort(place.host, server.server_port)
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join(_JOIN_S)
