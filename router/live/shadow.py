"""Runs a shadow policy beside the live one, on a thread of its own, within a share of one core.

The event loop hands over references and goes on: a question is a tuple of immutable views, a fact is a
value. The thread wakes in batches, asks the shadow, compares, and rests so that it takes no more than its
share; what it cannot keep up with is skipped and counted. A shadow that raises is counted, one that sleeps
stalls itself alone, and one that never returns is abandoned when the daemon stops: the thread is a daemon.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Protocol

from router.core.choice import Plan
from router.core.ports import FleetView, Policy
from router.live.timed_policy import WALL_FACTOR
from router.model import Request, Seconds
from router.observe.scene import Scene, StillFleet
from router.observe.shadow import RAISED, SLOW, Opinion, judge

log = logging.getLogger(__name__)

BATCH_S: Final[Seconds] = 0.02
"""The thread wakes at most so often: a wake-up per fact would cost the loop more than the shadow does."""
REST_FROM_S: Final[Seconds] = 0.002
"""CPU time after which the thread rests; shorter rests are not slept exactly."""
MAX_FACTS: Final = 8192
"""Facts that may wait; a shadow that misses some has learned less than the live policy."""


@dataclass(frozen=True, slots=True)
class ShadowLimits:
    """Bounds of a shadow."""

    budget_s: Seconds = 0.05
    """CPU time of one decision; a longer one is counted as slow."""
    share: float = 0.1
    """Most of one core that it may take, in (0, 1]."""
    max_behind: int = 64
    """Questions that may wait; more are skipped."""


class ShadowMetrics(Protocol):
    """Hears of opinions. Called on the shadow's thread, and on the loop's for what is skipped."""

    def shadow_opinion(self, policy: str, opinion: Opinion, cpu_s: Seconds) -> None:
        """An answer was compared; it took so much CPU time."""
        ...

    def shadow_fault(self, policy: str, fault: str) -> None:
        """The shadow was slow, or failed on a fact."""
        ...

    def shadow_skipped(self, policy: str, what: str) -> None:
        """A `decision` was not asked about, or a `fact` was not told, for want of time."""
        ...


@dataclass(frozen=True, slots=True)
class _Question:
    scene: Scene
    live: Plan


@dataclass(frozen=True, slots=True)
class _Told:
    fact: Any
    now: Seconds


class Shadow:
    """A live.watched_policy.Witness. Close it, or its thread lives as long as the process."""

    def __init__(self, policy: Policy, metrics: ShadowMetrics, limits: ShadowLimits | None = None) -> None:
        self._policy = policy
        self._metrics = metrics
        self._limits = limits or ShadowLimits()
        self._waiting: deque[_Question | _Told] = deque()
        self._offered = 0
        """Questions put in line; written by the loop alone."""
        self._taken = 0
        """Questions out of line; written by the thread alone."""
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._debt_s: Seconds = 0.0
        self._thread: threading.Thread | None = None
        """Started by the first item: a daemon that does not come up leaves none behind."""

    # --- the loop's side: no waiting, nothing that can raise but for want of memory ---

    def decided(self, policy: Policy, request: Request, fleet: FleetView, now: Seconds, answer: Plan) -> None:
        """The live policy has answered."""
        if self._offered - self._taken >= self._limits.max_behind:
            self._metrics.shadow_skipped(self._policy.name, "decision")
            return
        self._offered += 1
        scene = Scene(request, StillFleet(fleet.for_model(request.model)), now)
        self._put(_Question(scene, answer))

    def observed(self, fact: Any, now: Seconds) -> None:
        """The live policy was told a fact."""
        if len(self._waiting) >= MAX_FACTS:
            self._metrics.shadow_skipped(self._policy.name, "fact")
            return
        self._put(_Told(fact, now))

    def close(self, timeout_s: Seconds = 1.0) -> bool:
        """Stop asking; False when the shadow does not return in time. Waits, so not on the loop's thread."""
        self._closing.set()
        self._wake.set()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _put(self, item: _Question | _Told) -> None:
        self._waiting.append(item)
        if not self._wake.is_set():
            self._wake.set()
        if self._thread is None and not self._closing.is_set():
            self._thread = threading.Thread(target=self._run, name="polyphase-shadow", daemon=True)
            self._thread.start()

    # --- the thread's side ---

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._wake.clear()
            self._closing.wait(BATCH_S)
            while self._waiting and not self._closing.is_set():
                self._take(self._waiting.popleft())

    def _take(self, item: _Question | _Told) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            if isinstance(item, _Question):
                self._taken += 1
                self._ask(item, wall, cpu)
            else:
                self._policy.observe(item.fact, item.now)
        except Exception:
            # A supervision point: a shadow that fails costs its own lesson, never the thread.
            log.debug("shadow policy failed on a fact", exc_info=True)
            self._metrics.shadow_fault(self._policy.name, RAISED)
        self._rest(time.thread_time() - cpu)

    def _ask(self, question: _Question, wall: float, cpu: float) -> None:
        opinion = judge(self._policy, question.scene, question.live)
        cpu_s, wall_s = time.thread_time() - cpu, time.perf_counter() - wall
        self._metrics.shadow_opinion(self._policy.name, opinion, cpu_s)
        if cpu_s > self._limits.budget_s or wall_s > WALL_FACTOR * self._limits.budget_s:
            self._metrics.shadow_fault(self._policy.name, SLOW)

    def _rest(self, cpu_s: Seconds) -> None:
        self._debt_s += cpu_s
        if self._debt_s >= REST_FROM_S:
            self._closing.wait(self._debt_s * (1.0 / self._limits.share - 1.0))
            self._debt_s = 0.0
