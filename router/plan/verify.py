"""Whether a fleet holds the objectives: simulated with the real core, engines and policy.

A class holds when at least `target` of its requests end within all objectives; a job, when all its requests
are done in time. Of a job with more requests than are simulated, a slice is run, in the same share of its
time. One seed, from an empty fleet: what is verified is this sample of the workload.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from router.errors import ConfigError
from router.model import BackendSpec
from router.plan.playback import Asked
from router.plan.prices import prices_of
from router.plan.sizing import Fleet
from router.plan.supply import Supply
from router.sim.classes import Workload
from router.sim.result import ClassResult, SimResult
from router.sim.run import Contestant, simulate

LEAST_REQUESTS: Final = 1000
MOST_REQUESTS: Final = 12_000
LEAST_S: Final = 60.0
"""Arrivals are simulated for at least this long, within the most requests."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of a class ran."""

    workload_class: str
    prefill: str
    decode: str
    share: float
    """Of the class."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One fleet, simulated."""

    fleet: Fleet
    holds: bool
    why_not: str
    attainment: Mapping[str, float]
    """By class: share of the requests that met all objectives."""
    watts: float
    """Mean power of the backends, idle time included."""
    peak_w: float
    usd_per_million_tokens: float
    flows: tuple[Route, ...]
    """Largest share first, class by class."""
    requests: int
    result: SimResult | None = None


class Verifier:
    """Simulates fleets, each once."""

    def __init__(
        self,
        workload: Workload,
        asked: Asked,
        supplies: Sequence[Supply],
        policy: Contestant,
        seed: int,
        target: float,
        rate_scale: float = 1.0,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._workload = workload
        self._asked = asked
        self._specs = {supply.name: supply.spec for supply in supplies}
        self._policy = policy
        self._seed = seed
        self._target = target
        self._rate_scale = rate_scale
        self._tell = tell
        self._known: dict[tuple[tuple[str, int], ...], Trial] = {}
        self._requests = requests_of(workload, asked)

    @property
    def trials(self) -> int:
        """Fleets simulated so far."""
        return len(self._known)

    @property
    def known(self) -> list[Trial]:
        """All trials so far."""
        return list(self._known.values())

    def trial(self, fleet: Fleet) -> Trial:
        """Simulate a fleet, or recall it."""
        key = tuple(sorted((name, count) for name, count in fleet.items() if count))
        if key not in self._known:
            self._tell(f"simulating {named(dict(key))}")
            self._known[key] = self._run(dict(key))
        return self._known[key]

    def _run(self, fleet: Fleet) -> Trial:
        try:
            result = simulate(
                specs_of(fleet, self._specs),
                self._workload,
                self._policy,
                self._seed,
                rate_scale=self._rate_scale,
                requests=self._requests,
                solve=prices_of,
            )
        except ConfigError as error:  # a fleet that lacks a phase or a model is no answer, and no failure
            return Trial(fleet, False, error.message, {}, 0.0, 0.0, 0.0, (), 0)
        return self._judged(fleet, result)

    def _judged(self, fleet: Fleet, result: SimResult) -> Trial:
        why = result.stopped or next(filter(None, (self._failing(one, result) for one in result.classes)), "")
        duration_s = max(result.duration_s, 1e-9)
        return Trial(
            fleet,
            not why,
            why,
            {one.name: one.attainment for one in result.classes},
            result.energy_j / duration_s,
            _peak_w(result),
            result.rent_usd / max(1, result.output_tokens) * 1e6,
            _flows(result, fleet),
            result.arrived,
            result,
        )

    def _failing(self, one: ClassResult, result: SimResult) -> str:
        deadline_s = self._asked.jobs.get(one.name)
        if deadline_s is not None:
            return self._late(one, result, deadline_s)
        if one.attainment >= self._target:
            return ""
        missed = ", ".join(
            f"{name} {met / of:.1%}" for name, (met, of) in one.kept.items() if of and met < of
        )
        kept = f"{one.attainment:.1%} within all objectives, {self._target:.0%} wanted"
        return f"class {one.name}: {kept} ({missed or 'requests failed'})"

    def _late(self, one: ClassResult, result: SimResult, deadline_s: float) -> str:
        whole = self._workload.requests or result.arrived
        due_s = deadline_s * min(1.0, result.arrived / whole)
        if one.ok < one.arrived:
            return f"class {one.name}: {one.arrived - one.ok} requests failed"
        if result.duration_s > due_s:
            return f"class {one.name}: done after {result.duration_s:,.0f} s, {due_s:,.0f} s wanted"
        return ""


def requests_of(workload: Workload, asked: Asked) -> int:
    """How many requests a simulation takes."""
    rate = sum(asked.rates.values())
    wanted = min(MOST_REQUESTS, max(LEAST_REQUESTS, round(rate * LEAST_S)))
    return wanted if workload.requests is None else min(wanted, workload.requests)


def specs_of(fleet: Fleet, specs: Mapping[str, BackendSpec]) -> list[BackendSpec]:
    """The backends of a fleet, with ids of their own."""
    return [replace(specs[name], id=f"{name}-{i}") for name, count in fleet.items() for i in range(count)]


def named(fleet: Fleet) -> str:
    """A fleet in words."""
    return " + ".join(f"{count} x {name}" for name, count in sorted(fleet.items())) or "nothing"


def _peak_w(result: SimResult) -> float:
    steps = zip(*result.timeline.power_w.values(), strict=False)
    return max((sum(step) for step in steps), default=0.0)


def _flows(result: SimResult, fleet: Fleet) -> tuple[Route, ...]:
    counts: Counter[tuple[str, str, str]] = Counter()
    for request_id, fate in result.fates.items():
        prefill, _, decode = fate.where.partition(" → ")
        pair = _type_of(prefill, fleet), _type_of(decode or prefill, fleet)
        if all(pair):
            counts[request_id.rpartition("-")[0], *pair] += 1
    totals: Counter[str] = Counter()
    for (name, _, _), count in counts.items():
        totals[name] += count
    routes = [Route(*key, count / totals[key[0]]) for key, count in counts.items()]
    return tuple(sorted(routes, key=lambda r: (r.workload_class, -r.share, r.prefill, r.decode)))


def _type_of(backend: str, fleet: Fleet) -> str:
    name = backend.rpartition("-")[0]
    return name if name in fleet else ""
