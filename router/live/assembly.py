"""Builds the parts of a router from its configuration and joins them. Opens nothing and starts nothing.

Policies and models are plugged in: the live shell knows none of them by name.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata

from prometheus_client import CollectorRegistry

from router.config import DaemonConfig, PolicyChoice
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
from router.live.lane import LaneContext, LaneTimes
from router.live.lanes import LaneSet
from router.live.registry import Registry, RegistryRules
from router.live.reload import Loaded, PolicyWatch, load
from router.live.service import SERVICE_NAME, InferenceService, ServiceLimits
from router.live.session import SessionLimits
from router.live.timed_policy import TimedPolicy
from router.live.validate import Limits as RequestLimits
from router.model import Seconds
from router.observe.metrics import Metrics
from router.observe.record import Recorder


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


class PolicySource:
    """Builds what [policy] asks for."""

    def __init__(
        self, choice: PolicyChoice, plug_ins: PlugIns, seed: int, wrap: Callable[[Policy], Policy]
    ) -> None:
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
        return Loaded(self._wrap(self._named(choice.name, choice.params)), text)

    def fallback(self) -> Policy:
        """The policy that decides when the other cannot be trusted. Raises ConfigError."""
        return self._named(self._choice.fallback, {})

    def build(self, text: str) -> Policy:
        """A policy from the text of a file. Raises ConfigError."""
        name, params = self._plug_ins.parse(text)
        return self._wrap(self._named(name, params))

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

    source = PolicySource(config.policy, plug_ins, seed, stopwatch(config, metrics, tell))
    first = source.first()
    core = RouterCore(first.policy, source.fallback(), plug_ins.models, core_limits(config))
    flows = Flows()
    lanes = LaneSet(lane_context(config, tell, metrics, flows, plug_ins.models, seed))
    registry = Registry(lanes, tell, core.fleet.get, registry_rules(config))
    changes = FleetChanges()
    recorder = recorder_of(config, first, seed)
    taps: list[Tap] = [metrics, registry, changes, *([recorder] if recorder is not None else [])]
    driver = Driver(core, flows, taps=taps, on_late=metrics.driver_lateness)
    driver.connect(lanes)
    return Parts(
        core=core,
        driver=driver,
        lanes=lanes,
        registry=registry,
        service=InferenceService(
            driver, service_limits(config), on_refused=lambda error: metrics.refused(error.reason)
        ),
        fleet_service=FleetService(
            registry, core.fleet.get, changes, fleet_times(config), call_limits(config), learning
        ),
        health=Health([SERVICE_NAME], call_limits(config)),
        metrics=metrics,
        exposition=exposition,
        watch=watch_of(config, source, tell, metrics),
        recorder=recorder,
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
