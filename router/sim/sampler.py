"""Looks at the workers at equal intervals of virtual time, and keeps a bounded history of what they did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from router.model import BackendSnapshot, BackendSpec, Seconds
from router.sim.result import Timeline
from router.sim.tally import group_of
from router.sim.world import World

MOST: Final = 280
"""Samples kept; when there are more, every other one goes and the interval doubles."""
FIRST_STEP_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Sample:
    """Sums over each group's backends since the start."""

    at: Seconds
    prefill_s: tuple[float, ...]
    decode_s: tuple[float, ...]
    energy_j: tuple[float, ...]
    live: int
    backlog: int


class Sampler:
    """The history of one run."""

    def __init__(self, world: World, specs: Sequence[BackendSpec]) -> None:
        self._world = world
        self._step_s = FIRST_STEP_S
        self._groups = list(dict.fromkeys(group_of(spec) for spec in specs))
        self._sizes = [sum(group_of(spec) == group for spec in specs) for group in self._groups]
        self._samples: list[_Sample] = [self._sample()]

    def start(self) -> None:
        """Look for the first time, and again at every interval while the run goes on."""
        self._world.at(self._world.now + self._step_s, self._look, background=True)

    def _look(self) -> None:
        self._samples.append(self._sample())
        if len(self._samples) > MOST:
            self._samples = self._samples[::2]
            self._step_s *= 2
        self._world.at(self._samples[-1].at + self._step_s, self._look, background=True)

    def _sample(self) -> _Sample:
        world = self._world
        prefill, decode, energy = ([0.0] * len(self._groups) for _ in range(3))
        told = snapshots(world)
        running = sum(snapshot.running for _, snapshot in told)
        for spec, snapshot in (*world.past, *told):
            i = self._groups.index(group_of(spec))
            prefill[i] += snapshot.busy_prefill_s
            decode[i] += snapshot.busy_decode_s
            energy[i] += snapshot.energy_j
        backlog = max(0, world.live - running)
        return _Sample(world.now, tuple(prefill), tuple(decode), tuple(energy), world.live, backlog)

    def backlog(self) -> int:
        """Requests that no backend works on, at this moment."""
        return max(0, self._world.live - sum(snapshot.running for _, snapshot in snapshots(self._world)))

    def timeline(self) -> Timeline:
        """The history so far."""
        samples = self._samples
        times = [sample.at for sample in samples]
        busy: dict[tuple[str, str], list[float]] = {}
        power: dict[str, list[float]] = {}
        for i, (group, size) in enumerate(zip(self._groups, self._sizes, strict=True)):
            busy[group, "prefill"] = _rates(times, [s.prefill_s[i] for s in samples], size)
            busy[group, "decode"] = _rates(times, [s.decode_s[i] for s in samples], size)
            power[group] = _rates(times, [s.energy_j[i] for s in samples], 1)
        live = [sample.live for sample in samples[1:]]
        return Timeline(self._step_s, busy, power, live, [sample.backlog for sample in samples[1:]])


def snapshots(world: World) -> list[tuple[BackendSpec, BackendSnapshot]]:
    """The workers' own accounts at this moment."""
    return [(worker.machine.spec, worker.machine.snapshot(world.now)) for worker in world.workers]


def _rates(times: Sequence[Seconds], totals: Sequence[float], size: int) -> list[float]:
    """Growth of a total per second and backend. A worker that was lost takes its total along: no growth."""
    steps = zip(times, times[1:], totals, totals[1:], strict=False)
    return [max(0.0, (after - before) / ((end - start) * size)) for start, end, before, after in steps]
