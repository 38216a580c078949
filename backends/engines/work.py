"""What runs at one engine: a task per phase, each a supervision point, and the account we keep of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from backends.engines.failures import PhaseError
from backends.engines.leg import Leg, StopAskedError
from backends.engines.meter import ShareMeter
from backends.engines.ports import Engine
from router.core.messages import Fact, PhaseFailed, StartDecode, StartPrefill, StopPhase
from router.errors import Reason
from router.live.flow import Flow
from router.model import BackendSnapshot, KVHandle, Phase, Seconds

log = logging.getLogger(__name__)

MAX_RELEASES: Final = 256
"""Releases under way; beyond it KV is left to its lease, which is bounded too."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The engine at the other end, this time it is connected."""

    backend: str
    incarnation: str
    engine: Engine


class EngineWork:
    """The phases at work at a connected engine. Satisfies router.live.southbound.Work."""

    def __init__(
        self,
        peer: Peer,
        tell: Callable[[Fact], None],
        tasks: asyncio.TaskGroup,
        suspect: Callable[[], None],
        max_legs: int,
    ) -> None:
        """`suspect` is called when a failure says that the engine may be gone."""
        self._peer = peer
        self._tell = tell
        self._tasks = tasks
        self._suspect = suspect
        self._max_legs = max_legs
        self._now = asyncio.get_running_loop().time
        self._legs: dict[tuple[str, int, Phase], Leg] = {}
        """By request, epoch and the phase they began with: decode may be bound to where prefill was."""
        self._releases = 0
        self._meter = ShareMeter(self._now())

    def __len__(self) -> int:
        """Phases at work."""
        return len(self._legs)

    # --- southbound.Work ---

    def start_prefill(self, action: StartPrefill, flow: Flow) -> None:
        """Begin a prefill, or a whole request."""
        self._start(
            Leg(
                flow,
                action.epoch,
                Phase.PREFILL,
                self._meter,
                self._tell,
                self._now,
                decode_here=action.decode_here,
            )
        )

    def start_decode(self, action: StartDecode, flow: Flow, now: Seconds) -> None:
        """Begin a decode out of KV that another engine holds."""
        self._start(Leg(flow, action.epoch, Phase.DECODE, self._meter, self._tell, self._now, kv=action.kv))

    def stop_phase(self, action: StopPhase) -> None:
        """Stop an epoch here, if it is still at work."""
        for phase in Phase:
            if (leg := self._legs.get((action.request_id, action.epoch, phase))) is not None:
                leg.stop()

    def release_kv(self, handle: KVHandle, now: Seconds) -> None:
        """Let the engine free KV, if it can be told to."""
        if handle.incarnation == self._peer.incarnation and self._releases < MAX_RELEASES:
            self._releases += 1
            self._spawn(self._release(handle), f"release-{self._peer.backend}")

    # --- account ---

    def sweep(self) -> None:
        """Once a second: stop work that nobody listens to."""
        for leg in tuple(self._legs.values()):
            if not leg.current:
                leg.stop()

    def snapshot(self) -> BackendSnapshot:
        """Our own account of the engine: all there is until its telemetry is read.

        Of the prompts sent one is taken to be at work and the others to wait: engines do not say.
        """
        prefills, decodes = self._meter.count[Phase.PREFILL], self._meter.count[Phase.DECODE]
        waiting = max(0, prefills - 1)
        return BackendSnapshot(
            observed_at=self._now(),
            running=decodes + prefills - waiting,
            waiting=waiting,
            kv_used_tokens=sum(
                leg.flow.request.prompt_tokens + leg.flow.next_index for leg in self._legs.values()
            ),
            busy_prefill_s=self._meter.busy_s[Phase.PREFILL],
            busy_decode_s=self._meter.busy_s[Phase.DECODE],
        )

    # --- legs ---

    def _start(self, leg: Leg) -> None:
        key = leg.id, leg.epoch, leg.phase
        if len(self._legs) >= self._max_legs or key in self._legs:
            leg.close()
            text = f"{len(self._legs)} phases are at work at {self._peer.backend}, the most allowed"
            self._fail(leg, PhaseError(Reason.QUEUE_FULL, f"{text}; raise options.max_calls"))
            return
        self._legs[key] = leg
        leg.task = self._spawn(self._carry(leg), f"leg-{self._peer.backend}")
        # Not in the task's own `finally`: a task that is cancelled before its first step runs none.
        leg.task.add_done_callback(lambda _: self._forget(key))

    def _spawn(self, body: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._tasks.create_task(body, name=name)

    async def _carry(self, leg: Leg) -> None:
        try:
            await self._peer.engine.serve(leg, self._peer.incarnation)
        except StopAskedError:
            pass
        except PhaseError as error:
            self._fail(leg, error)
        except Exception:
            # A supervision point: a bug in an adapter costs one request. No value of the request is shown.
            log.exception("request %s failed at %s in an unforeseen way", leg.id, self._peer.backend)
            self._fail(leg, PhaseError(Reason.BACKEND_FAILED, "its adapter failed; the log has the cause"))

    def _forget(self, key: tuple[str, int, Phase]) -> None:
        self._legs.pop(key).close()

    def _fail(self, leg: Leg, error: PhaseError) -> None:
        if error.suspect:
            self._suspect()
        if not leg.ended:
            leg.ended = True
            backend = self._peer.backend
            self._tell(
                PhaseFailed(
                    leg.id, leg.epoch, leg.phase, backend, error.reason, error.message, error.retryable
                )
            )

    async def _release(self, handle: KVHandle) -> None:
        try:
            await self._peer.engine.release(handle)
        except PhaseError as error:
            log.info("%s did not release KV; its lease ends it: %s", self._peer.backend, error.message)
        except Exception:
            log.exception("releasing KV at %s failed in an unforeseen way", self._peer.backend)
        finally:
            self._releases -= 1
