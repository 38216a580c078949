"""The southbound port: what the router asks of anything that backends are reached through.

Two kinds satisfy it: a lane to a worker over gRPC (router.live.lane), and an adapter that speaks an engine's
own protocol from within the router's process (backends/engines). The live shell knows no engine by name; the
composition root gives it an `Opener` for each backend of the configuration that has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from router.core.messages import StartDecode, StartPrefill, StopPhase
from router.live.flow import Flow
from router.live.lane import LaneContext
from router.model import KVHandle, Seconds


class Work(Protocol):
    """What a connected backend carries out. Methods queue and return: they never wait and never raise.

    What follows is told as facts: PrefillDone, KVMoved and DecodeDone, or one PhaseFailed. Tokens go to the
    flow, in the action's epoch, and a phase whose epoch the flow has left is stopped.
    """

    def start_prefill(self, action: StartPrefill, flow: Flow) -> None:
        """Compute the prompt's KV; with decode_here, go on to decode."""
        ...

    def start_decode(self, action: StartDecode, flow: Flow, now: Seconds) -> None:
        """Take the KV over and decode from flow.next_index on."""
        ...

    def stop_phase(self, action: StopPhase) -> None:
        """Stop an epoch, if it is still at work."""
        ...

    def release_kv(self, handle: KVHandle, now: Seconds) -> None:
        """Free KV that nobody will pull."""
        ...


class Link(Protocol):
    """The connection to one backend over its life. `work` is None while it is down.

    It tells BackendJoined for each connection and BackendLost for its end, each once; a connection to a
    backend that has restarted has another incarnation.
    """

    closing: bool
    """Set before the task of `run` is cancelled."""

    @property
    def backend(self) -> str:
        """The backend's id."""
        ...

    @property
    def address(self) -> str:
        """Where it is, for people to read."""
        ...

    @property
    def work(self) -> Work | None:
        """Where to send actions; None while there is no connection."""
        ...

    @property
    def down_since(self) -> Seconds | None:
        """Loop time since when there has been no connection; None while there is one."""
        ...

    @property
    def trouble(self) -> str:
        """Why the last attempt to connect, or connection, ended."""
        ...

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        ...

    async def run(self) -> None:
        """Connect, and again after every loss, until cancelled. Ends in no other way."""
        ...


Opener = Callable[[str, str, LaneContext], Link]
"""Makes the link to a backend out of its id, its address, and what all links share. Does no I/O."""
