"""Voices beside a heavy prefill load: whose tokens keep flowing?

Callers who speak again and again share a fleet with long documents, whose prefills stretch the decode steps
of the backends they run on. Judged is p99 over p50 of the time per output token over the voices' requests.
Two stricter readings are reported beside it: p99 over p50 of all gaps between the voices' tokens, and the
share of requests that hold the ratio by themselves. In both a split request shows the one gap in which its
KV moves where the first token comes from prefill, so that a policy that splits cannot hold them at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from backends.catalogue import Fleet, load_fleet
from router.model import Priority, ServiceLevel
from router.sim.classes import DrawnLengths, InFlight, Renewal, SessionShape, Workload, WorkloadClass
from router.sim.draws import Fixed, Uniform
from router.sim.result import ClassResult, SimResult
from router.sim.run import Contestant
from tests.bench.policies.field import contestants, is_baseline, labels_of
from tests.bench.policies.play import play
from tests.bench.policies.scale import arrivals, served, theta_of

FLEETS: Final = ("mixed", "fast-slow", "homogeneous")
LIMIT: Final = 1.5
CALLERS: Final = 16
DOCUMENT_TOKENS: Final = 6000
PREFILL_LOAD: Final = 0.6
"""Of the fleet's capacity for documents."""
DURATION_S: Final = 20.0
VOICE: Final = "voice"
ANSWERED: Final = 0.95
"""Share of the calls that must be answered (assumption)."""


@dataclass(frozen=True, slots=True)
class Voice:
    """What one policy made of the voices."""

    fleet: str
    policy: str
    tpot_ratio: float
    """p99 over p50 of the time per output token."""
    gap_ratio: float
    """p99 over p50 of all gaps between tokens."""
    held: float
    """Share of the requests whose own gaps hold the limit."""
    answered: float
    """Share of the voices' requests that ended well: who refuses calls has an easy time with the rest."""
    ttft_kept: float
    documents_met: float

    @property
    def holds(self) -> bool:
        """Whether the class as a whole holds the limit, with its calls answered."""
        return 0 < self.tpot_ratio <= LIMIT and self.answered >= ANSWERED

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "holds": self.holds}


def workload(documents_per_s: float) -> Workload:
    """Voices as in the shipped workload, and documents."""
    voice = WorkloadClass(
        VOICE,
        InFlight(CALLERS, 4.0),
        DrawnLengths(Uniform(300, 600), Uniform(40, 80)),
        "",
        max_new_tokens=256,
        slo=ServiceLevel(0.25, 0.06, LIMIT),
        deadline_s=15.0,
        priority=Priority.INTERACTIVE,
        session=SessionShape(pause_s=Uniform(1.0, 2.0)),
    )
    documents = WorkloadClass(
        "documents",
        Renewal(documents_per_s),
        DrawnLengths(Fixed(DOCUMENT_TOKENS), Uniform(20, 40)),
        "",
        max_new_tokens=64,
        slo=ServiceLevel(10.0),
        deadline_s=60.0,
    )
    return Workload("voices beside documents", (voice, documents))


def documents_per_s(fleet: Fleet) -> float:
    """The rate of documents that the bound B1 allows, times PREFILL_LOAD."""
    alone = workload(1.0)
    alone = served(Workload("documents", alone.classes[1:]), fleet)
    tasks = arrivals(fleet, alone, 1.0, requests=100)
    span_s = tasks[-1].at_s - tasks[0].at_s
    return len(tasks) / span_s * theta_of(fleet, tasks, span_s) * PREFILL_LOAD


def voices(
    fleets: Sequence[str] = FLEETS, labels: Sequence[str] = (), duration_s: float = DURATION_S
) -> list[Voice]:
    """Every policy on every fleet."""
    return [one for name in fleets for one in _on(name, labels or labels_of(bounds=False), duration_s)]


def _on(name: str, labels: Sequence[str], duration_s: float) -> Iterator[Voice]:
    fleet = load_fleet(name)
    load = served(workload(documents_per_s(fleet)), fleet)
    for who in contestants(labels):
        yield _voice(name, who, play(fleet, load, who, 1, duration_s=duration_s))


def _voice(fleet: str, who: Contestant, result: SimResult) -> Voice:
    voice, documents = result.classes
    met, asked = voice.kept.get("jitter", (0, 0))
    kept, of = voice.kept.get("ttft", (0, 0))
    return Voice(
        fleet,
        who.label,
        _ratio(voice, "tpot"),
        _ratio(voice, "itl"),
        met / max(1, asked),
        voice.ok / max(1, voice.arrived),
        kept / max(1, of),
        documents.attainment,
    )


def _ratio(voice: ClassResult, name: str) -> float:
    times = voice.times.get(name)
    if times is None or not times.count:
        return 0.0
    p50, p99 = times.quantiles((0.5, 0.99))
    return p99 / p50 if p50 else 0.0


def best_baseline(found: Sequence[Voice], fleet: str) -> Voice | None:
    """The baseline with the least ratio of those that answer the calls."""
    rivals = [v for v in found if v.fleet == fleet and is_baseline(v.policy) and v.answered >= ANSWERED]
    return min(rivals, key=lambda each: each.tpot_ratio, default=None)
