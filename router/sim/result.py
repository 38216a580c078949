"""What a simulation found: values, and how they read as JSON. Nothing here depends on wall-clock time, the
machine or the order of sets, so that the same seed gives the same bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.model import BackendKind, Seconds
from router.sim.histogram import Histogram

PHASES = ("queue", "prefill", "handoff", "decode")
LATENCIES = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One workload class. Times are of requests that ended well."""

    name: str
    arrived: int
    ok: int
    met: int
    """Ended well and met every objective they had."""
    kept: Mapping[str, tuple[int, int]]
    """Objective (ttft, tpot, jitter, deadline) -> requests that met it, requests that had it."""
    prompt_tokens: int
    output_tokens: int
    cost_usd: float
    """Device time at list price."""
    energy_j: float
    """Energy of that device time."""
    times: Mapping[str, Histogram]
    """queue, prefill, handoff (of split requests), decode, ttft, tpot, e2e; itl (gaps between tokens) and
    jitter (p99 over p50 of a request's gaps) where the class has a jitter objective."""

    @property
    def attainment(self) -> float:
        """Share of the arrived that met all objectives; 1 when none arrived."""
        return self.met / self.arrived if self.arrived else 1.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "class": self.name,
            "arrived": self.arrived,
            "ok": self.ok,
            "met": self.met,
            "attainment": self.attainment,
            "objectives": {name: {"met": m, "of": n} for name, (m, n) in self.kept.items()},
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
            "energy_j": self.energy_j,
            "times": {name: histogram.summary() for name, histogram in self.times.items()},
        }


@dataclass(frozen=True, slots=True)
class BackendResult:
    """One backend over the whole run."""

    id: str
    group: str
    """Kind and device: backends of one group are alike in pictures and flows."""
    kind: BackendKind
    prefills: int
    decodes: int
    output_tokens: int
    busy_prefill_s: Seconds
    busy_decode_s: Seconds
    energy_j: float
    """Idle time included."""
    rent_usd: float
    """List price of the whole duration, busy or not."""
    preemptions: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Flow:
    """Requests whose prefill ran on one group and whose decode ran on another, or the same."""

    prefill: str
    decode: str
    split: bool
    """On two backends."""
    requests: int
    prompt_tokens: int
    output_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the fleet did over time, in steps of equal length."""

    step_s: Seconds
    busy: Mapping[tuple[str, str], Sequence[float]]
    """(group, phase) -> share of the group's device time, in [0, 1] per step."""
    power_w: Mapping[str, Sequence[float]]
    """Mean power of a group, idle included."""
    live: Sequence[int]
    """Requests under way at the end of each step."""
    backlog: Sequence[int]
    """Of these, the ones that no backend works on."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "step_s": self.step_s,
            "busy": [{"group": g, "phase": p, "share": list(v)} for (g, p), v in self.busy.items()],
            "power_w": {group: list(values) for group, values in self.power_w.items()},
            "live": list(self.live),
            "backlog": list(self.backlog),
        }


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one request."""

    met: bool
    e2e_s: Seconds
    """Infinite when it failed."""
    ttft_s: Seconds | None
    where: str
    """Prefill and decode backend, or the reason of the failure."""


@dataclass(frozen=True, slots=True)
class SimResult:
    """One policy, one load, one seed."""

    policy: str
    workload: str
    fleet: str
    seed: int
    rate_scale: float
    duration_s: Seconds
    """Until the last request ended."""
    offered_s: Seconds
    """Until the last request came; the duration when all came at one moment."""
    classes: tuple[ClassResult, ...]
    failures: Mapping[str, int]
    """Reason -> requests."""
    retries: int
    backends: tuple[BackendResult, ...]
    flows: tuple[Flow, ...]
    timeline: Timeline
    fates: Mapping[str, Fate]
    """Of a sample of the requests, the same sample for every policy."""
    stopped: str = ""
    """Why the run was ended early; empty when all requests ended."""
    policy_faults: int = 0
    """Answers of the policy that could not be carried out."""

    @property
    def arrived(self) -> int:
        """Requests that came."""
        return sum(one.arrived for one in self.classes)

    @property
    def ok(self) -> int:
        """Requests that ended well."""
        return sum(one.ok for one in self.classes)

    @property
    def met(self) -> int:
        """Requests that ended well and met all their objectives."""
        return sum(one.met for one in self.classes)

    @property
    def attainment(self) -> float:
        """Share of the arrived that met all objectives."""
        return self.met / self.arrived if self.arrived else 1.0

    @property
    def offered_per_s(self) -> float:
        """Arrivals per second while requests came."""
        return self.arrived / self.offered_s if self.offered_s else 0.0

    @property
    def goodput_per_s(self) -> float:
        """Of the offered requests per second, those that met all objectives."""
        return self.met / self.offered_s if self.offered_s else 0.0

    @property
    def done_per_s(self) -> float:
        """Requests that met all objectives, per second of the whole duration, the drain at the end included:
        what a bound on capacity is compared with."""
        return self.met / self.duration_s if self.duration_s else 0.0

    @property
    def output_tokens(self) -> int:
        """Of requests that ended well."""
        return sum(one.output_tokens for one in self.classes)

    @property
    def energy_j(self) -> float:
        """Of the fleet, idle time included."""
        return math.fsum(one.energy_j for one in self.backends)

    @property
    def rent_usd(self) -> float:
        """List price of the fleet for the whole duration."""
        return math.fsum(one.rent_usd for one in self.backends)

    @property
    def device_usd(self) -> float:
        """List price of the device time that requests used."""
        return math.fsum(one.cost_usd for one in self.classes)

    def times(self, name: str) -> Histogram:
        """A latency over all classes."""
        whole = Histogram()
        for one in self.classes:
            if name in one.times:
                whole.merge(one.times[name])
        return whole

    def metrics(self) -> dict[str, float]:
        """The numbers by which policies are compared. Lower is better but for goodput and attainment."""
        tokens = max(1, self.output_tokens)
        found = {
            "goodput_per_s": self.goodput_per_s,
            "attainment": self.attainment,
            "rent_usd_per_mtok": self.rent_usd / tokens * 1e6,
            "device_usd_per_mtok": self.device_usd / tokens * 1e6,
            "energy_j_per_token": self.energy_j / tokens,
        }
        for name in LATENCIES:
            histogram = self.times(name)
            p50, p90, p99 = histogram.quantiles((0.5, 0.9, 0.99))
            found |= {f"{name}_mean_s": histogram.mean, f"{name}_p50_s": p50}
            found |= {f"{name}_p90_s": p90, f"{name}_p99_s": p99}
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the fates."""
        return {
            "policy": self.policy,
            "seed": self.seed,
            "rate_scale": self.rate_scale,
            "duration_s": self.duration_s,
            "offered_s": self.offered_s,
            "arrived": self.arrived,
            "ok": self.ok,
            "met": self.met,
            "offered_per_s": self.offered_per_s,
            "failures": dict(self.failures),
            "retries": self.retries,
            "policy_faults": self.policy_faults,
            "stopped": self.stopped,
            "energy_j": self.energy_j,
            "rent_usd": self.rent_usd,
            "metrics": self.metrics(),
            "times": {name: self.times(name).summary() for name in (*PHASES, *LATENCIES)},
            "classes": [one.as_dict() for one in self.classes],
            "backends": [one.as_dict() for one in self.backends],
            "flows": [one.as_dict() for one in self.flows],
            "timeline": self.timeline.as_dict(),
        }
