"""A made-up worker that counts its regressors: its true speed is ours to set, its reports are as usual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from backends.models.estimate import scaled
from backends.models.evidence import Terms
from backends.models.laws import law_of
from backends.models.tracking import TrackedModels
from router.core.messages import BackendJoined, BackendReported
from router.model import BackendKind, BackendSnapshot, BackendSpec, Phase, StepParameters

H100 = StepParameters(
    base_s=6.39e-3,
    per_sequence_s=11.8e-6,
    per_context_token_s=41.8e-9,
    prefill_base_s=1.2e-3,
    prefill_floor_s=6.6e-3,
    per_prefill_token_s=20.3e-6,
    per_attention_pair_s=0.771e-9,
)
"""Llama-3.1-8B in bf16 on one H100, fitted to public measurements (NVIDIA AIConfigurator 0.12)."""


def backend(backend_id: str = "b", step: StepParameters = H100, **fields: Any) -> BackendSpec:
    """A GPU that offers both phases."""
    spec = BackendSpec(backend_id, BackendKind.GPU, "h100", ("m",), frozenset(Phase), step)
    return replace(spec, **fields)


@dataclass(frozen=True, slots=True)
class Load:
    """What the steps of an interval work on."""

    steps: int
    batch: int = 0
    context: int = 0
    """Tokens per decoding sequence."""
    chunk: int = 0
    """Prompt tokens per step."""
    history: int = 0


def decoding(rng: Random) -> Load:
    """Five steps of a batch of 1 to 64."""
    return Load(5, rng.randint(1, 64), rng.randint(200, 8000))


def prefilling(rng: Random) -> Load:
    """One or two chunks, alone."""
    return Load(rng.randint(1, 2), chunk=rng.randint(600, 8192), history=rng.choice((0, 0, 4096)))


def mixing(rng: Random) -> Load:
    """A chunk with each step of a batch."""
    return Load(3, rng.randint(1, 64), rng.randint(200, 8000), rng.randint(64, 2048))


def anything(rng: Random) -> Load:
    """All of these, in turns."""
    return rng.choice((decoding, decoding, prefilling, mixing))(rng)


class Plant:
    """One backend that joined, with a speed that it does not declare."""

    def __init__(
        self, models: TrackedModels, spec: BackendSpec, seed: int = 0, noise: float = 0.02, boot: str = "boot"
    ) -> None:
        self.spec = spec
        self.truth = law_of(spec)
        self.now = 0.0
        self.snapshot = BackendSnapshot(0.0)
        self._models = models
        self._rng = Random(seed)
        self._noise = noise
        self.join(boot)

    @property
    def law(self) -> Any:
        """What the tracker holds of it."""
        return self._models(self.spec)

    def join(self, boot: str) -> None:
        """Start a process: its counters are at zero."""
        self.snapshot = BackendSnapshot(self.now)
        self._models.observe(BackendJoined(self.spec, boot), self.now)
        self.report()

    def becomes(self, *ratios: float) -> None:
        """Run at so many times the declared terms: one number for all, or one for each."""
        r: Terms = (ratios * 5)[:5] if len(ratios) == 1 else ratios  # type: ignore[assignment]
        self.truth = law_of(scaled(self.spec, r))

    def work(self, load: Load, factor: float = 1.0) -> None:
        """Run the steps of an interval and report; `factor` on their time makes an outlier."""
        n, s = load.steps, self.snapshot
        contexts, pairs = load.batch * load.context, load.chunk * (load.history + 0.5 * load.chunk)
        step_s = self.truth.mixed_step_s(load.batch, contexts, load.chunk, pairs)
        busy_s = sum(step_s * self._rng.lognormvariate(0.0, self._noise) for _ in range(n)) * factor
        self.now += max(0.05, busy_s)
        self.snapshot = replace(
            s,
            observed_at=self.now,
            running=load.batch,
            busy_decode_s=s.busy_decode_s + (busy_s if load.batch else 0.0),
            busy_prefill_s=s.busy_prefill_s + (0.0 if load.batch else busy_s),
            steps=s.steps + n,
            decode_sequences=s.decode_sequences + n * load.batch,
            context_tokens=s.context_tokens + n * contexts,
            prefill_tokens=s.prefill_tokens + n * load.chunk,
            attention_pairs=s.attention_pairs + n * pairs,
        )
        self.report()

    def report(self) -> None:
        """Send the counters as they stand."""
        self._models.observe(BackendReported(self.spec.id, self.snapshot), self.now)

    def run(
        self,
        intervals: int,
        load: Callable[[Random], Load] = anything,
        outliers: float = 0.0,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """Work for a while; `outliers` is the share of intervals that seem 5 times longer or shorter."""
        for _ in range(intervals):
            wild = self._rng.random() < outliers
            self.work(load(self._rng), self._rng.choice((5.0, 0.2)) if wild else 1.0)
            watch()

    def error(self) -> float:
        """Largest relative error over reference steps: decodes small and large, prefills short and long."""
        shapes = [(1, 500, 0, 0.0), (8, 8192, 0, 0.0), (64, 64 * 4000, 0, 0.0), (16, 16384, 512, 131072.0)]
        shapes += [(0, 0, n, 0.5 * n * n) for n in (700, 2048, 8192)]
        known, true = self.law, self.truth
        return max(abs(known.mixed_step_s(*s) / true.mixed_step_s(*s) - 1.0) for s in shapes)
