"""Adds reports up as they come: per class, per backend, per pair. Memory does not grow with the requests."""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Final

from router.model import BackendSpec, Phase, PhaseUse, Report, Request, Seconds
from router.observe.reports import last_use, objectives_met
from router.sim.histogram import Histogram
from router.sim.result import LATENCIES, PHASES, ClassResult, Fate, Flow

FATES: Final = 20_000
"""Requests whose fate is kept for comparisons."""
MIN_GAPS: Final = 2
"""Gaps between tokens below which a request has no jitter."""


def group_of(spec: BackendSpec) -> str:
    """Backends of one kind and device are shown as one."""
    return f"{spec.kind.value} {spec.device}" if spec.device else spec.kind.value


class ClassTally:
    """One workload class."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.arrived = self.ok = self.met = 0
        self.prompt_tokens = self.output_tokens = 0
        self.cost_usd = self.energy_j = 0.0
        self.kept: dict[str, int] = {}
        self.asked: dict[str, int] = {}
        self.times: dict[str, Histogram] = {name: Histogram() for name in (*PHASES, *LATENCIES)}

    def judge(self, met: Mapping[str, bool]) -> None:
        """Book what became of each objective."""
        self.arrived += 1
        for name, kept in met.items():
            if name == "all":
                self.met += kept
            else:
                self.asked[name] = self.asked.get(name, 0) + 1
                self.kept[name] = self.kept.get(name, 0) + kept

    def time(self, report: Report, split: bool) -> None:
        """Book where the time of a request went that ended well."""
        times, to = report.times, self.times
        to["queue"].add(times.queue_s)
        to["prefill"].add(times.prefill_s)
        if split:
            to["handoff"].add(times.handoff_s)
        to["decode"].add(times.decode_s)
        to["e2e"].add(times.e2e_s)
        if times.ttft_s is not None:
            to["ttft"].add(times.ttft_s)
        if times.tpot_s is not None:
            to["tpot"].add(times.tpot_s)

    def result(self) -> ClassResult:
        """The values so far."""
        return ClassResult(
            self.name,
            self.arrived,
            self.ok,
            self.met,
            {name: (self.kept[name], asked) for name, asked in self.asked.items()},
            self.prompt_tokens,
            self.output_tokens,
            self.cost_usd,
            self.energy_j,
            self.times,
        )


class Tally:
    """All that a run's reports say."""

    def __init__(self, specs: Mapping[str, BackendSpec], classes: tuple[str, ...]) -> None:
        self._groups = {name: group_of(spec) for name, spec in specs.items()}
        self._classes = {name: ClassTally(name) for name in classes}
        self._flows: dict[tuple[str, str, bool], list[int]] = {}
        self.failures: Counter[str] = Counter()
        self.retries = 0
        self.prefills: Counter[str] = Counter()
        self.decodes: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.fates = Fates()
        self.ended_at: Seconds = 0.0
        self.ended = 0
        self.crowded = 0
        """Requests that failed for want of room or time."""

    def add(self, report: Report, now: Seconds, token_times: array[float] | None = None) -> None:
        """A request ended."""
        self.ended += 1
        self.ended_at = now
        of = self._class(report.request)
        met = objectives_met(report, now)
        if token_times is not None and report.finish is not None:
            met = self._jitter(of, report, met, token_times)
        of.judge(met)
        of.cost_usd += report.cost_usd
        of.energy_j += report.energy_j
        self.retries += max(0, report.attempts - 1)
        if report.finish is None:
            self.failures[report.error] += 1
            self.crowded += report.error in CROWDED
            where = report.error
        else:
            where = self._finished(of, report)
        self.fates.add(report, met["all"], where)

    def _finished(self, of: ClassTally, report: Report) -> str:
        """Book a request that ended well; returns its backends."""
        prefill, decode = last_use(report, Phase.PREFILL), last_use(report, Phase.DECODE)
        decode = decode or prefill
        of.ok += 1
        of.prompt_tokens += report.usage.prompt_tokens
        of.output_tokens += report.usage.output_tokens
        split = prefill is not None and decode is not None and prefill.backend != decode.backend
        of.time(report, split)
        if prefill is None or decode is None:
            return ""
        self._flow(prefill, decode, report)
        return f"{prefill.backend} → {decode.backend}" if split else prefill.backend

    def _flow(self, prefill: PhaseUse, decode: PhaseUse, report: Report) -> None:
        self.prefills[prefill.backend] += 1
        self.decodes[decode.backend] += 1
        self.tokens[decode.backend] += report.usage.output_tokens
        groups, split = self._groups, prefill.backend != decode.backend
        key = (groups[prefill.backend], groups[decode.backend], split)
        counts = self._flows.get(key)
        if counts is None:
            counts = self._flows[key] = [0, 0, 0]
        counts[0] += 1
        counts[1] += report.usage.prompt_tokens
        counts[2] += report.usage.output_tokens

    def _jitter(
        self, of: ClassTally, report: Report, met: Mapping[str, bool], times: array[float]
    ) -> Mapping[str, bool]:
        limit = report.request.slo.jitter_ratio
        gaps = [after - before for before, after in pairwise(times)]
        itl = of.times.setdefault("itl", Histogram())
        for gap in gaps:
            itl.add(gap)
        ratio = jitter(gaps)
        of.times.setdefault("jitter", Histogram()).add(ratio)
        if limit is None:
            return met
        return {**met, "jitter": ratio <= limit, "all": met["all"] and ratio <= limit}

    def _class(self, request: Request) -> ClassTally:
        name = request.workload_class
        if name not in self._classes:
            self._classes[name] = ClassTally(name)
        return self._classes[name]

    def classes(self) -> tuple[ClassResult, ...]:
        """In the order of the workload."""
        return tuple(one.result() for one in self._classes.values())

    def flows(self) -> tuple[Flow, ...]:
        """Most requests first."""
        rows = sorted(self._flows.items(), key=lambda item: (-item[1][0], item[0]))
        return tuple(Flow(*key, *counts) for key, counts in rows)


CROWDED: Final = frozenset(
    {"QUEUE_FULL", "SHED", "DEADLINE_EXPIRED", "DEADLINE_INFEASIBLE", "RETRIES_EXHAUSTED"}
)
"""Failures that more backends, or less load, would have avoided."""


def jitter(gaps: list[float]) -> float:
    """p99 over p50 of the gaps between a request's tokens; 1 for fewer than MIN_GAPS of them."""
    if len(gaps) < MIN_GAPS:
        return 1.0
    ordered = sorted(gaps)
    p50, p99 = (ordered[max(0, -(-int(q * len(ordered)) // 100) - 1)] for q in (50, 99))
    return p99 / p50 if p50 > 0 else 1.0


class Fates:
    """The fates of a sample. Whether a request is in it depends on its id alone, so that runs of different
    policies keep the same requests; the sample shrinks by half when it is full."""

    def __init__(self, most: int = FATES) -> None:
        self.kept: dict[str, Fate] = {}
        self._most = most
        self._below = 1 << 32

    def add(self, report: Report, met: bool, where: str) -> None:
        """Keep the fate of a request, if it is in the sample. `where` is as in Fate."""
        name = report.request.id
        if self._below < 1 << 32 and zlib.crc32(name.encode()) >= self._below:
            return
        finished = report.finish is not None
        e2e_s = report.times.e2e_s if finished else float("inf")
        self.kept[name] = Fate(met, e2e_s, report.times.ttft_s, where)
        while len(self.kept) > self._most:
            self._below //= 2
            self.kept = {k: v for k, v in self.kept.items() if zlib.crc32(k.encode()) < self._below}
