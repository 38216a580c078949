"""Builds the parts of a router from its configuration and joins them. Opens nothing and starts nothing.

Policies and models are plugged in: the live shell knows none of them by name.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from prometheus_client import CollectorRegistry

from router.config import DaemonConfig, PolicyChoice, StaticBackend
from router.core.admission import Limits as CoreLimits
from router.core.core import RouterCore
from router.core.messages import Fact, PolicyOverran
from router.core.ports import LearningModels, ModelSource, Policy, Tap
from router.errors import ConfigError
from router.live.admin import Health
from router.live.admin_rpc import CallLimits
from router.live.driver import Driver
from router.live.fleet_service import FleetChanges, FleetService, FleetTimes
from router.live.flow import Flows
from router.live.insight import Insight
from router.live.lane import Lane, LaneContext, LaneTimes
from router.live.lanes import LaneSet
from router.live.pricing import Pricing, Solve
from router.live.registry import Registry, RegistryRules
from router.live.reload import Loaded, PolicyWatch, load
from router.live.salts import salts_of
from router.live.service import SERVICE_NAME, InferenceService, ServiceLimits
from router.live.session import SessionLimits
from router.live.shadow import Shadow, ShadowLimits
from router.live.southbound import Opener
from router.live.timed_policy import TimedPolicy
from router.live.validate import Limits as RequestLimits
from router.live.watched_policy import WatchedPolicy, Witness
from router.model import Seconds
from router.observe.metrics import Metrics
from router.observe.record import Recorder


def no_engines(backend: StaticBackend) -> Opener:
    """The engines of a router that was given none."""
    raise ConfigError(
        f"backend {backend.id!r}: this program has no adapter for engines, {backend.engine!r} included; "
        "the daemon does not start; reach the engine through a worker"
    )


@dataclass(frozen=True, slots=True)
class PlugIns:
    """What the composition root decides on."""

    models: ModelSource
    """Gives the step model of a backend. Raises PolyphaseError for a spec that nothing can be built from.

    One that learns (core.ports.LearningModels) belongs to one router: it is taught by its core."""
    build: Callable[[str, Mapping[str, object], ModelSource, random.Random], Policy]
    """A policy by name and parameters. Raises ConfigError."""
    parse: Callable[[str], tuple[str, Mapping[str, object]]]
    """Name and parameters out of the text of a policy file. Raises ConfigError."""
    engines: Callable[[StaticBackend], Opener] = no_engines
    """How a backend with an engine is reached. Raises ConfigError."""
    solve: Solve | None = None
    """Works out prices for a policy that takes them; without it such a policy does without."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A router, joined but not running."""

    core: RouterCore
    driver: Driver
    lanes: LaneSet
    registry: Registry
    service: InferenceService
    fleet_service: FleetService
    health: Health
    metrics: Metrics
    exposition: CollectorRegistry
    """What the metrics listener shows."""
    watch: PolicyWatch | None
    """Of the policy file, if there is one."""
    recorder: Recorder | None
    insight: Insight
    """Explains decisions, and runs the shadow policy."""
    pricing: Pricing | None
    """Keeps the policy in prices, if there is a solver."""
    backends: tuple[tuple[str, str, Opener], ...]
    """Those of the configuration: id, address, and how to reach it."""


class PolicySource:
    """Builds what [policy] asks for."""

    def __init__(
        self,
        choice: PolicyChoice,
        plug_ins: PlugIns,
        seed: int,
        wrap: Callable[[Policy], Policy],
        witnesses: Sequence[Witness] = (),
    ) -> None:
        """`witnesses` see what the policy in force is asked and answers."""
        self._witnesses = witnesses
        self._choice = choice
        self._plug_ins = plug_ins
        self._seed = seed
        self._wrap = wrap

    def first(self) -> Loaded:
        """The policy of the start. Raises ConfigError."""
        choice = self._choice
        if choice.file is not None:
            return load(choice.file, self.build)
        text = json.dumps({"name": choice.name, "params": dict(choice.params)}, default=str)
        return Loaded(self._watched(choice.name, choice.params), text)

    def fallback(self) -> Policy:
        """The policy that decides when the other cannot be trusted. Raises ConfigError."""
        return self._named(self._choice.fallback, {})

    def build(self, text: str) -> Policy:
        """A policy from the text of a file. Raises ConfigError."""
        name, params = self._plug_ins.parse(text)
        return self._watched(name, params)

    def _watched(self, name: str, params: Mapping[str, object]) -> Policy:
        inner = self._wrap(self._named(name, params))
        return WatchedPolicy(inner, {"name": name, **params}, self._witnesses)

    def _named(self, name: str, params: Mapping[str, object]) -> Policy:
        # The same seed for every build: a replay that rebuilds a policy draws the same numbers.
        return self._plug_ins.build(name, params, self._plug_ins.models, random.Random(self._seed))


class LaneMetrics:
    """What lanes tell the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.bad_reports = 0
        """Load reports with impossible numbers."""

    def stray_tokens(self, backend: str, fault: str, count: int = 1) -> None:
        """Tokens were dropped or missed."""
        self._metrics.stray_tokens(backend, fault, count)

    def bad_report(self, backend: str) -> None:
        """A load report was dropped."""
        self.bad_reports += 1


def assemble(config: DaemonConfig, plug_ins: PlugIns, seed: int) -> Parts:
    """Build and join. Needs the running loop. Raises ConfigError for what a policy cannot accept."""
    exposition = CollectorRegistry()
    learning = plug_ins.models if isinstance(plug_ins.models, LearningModels) else None
    metrics = Metrics(exposition, version=metadata.version("polyphase"), learning=learning)

    def tell(fact: Fact) -> None:
        driver.tell(fact)  # what speaks to the driver is built before it

    backends = static_backends(config, plug_ins)
    insight = insight_of(config, plug_ins, metrics, seed)
    timed = stopwatch(config, metrics, tell)
    source = PolicySource(config.policy, plug_ins, seed, timed, insight.witnesses)
    first = source.first()
    core = RouterCore(first.policy, source.fallback(), plug_ins.models, core_limits(config))
    flows = Flows()
    lanes = LaneSet(lane_context(config, tell, metrics, flows, plug_ins.models, seed))
    registry = Registry(lanes, tell, core.fleet.get, registry_rules(config))
    changes = FleetChanges()
    recorder = recorder_of(config, first, seed)
    taps: list[Tap] = [metrics, registry, changes, insight.records]
    if recorder is not None:
        taps.append(recorder)
    driver = Driver(core, flows, taps=taps, on_late=metrics.driver_lateness)
    driver.connect(lanes)
    return Parts(
        core=core,
        driver=driver,
        lanes=lanes,
        registry=registry,
        service=InferenceService(
            driver,
            service_limits(config),
            salts=salts_of(config.prefixes.tenants_share, config.prefixes.secret_file),
            on_refused=lambda error: metrics.refused(error.reason),
        ),
        fleet_service=FleetService(
            registry, core.fleet.get, changes, fleet_times(config), call_limits(config), learning
        ),
        health=Health([SERVICE_NAME], call_limits(config)),
        metrics=metrics,
        exposition=exposition,
        watch=watch_of(config, source, tell, metrics),
        recorder=recorder,
        insight=insight,
        pricing=pricing_of(plug_ins, core, driver, metrics),
        backends=backends,
    )


def insight_of(config: DaemonConfig, plug_ins: PlugIns, metrics: Metrics, seed: int) -> Insight:
    """What explains decisions. Raises ConfigError for a shadow policy that cannot be built."""
    return Insight(shadow_of(config, plug_ins, metrics, seed), call_limits(config))


def shadow_of(config: DaemonConfig, plug_ins: PlugIns, metrics: Metrics, seed: int) -> Shadow | None:
    """The policy of [shadow], with the models of the live one. Raises ConfigError."""
    chosen = config.shadow
    if chosen.policy is None:
        return None

    def named(name: str, params: Mapping[str, object]) -> Policy:
        return plug_ins.build(name, params, plug_ins.models, random.Random(f"{seed}/shadow"))

    if chosen.file is not None:
        policy = load(chosen.file, lambda text: named(*plug_ins.parse(text))).policy
    else:
        policy = named(chosen.policy, chosen.params)
    return Shadow(policy, metrics, ShadowLimits(chosen.budget_s, chosen.share, chosen.max_behind))


def static_backends(config: DaemonConfig, plug_ins: PlugIns) -> tuple[tuple[str, str, Opener], ...]:
    """Every [[backend]], with the link it is reached by. Raises ConfigError for an engine set up wrongly."""
    return tuple(
        (backend.id, backend.url, plug_ins.engines(backend))
        if backend.engine
        else (backend.id, backend.address, Lane)
        for backend in config.backend
    )


def stopwatch(
    config: DaemonConfig, metrics: Metrics, tell: Callable[[Fact], None]
) -> Callable[[Policy], Policy]:
    """Wraps policies so that the core hears of slow decisions, and the metrics of all."""

    def overran(duration_s: Seconds) -> None:
        tell(PolicyOverran(duration_s))

    return lambda policy: TimedPolicy(policy, config.policy.budget_s, metrics.decision, overran)


def lane_context(
    config: DaemonConfig,
    tell: Callable[[Fact], None],
    metrics: Metrics,
    flows: Flows,
    models: ModelSource,
    seed: int,
) -> LaneContext:
    """What the lanes share. Specs are vetted by building their step model, as policies will."""
    hooks, rng = LaneMetrics(metrics), random.Random(seed)
    return LaneContext(tell, rng, lane_times(config), hooks=hooks, counts=flows.counts, vet=models)


def watch_of(
    config: DaemonConfig, source: PolicySource, tell: Callable[[Fact], None], metrics: Metrics
) -> PolicyWatch | None:
    """Follows the policy file, if the configuration names one."""
    file = config.policy.file
    return None if file is None else PolicyWatch(file, source.build, tell, metrics.config_reloaded)


def pricing_of(plug_ins: PlugIns, core: RouterCore, driver: Driver, metrics: Metrics) -> Pricing | None:
    """Works out prices, if there is a solver; whether the policy takes any is seen when it is asked."""
    if plug_ins.solve is None:
        return None
    return Pricing(core.price_problem, driver.tell, driver.now, plug_ins.solve, metrics)


def recorder_of(config: DaemonConfig, first: Loaded, seed: int) -> Recorder | None:
    """A recorder, if the configuration names a file. Raises ConfigError when it cannot be written."""
    path = config.observe.record
    if path is None:
        return None
    meta = {
        "policy": first.text,
        "fallback": config.policy.fallback,
        "seed": str(seed),
        "admission": config.admission.model_dump_json(),
    }
    try:
        return Recorder(path, meta=meta, max_bytes=config.observe.record_max_bytes)
    except OSError as error:
        raise ConfigError(
            f"observe.record = {path}: {error.strerror}; the daemon does not start; name a writable place"
        ) from error


# --- sections of the configuration as the parts want them ------------------------------------------


def core_limits(config: DaemonConfig) -> CoreLimits:
    """[admission] has the core's own names."""
    return CoreLimits(**config.admission.model_dump())


def lane_times(config: DaemonConfig) -> LaneTimes:
    """[lanes]."""
    lanes = config.lanes
    return LaneTimes(
        connect_s=lanes.connect_timeout_s,
        backoff_min_s=lanes.backoff_min_s,
        backoff_max_s=lanes.backoff_max_s,
        silence_s=lanes.silence_s,
        decode_stall_s=lanes.decode_stall_s,
        max_queued_commands=lanes.max_queued_commands,
    )


def registry_rules(config: DaemonConfig) -> RegistryRules:
    """[registration]."""
    registration = config.registration
    return RegistryRules(
        registration.rules(),
        registration.max_backends,
        registration.forget_after_s,
        may_register=registration.enabled,
    )


def fleet_times(config: DaemonConfig) -> FleetTimes:
    """[registration] and [drain], as FleetService wants them."""
    return FleetTimes(heartbeat_s=config.registration.heartbeat_s, drain_s=config.drain.backend_timeout_s)


def call_limits(config: DaemonConfig) -> CallLimits:
    """[limits], as the admin listener wants them; room for every backend's registration, and operators."""
    limits = config.limits
    return CallLimits(
        limits.first_message_timeout_s, limits.write_timeout_s, config.registration.max_backends + 256
    )


def service_limits(config: DaemonConfig) -> ServiceLimits:
    """[limits], as the northbound service wants them."""
    limits = config.limits
    request = RequestLimits(
        message_bytes=limits.max_request_bytes,
        prompt_tokens=limits.max_prompt_tokens,
        max_new_tokens=limits.max_new_tokens,
        default_deadline_s=limits.default_deadline_s,
        max_deadline_s=limits.max_deadline_s,
    )
    return ServiceLimits(
        request=request,
        session=SessionLimits(streams=limits.max_session_requests),
        first_message_s=limits.first_message_timeout_s,
        write_s=limits.write_timeout_s,
        calls=limits.max_calls,
    )
