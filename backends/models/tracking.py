"""Step models that follow the backends: the prior is what a backend declares, the rest is observed. Pure.

TrackedModels is a core.ports.LearningModels. The core feeds it facts; it keeps one tracker per backend, and
hands out immutable models, built anew when the ratios to the prior have moved (docs/adr/0006). A new
incarnation starts from the prior again: what was learned of the process before says nothing of it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from backends.models.estimate import DECLARED, Estimate, scaled
from backends.models.evidence import Growth, Prior, Terms, between, counted, of_interval, of_phase
from backends.models.latency import StepLaw
from backends.models.laws import StepModels
from router.core.messages import BackendJoined, BackendLost, BackendRemoved, BackendReported
from router.errors import PolyphaseError
from router.model import BackendSnapshot, BackendSpec, Phase, PhaseSample, Seconds, StepParameters

DIARY: Final = 256
"""Reports of busy time kept of a worker that does not count its work: 13 s at 20 a second."""
REFERENCE_PROMPT: Final = 1024
"""New tokens of the reference prefill, and context of each sequence of the reference step; less where the
backend's limits are lower."""
REFERENCE_BATCH: Final = 8


class Tracker:
    """What is known of one incarnation of a backend. Never raises on what a worker reports."""

    __slots__ = ("_counts", "_diary", "_last", "estimate", "incarnation", "prior")

    def __init__(self, prior: Prior, incarnation: str) -> None:
        self.prior = prior
        self.incarnation = incarnation
        self.estimate = Estimate(prior)
        self._last: Growth | None = None
        """Counters of the last report; None when the next one has none to be compared with."""
        self._counts = False
        """Whether the worker counts the regressors; then phases teach nothing more."""
        self._diary: deque[tuple[Seconds, Seconds]] = deque(maxlen=DIARY)
        """When the last reports came, and the time spent on prompts by then."""

    def disconnected(self) -> None:
        """The next report is compared with none before it."""
        self._last = None

    def reported(self, snapshot: BackendSnapshot, now: Seconds) -> bool:
        """Learn from the time since the last report; says whether another model is in force."""
        old, self._last = self._last, None
        new = counted(snapshot)
        if not new.is_sound:
            return False
        self._last = new
        self._counts = self._counts or new.steps > 0
        if not self._counts:
            self._diary.append((now, new.prefill_s))
        if old is None:
            return False
        growth = between(old, new)
        if not growth.is_sound:  # the counters were set back: a restart that nobody announced
            self.estimate = Estimate(self.prior)
            self._diary.clear()
            return True
        evidence = of_interval(self.prior, growth, now)
        return evidence is not None and self.estimate.learn(evidence)

    def phase_ended(self, sample: PhaseSample, now: Seconds) -> bool:
        """Learn from one phase, where the worker tells nothing better."""
        if self._counts:
            return False
        share = self._prefill_share(now - sample.lasted_s)
        evidence = of_phase(self.prior, sample, share, now)
        return evidence is not None and self.estimate.learn(evidence)

    def _prefill_share(self, since: Seconds) -> float:
        """Part of the time since then, as far as reports tell, that went to prompts."""
        if len(self._diary) < 2:
            return 0.0
        first = max(0, bisect_right(self._diary, (since, math.inf)) - 1)
        (begin, before), (end, after) = self._diary[min(first, len(self._diary) - 2)], self._diary[-1]
        return min(1.0, max(0.0, after - before) / (end - begin)) if end > begin else 0.0


class Floor:
    """The fastest that backends of one set of step parameters have been, by ratios of at most 1."""

    __slots__ = ("_law", "_of", "backends", "ratios")

    def __init__(self) -> None:
        self.ratios: Terms = DECLARED
        self.backends = 0
        """How many have these parameters; without any it is forgotten."""
        self._of: BackendSpec | None = None
        self._law: StepLaw | None = None

    def lower(self, ratios: Terms) -> None:
        """Somebody runs with these ratios."""
        r0, r1, r2, r3, r4 = map(min, self.ratios, ratios)
        if (r0, r1, r2, r3, r4) != self.ratios:
            self.ratios, self._of = (r0, r1, r2, r3, r4), None

    def law(self, spec: BackendSpec, models: StepModels) -> StepLaw:
        """The law of a spec at its fastest; kept for the spec that was asked for last."""
        if self._law is None or self._of is not spec:
            self._of = spec
            self._law = models(spec if self.ratios == DECLARED else scaled(spec, self.ratios))
        return self._law


class TrackedModels:
    """Implements core.ports.LearningModels."""

    def __init__(self) -> None:
        self._declared = StepModels()
        self._trackers: dict[str, Tracker] = {}
        self._floors: dict[StepParameters, Floor] = {}

    def __call__(self, spec: BackendSpec) -> StepLaw:
        """The tracked model of a backend that is known with this spec, else the declared one.

        Raise ConfigError for parameters that give no sensible times.
        """
        tracker = self._tracker(spec)
        return self._declared(spec) if tracker is None else tracker.estimate.law

    def bound(self, spec: BackendSpec) -> StepLaw:
        """Each term at its fastest: as declared, or as once tracked on a backend of these parameters.

        It only ever becomes faster while such a backend is known, so one that recovers is never refused work
        on the strength of its bad hours.
        """
        floor = self._floors.get(spec.step)
        return self._declared(spec) if floor is None else floor.law(spec, self._declared)

    def observe(self, fact: Any, now: Seconds) -> None:
        """Learn from reports; start and forget trackers."""
        match fact:
            case BackendReported(backend=backend, snapshot=snapshot):
                tracker = self._trackers.get(backend)
                if tracker is not None and tracker.reported(snapshot, now):
                    self._lower_floor(tracker)
            case BackendJoined():
                self._joined(fact)
            case BackendLost(backend=backend):
                if (tracker := self._trackers.get(backend)) is not None:
                    tracker.disconnected()
            case BackendRemoved(backend=backend):
                self._forget(backend)
            case _:
                pass

    def phase_ended(self, sample: PhaseSample, now: Seconds) -> None:
        """Learn from a phase."""
        tracker = self._trackers.get(sample.backend)
        if tracker is not None and tracker.phase_ended(sample, now):
            self._lower_floor(tracker)

    def drift(self, spec: BackendSpec) -> Mapping[Phase, float]:
        """Tracked over declared time of a reference prefill and decode step, of the phases on offer."""
        tracker = self._tracker(spec)
        if tracker is None:
            return {}
        law, declared = tracker.estimate.law, tracker.prior.law
        context = max(1, min(REFERENCE_PROMPT, spec.max_context_tokens))
        batch = max(1, min(REFERENCE_BATCH, spec.max_num_seqs))
        ratios: dict[Phase, float] = {}
        if Phase.PREFILL in spec.phases:
            ratios[Phase.PREFILL] = _ratio(law.prefill_s(context), declared.prefill_s(context))
        if Phase.DECODE in spec.phases:
            load = (batch, batch * context)
            ratios[Phase.DECODE] = _ratio(law.decode_step_s(*load), declared.decode_step_s(*load))
        return ratios

    def fit(self, backend: str) -> Mapping[str, float]:
        """Observed over predicted time, by kind of work."""
        tracker = self._trackers.get(backend)
        if tracker is None:
            return {}
        return {work.value.removesuffix("_phase"): fit for work, fit in tracker.estimate.fit().items()}

    def ratios(self, backend: str) -> Terms:
        """Ratios of the terms of a backend's model to those it declares; 1 for one that is not known."""
        tracker = self._trackers.get(backend)
        return DECLARED if tracker is None else tracker.estimate.built

    def _tracker(self, spec: BackendSpec) -> Tracker | None:
        tracker = self._trackers.get(spec.id)
        if tracker is None or (tracker.prior.spec is not spec and tracker.prior.spec != spec):
            return None
        return tracker

    def _joined(self, fact: BackendJoined) -> None:
        """A backend that only lost its lane goes on as it was; anything else starts from what it declares."""
        spec, known = fact.spec, self._trackers.get(fact.spec.id)
        if known is not None and (known.incarnation, known.prior.spec) == (fact.incarnation, spec):
            known.disconnected()
            return
        self._forget(spec.id)
        try:
            prior = Prior(spec, self._declared(spec))
        except PolyphaseError:
            return  # policies leave it out for the same reason
        self._trackers[spec.id] = Tracker(prior, fact.incarnation)
        self._floors.setdefault(spec.step, Floor()).backends += 1

    def _forget(self, backend: str) -> None:
        tracker = self._trackers.pop(backend, None)
        if tracker is None:
            return
        step = tracker.prior.spec.step
        self._floors[step].backends -= 1
        if not self._floors[step].backends:
            del self._floors[step]

    def _lower_floor(self, tracker: Tracker) -> None:
        self._floors[tracker.prior.spec.step].lower(tracker.estimate.built)


def _ratio(tracked_s: Seconds, declared_s: Seconds) -> float:
    return tracked_s / declared_s if declared_s > 0.0 else 1.0
