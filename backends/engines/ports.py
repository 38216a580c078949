"""What an adapter to an engine is: the one thing to write for another engine.

An adapter speaks the engine's protocol. Everything else is done for it: its life (lane.py), its requests
(work.py), their facts and tokens (leg.py), HTTP (http.py), and what failures mean (failures.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from backends.engines.leg import Leg
from router.model import KVHandle


class Engine(Protocol):
    """One engine, reached. Every wait has a deadline; failures are PhaseErrors; cancelling stops the work."""

    async def probe(self) -> None:
        """Return when the engine serves; raise PhaseError, with the reason to show, when it does not."""
        ...

    async def serve(self, leg: Leg, incarnation: str) -> None:
        """Carry out one phase: all of it, to `leg.finish`, or a prefill to `leg.prefilled`.

        `incarnation` is this connection's; a KV handle made here bears it.
        """
        ...

    async def release(self, kv: KVHandle) -> None:
        """Free KV that nobody will take over; an engine that frees it only by itself does nothing."""
        ...


OpenEngine = Callable[[], AbstractAsyncContextManager[Engine]]
"""Opens what an engine needs for as long as the context lasts. Reads credentials anew each time."""
