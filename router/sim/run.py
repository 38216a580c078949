"""One simulation: a fleet, a workload, a policy and a seed in; a SimResult out. Pure but for the progress it
tells: no clock, no files, and no randomness but the seed's.

    fleet = load_fleet("mixed")
    result = simulate(fleet, load_workload("chat"), contestant("predicted"), seed=1, requests=10_000)
    result.goodput_per_s, result.attainment, result.times("ttft").quantile(0.99)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from backends.catalogue import Fleet
from backends.models.tracking import TrackedModels
from policies.registry import build
from router.core.admission import Limits
from router.core.core import RouterCore
from router.core.messages import NotePolicyFault
from router.core.ports import ModelSource, Policy
from router.errors import ConfigError
from router.model import BackendSnapshot, BackendSpec, Phase, Report, Request, Seconds
from router.sim.classes import AtOnce, InFlight, Renewal, TraceTimes, Workload, WorkloadClass
from router.sim.network import Network
from router.sim.pricing import Pricing, Solve
from router.sim.result import BackendResult, SimResult
from router.sim.sampler import Sampler, snapshots
from router.sim.stability import Reading, Stability
from router.sim.tally import Tally, group_of
from router.sim.traffic import Traffic
from router.sim.world import Source, World

FALLBACK: Final = "least_loaded"
"""Decides when a policy fails; the daemon's default."""
PROGRESS_EVERY: Final = 500
"""Requests between two calls of `progress`."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a policy is made from. The oracle is for clairvoyant ones, which bound the others from above."""

    models: ModelSource
    rng: Random
    oracle: Callable[[Request], int]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A policy to simulate: a label, and how to make a fresh one for a run."""

    label: str
    make: Callable[[Outlook], Policy]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    share: float
    """In [0, 1], as far as can be told."""
    requests: int
    """Ended."""
    now: Seconds


@dataclass(frozen=True, slots=True)
class Failure:
    """A backend that dies, and comes back empty if `down_s` is given."""

    backend: str
    at_s: Seconds
    down_s: Seconds | None = None


Advance = Callable[[Progress], None]
"""Hears of progress every PROGRESS_EVERY requests."""


class CountedSource(Source, Protocol):
    """A source that says how many requests it has given."""

    taken: int


def simulate(
    fleet: Fleet | Sequence[BackendSpec],
    workload: Workload,
    policy: Contestant,
    seed: int = 1,
    *,
    rate_scale: float = 1.0,
    requests: int | None = None,
    duration_s: Seconds | None = None,
    limits: Limits | None = None,
    network: Network | None = None,
    stop_when_unstable: bool = True,
    progress: Advance | None = None,
    models: Callable[[], ModelSource] = TrackedModels,
    failures: Sequence[Failure] = (),
    solve: Solve | None = None,
) -> SimResult:
    """Run the workload to its end, or until the load turns out to be too high.

    `requests` and `duration_s` replace the workload's own bounds; `models` are what policies predict with, by
    default the daemon's; `solve` (router.plan.prices) works out prices for one that takes them, which
    does without otherwise. Raises ConfigError for a workload without an end, and for a fleet that cannot
    serve it.
    """
    name, specs = (fleet.name, fleet.backends) if isinstance(fleet, Fleet) else ("", tuple(fleet))
    check_servable(specs, workload)
    check_failures(specs, failures)
    traffic = Traffic(workload, seed, rate_scale=rate_scale, requests=requests, duration_s=duration_s)
    setup = Setup(
        name,
        specs,
        workload.name,
        tuple(kind.name for kind in workload.classes),
        rate_scale,
        workload.has_jitter_objective,
        traffic.most,
        _horizon_s(workload, rate_scale, traffic),
    )
    run = Run(setup, policy, seed, traffic, traffic.oracle, limits, network, models())
    for failure in failures:
        run.fail(failure)
    if solve is not None:
        Pricing(run.world, solve).start()
    run.watch(stop_when_unstable, progress)
    run.world.run()
    return run.result()


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated, and how far it goes as far as is known."""

    fleet: str
    specs: Sequence[BackendSpec]
    workload: str
    classes: tuple[str, ...]
    rate_scale: float = 1.0
    every_token: bool = False
    requests: int | None = None
    horizon_s: Seconds | None = None
    """How long requests come."""


class Run:
    """The parts of one simulation. `world` may be given more to happen before it runs."""

    def __init__(
        self,
        setup: Setup,
        policy: Contestant,
        seed: int,
        source: CountedSource,
        oracle: Callable[[Request], int],
        limits: Limits | None,
        network: Network | None,
        models: ModelSource,
        done: Callable[[Report, Seconds], None] | None = None,
    ) -> None:
        """`done` sees every report besides."""
        made = policy.make(Outlook(models, Random(f"{seed}/policy"), oracle))
        fallback = build(FALLBACK, {}, models, Random(f"{seed}/fallback"))
        self._policy, self._setup, self._seed, self._source = policy, setup, seed, source
        self.tally = Tally({spec.id: spec for spec in setup.specs}, setup.classes)
        self._faults = 0
        self._done = done
        self.world = World(
            RouterCore(made, fallback, models, limits),
            setup.specs,
            oracle,
            seed,
            network,
            done=self._ended,
            fault=self._fault,
            every_token=setup.every_token,
        )
        self._sampler = Sampler(self.world, setup.specs)
        self._progress: Advance | None = None

    def fail(self, failure: Failure) -> None:
        """Let a backend die at its time."""
        world, spec = self.world, next(s for s in self._setup.specs if s.id == failure.backend)
        world.at(failure.at_s, lambda: world.kill(failure.backend), background=True)
        if failure.down_s is not None:
            world.at(failure.at_s + failure.down_s, lambda: world.join(spec), background=True)

    def watch(self, stop: bool, progress: Advance | None) -> None:
        """Start sampling, tell progress, and stop the run when the load is too high."""
        self._progress = progress
        self._sampler.start()
        self.world.feed(self._source)
        if stop:
            self._look_again(Stability(self._setup.horizon_s))

    def _look_again(self, stability: Stability) -> None:
        due = self.world.now + stability.window_s
        self.world.at(due, lambda: self._check(stability), background=True)

    def _check(self, stability: Stability) -> None:
        tally, backlog = self.tally, self._sampler.backlog()
        reading = Reading(self.world.now, self._source.taken, tally.ended, tally.crowded, backlog)
        verdict = stability.verdict(reading)
        if verdict:
            self.world.stop(verdict)
        else:
            self._look_again(stability)

    def _ended(self, report: Report, now: Seconds) -> None:
        self.tally.add(report, now, self.world.watched.get(report.request.id))
        if self._done is not None:
            self._done(report, now)
        if self._progress is not None and self.tally.ended % PROGRESS_EVERY == 0:
            self._progress(Progress(self._share(now), self.tally.ended, now))

    def _fault(self, fault: NotePolicyFault) -> None:
        self._faults += 1

    def _share(self, now: Seconds) -> float:
        horizon_s, requests = self._setup.horizon_s, self._setup.requests
        shares = [now / horizon_s if horizon_s else 0.0]
        if requests is not None:
            shares.append(self.tally.ended / max(1, requests))
        return min(1.0, max(shares))

    def result(self) -> SimResult:
        """The values at the end."""
        tally, setup = self.tally, self._setup
        duration_s = self.world.now if self.world.stopped else tally.ended_at
        return SimResult(
            policy=self._policy.label,
            workload=setup.workload,
            fleet=setup.fleet,
            seed=self._seed,
            rate_scale=setup.rate_scale,
            duration_s=duration_s,
            offered_s=self.world.last_arrival or duration_s,
            classes=tally.classes(),
            failures=dict(sorted(tally.failures.items())),
            retries=tally.retries,
            backends=self._backends(duration_s),
            flows=tally.flows(),
            timeline=self._sampler.timeline(),
            fates=tally.fates.kept,
            stopped=self.world.stopped,
            policy_faults=self._faults,
        )

    def _backends(self, duration_s: Seconds) -> tuple[BackendResult, ...]:
        accounts: dict[str, list[BackendSnapshot]] = {spec.id: [] for spec in self._setup.specs}
        for spec, snapshot in (*self.world.past, *snapshots(self.world)):
            accounts.setdefault(spec.id, []).append(snapshot)
        return tuple(self._backend(spec, accounts[spec.id], duration_s) for spec in self._setup.specs)

    def _backend(
        self, spec: BackendSpec, boots: Sequence[BackendSnapshot], duration_s: Seconds
    ) -> BackendResult:
        """A backend over all its boots."""
        tally = self.tally
        return BackendResult(
            spec.id,
            group_of(spec),
            spec.kind,
            tally.prefills[spec.id],
            tally.decodes[spec.id],
            tally.tokens[spec.id],
            math.fsum(one.busy_prefill_s for one in boots),
            math.fsum(one.busy_decode_s for one in boots),
            math.fsum(one.energy_j for one in boots),
            spec.usd_per_hour * duration_s / 3600.0,
            sum(one.preemptions for one in boots),
        )


# --- before a run ----------------------------------------------------------------------------------


def check_servable(specs: Sequence[BackendSpec], workload: Workload) -> None:
    """Raise ConfigError for a class that the fleet can never serve, saying what is missing."""
    for kind in workload.classes:
        if problem := _problem(specs, kind):
            raise ConfigError(
                f"workload {workload.name}, class {kind.name!r}: {problem}. Nothing was simulated; choose "
                "another fleet, or another model with --model."
            )


def check_failures(specs: Sequence[BackendSpec], failures: Sequence[Failure]) -> None:
    """Raise ConfigError for a failure of a backend that the fleet does not have."""
    known = [spec.id for spec in specs]
    for failure in failures:
        if failure.backend not in known:
            raise ConfigError(
                f"no backend {failure.backend!r} can fail: the fleet has {', '.join(known[:20])}"
                f"{' and more' if len(known) > 20 else ''}."
            )


def _problem(specs: Sequence[BackendSpec], kind: WorkloadClass) -> str:
    serving = [spec for spec in specs if kind.model in spec.models]
    if not serving:
        served = sorted({model for spec in specs for model in spec.models})
        return f"no backend of the fleet serves model {kind.model!r} (it serves {', '.join(served)})"
    prefill = [spec for spec in serving if Phase.PREFILL in spec.phases]
    decode = [spec for spec in serving if Phase.DECODE in spec.phases]
    if not prefill or not decode:
        missing = Phase.DECODE if prefill else Phase.PREFILL
        return f"no backend offers {missing} for model {kind.model!r}"
    if not any(consumer.accepts_kv_of(producer) for producer in prefill for consumer in decode):
        return "no decode backend takes over the KV layout of any prefill backend"
    return ""


def _horizon_s(workload: Workload, rate_scale: float, traffic: Traffic) -> Seconds | None:
    """How long requests come, as far as can be told beforehand."""
    if math.isfinite(traffic.until):
        return traffic.until
    rates = [rate_of(kind) * rate_scale for kind in workload.classes]
    if traffic.most is not None and all(rate > 0 for rate in rates):
        return traffic.most / sum(rates)
    return None


def rate_of(kind: WorkloadClass) -> float:
    """Requests per second in the long run, 0 where the answers decide."""
    match kind.arrivals:
        case Renewal(rate=rate):
            return rate * max(1.0, kind.session.turns.mean)
        case TraceTimes(speed=speed):
            rows = getattr(kind.lengths, "rows", ())
            return speed * len(rows) / rows[-1].at_s if rows and rows[-1].at_s > 0 else 0.0
        case AtOnce() | InFlight():
            return 0.0
