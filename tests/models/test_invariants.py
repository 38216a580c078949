"""Whatever is asked of a worker: every key ends once, room returns to zero, and the shares add up."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.models.messages import (
    AbortServe,
    DecodeFinished,
    Failed,
    FailReason,
    KVArrived,
    KVPullFailed,
    KVRefused,
    KVServed,
    PrefillFinished,
    PullKV,
    Release,
    RunDecode,
    RunPrefill,
    ServeKV,
    StepTokens,
    Stop,
)
from router.model import KVHandle, Seconds
from tests.models.drive import KINDS, STEP, WATTS, backend, decode, foreign, prefill, worker

commands = st.lists(
    st.tuples(
        st.sampled_from(["whole", "split", "decode", "stop", "serve", "abort", "arrive", "fail", "release"]),
        st.sampled_from([0.0, 0.002, 0.03, 0.3, 2.0]),
        st.integers(0, 10_000),
    ),
    max_size=50,
)


class Driver:
    """Turns random choices into commands that make sense, and keeps the books."""

    def __init__(self, sigma: float, emit_tokens: bool, kind: str = "continuous") -> None:
        step, limits = replace(STEP, noise_sigma=sigma), KINDS[kind]
        spec = backend(step=step, power=WATTS, kv_capacity_tokens=60, **limits)
        self.machine = worker(spec, emit_tokens=emit_tokens, lease_s=1.5)
        self.started: dict[int, RunPrefill | RunDecode] = {}
        self.ended: Counter[int] = Counter()
        self.stopped: set[int] = set()
        self.pulling: set[int] = set()
        self.handles: list[KVHandle] = []
        self.pulls: dict[int, int] = {}
        """Answers per pull; aborted ones leave."""
        self.indices: dict[int, list[int]] = {}
        self.told_prefill_s = 0.0
        self.told_decode_s = 0.0

    def choose(self, kind: str, pick: int) -> Any:
        """A command, or None when there is nothing to do it to."""
        key = len(self.started)
        if kind in ("whole", "split"):
            hashes = (pick % 3, 10 + pick % 3)
            made = prefill(
                key, 1 + pick % 30, 1 + pick % 23, prefix_hashes=hashes, decode_here=kind == "whole"
            )
            made = replace(made, model=self.machine.spec.models[pick % len(self.machine.spec.models)])
            return self._start(made)
        if kind == "decode":
            return self._start(
                decode(key, foreign(1 + pick % 30), output=1 + pick % 23, first_index=pick % 2)
            )
        if kind == "stop" and self.started:
            stopped = pick % len(self.started)
            self.stopped.add(stopped)
            self.pulling.discard(stopped)
            return Stop(stopped)
        if kind in ("arrive", "fail") and self.pulling:
            one = sorted(self.pulling)[pick % len(self.pulling)]
            self.pulling.discard(one)
            return (
                KVArrived(one, 1, 0.1, 77)
                if kind == "arrive"
                else KVPullFailed(one, FailReason.KV_TRANSFER, "")
            )
        if kind in ("serve", "release") and self.handles:
            kv = self.handles[pick % len(self.handles)]
            if kind == "release":
                return Release(kv)
            self.pulls[len(self.pulls)] = 0
            return ServeKV(len(self.pulls) - 1, kv, "c")
        if kind == "abort" and self.pulls:
            return AbortServe(pick % len(self.pulls))
        return None

    def _start(self, command: RunPrefill | RunDecode) -> RunPrefill | RunDecode:
        self.started[command.key] = command
        return command

    def note(self, events: Any, now: Seconds) -> None:
        """Book what the worker reports."""
        for event in events:
            match event:
                case StepTokens(at=at, keys=keys, indices=indices):
                    assert at <= now + 1e-12
                    for key, index in zip(keys, indices, strict=True):
                        assert self.ended[key] == 0
                        self.indices.setdefault(key, []).append(index)
                case PrefillFinished(key=key, cost=cost, kv=kv):
                    self.told_prefill_s += cost.device_s
                    if kv is not None:
                        self.ended[key] += 1
                        self.handles.append(kv)
                case DecodeFinished(key=key, cost=cost):
                    self.told_decode_s += cost.device_s
                    self.ended[key] += 1
                case Failed(key=key):
                    self.ended[key] += 1
                case PullKV(key=key):
                    self.pulling.add(key)
                case KVServed(pull=pull) | KVRefused(pull=pull):
                    self.pulls[pull] += 1

    def settle(self, now: Seconds) -> Seconds:
        """Answer every pull and wake the machine until nothing is pending."""
        while True:
            for key in sorted(self.pulling):
                self.pulling.discard(key)
                self.note(self.machine.handle(KVArrived(key, 1, 0.1, 77), now), now)
            due = self.machine.deadline()
            if due is None and self.pulling:
                continue  # an end made room for another pull
            if due is None:
                return now
            now = max(now, due)
            self.note(self.machine.advance(now), now)


def play(
    story: list[tuple[str, Seconds, int]], sigma: float, emit_tokens: bool, kind: str = "continuous"
) -> tuple[Driver, Seconds]:
    """Run a random story to its end; the driver is late by whole pauses."""
    driver, now = Driver(sigma, emit_tokens, kind), 0.0
    for kind, pause, pick in story:
        now += pause
        if (command := driver.choose(kind, pick)) is not None:
            driver.note(driver.machine.handle(command, now), now)
        snapshot = driver.machine.snapshot(now)
        assert 0 <= snapshot.kv_used_tokens <= 60
    return driver, driver.settle(now)


@settings(max_examples=150, deadline=None)
@given(commands, st.sampled_from([0.0, 0.1]), st.booleans(), st.sampled_from(sorted(KINDS)))
def test_every_key_ends_once_and_room_returns_to_zero(
    story: list[tuple[str, Seconds, int]], sigma: float, emit_tokens: bool, kind: str
) -> None:
    """Ends are one each, or none after a stop; pulls get one answer at most; blocks and queues are empty."""
    driver, now = play(story, sigma, emit_tokens, kind)
    for key in driver.started:
        assert driver.ended[key] == 1 or (driver.ended[key] == 0 and key in driver.stopped)
    assert all(answers <= 1 for answers in driver.pulls.values())
    snapshot = driver.machine.snapshot(now)
    assert (snapshot.kv_used_tokens, snapshot.running, snapshot.waiting) == (0, 0, 0)
    assert snapshot.waiting_prefill_tokens == 0


@settings(max_examples=150, deadline=None)
@given(commands, st.sampled_from([0.0, 0.1]), st.sampled_from(sorted(KINDS)))
def test_tokens_come_in_order_without_gap_or_repeat(
    story: list[tuple[str, Seconds, int]], sigma: float, kind: str
) -> None:
    """Each key counts up from its first index; one that finished has them all."""
    driver, _ = play(story, sigma, emit_tokens=True, kind=kind)
    for key, indices in driver.indices.items():
        command = driver.started[key]
        first = command.first_index if isinstance(command, RunDecode) else 0
        assert indices == list(range(first, first + len(indices)))
        whole = isinstance(command, RunDecode) or command.decode_here
        if whole and key not in driver.stopped and driver.ended[key]:
            assert indices[-1] == command.output_tokens - 1


@settings(max_examples=150, deadline=None)
@given(commands, st.sampled_from([0.0, 0.1]), st.booleans())
def test_shares_add_up_to_busy_time(
    story: list[tuple[str, Seconds, int]], sigma: float, emit_tokens: bool
) -> None:
    """What phases were charged is what the device was busy; stopped work is busy but charged to nobody."""
    calm = [step for step in story if step[0] != "stop"]
    driver, now = play(calm, sigma, emit_tokens)
    snapshot = driver.machine.snapshot(now)
    assert snapshot.busy_prefill_s == pytest.approx(driver.told_prefill_s)
    assert snapshot.busy_decode_s == pytest.approx(driver.told_decode_s, abs=1e-9)
    driver, now = play(story, sigma, emit_tokens)
    snapshot = driver.machine.snapshot(now)
    assert snapshot.busy_prefill_s >= driver.told_prefill_s - 1e-9
    assert snapshot.busy_prefill_s + snapshot.busy_decode_s <= now + 1e-9
