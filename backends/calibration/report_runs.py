"""The tables of docs/calibration.md about runs of engines, real and simulated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from random import Random
from typing import Final

import numpy as np

from backends.calibration.judge import Errors
from backends.calibration.limits import BARE, Limits, Scheduling
from backends.calibration.markdown import markdown
from backends.calibration.run import calibrate, check
from backends.calibration.runfile import read_run
from backends.calibration.search import GENERIC
from backends.calibration.synthetic import synthetic_run
from backends.hardware import load_device, load_shape
from backends.models.prior_text import profile_text
from backends.models.profile import Profile, Provenance, Trust, parse_profile
from backends.models.roofline import prior
from backends.models.shape import Dtype
from router.model import BackendSpec, StepParameters

DATA: Final = Path(__file__).parent / "data"
PRO: Final = DATA / "groundtruth_vllm_rtxpro6000_llama-3.1-8b.csv.gz"
ADA: Final = DATA / "groundtruth_vllm_rtx4090_llama-3.1-8b.csv.gz"
PRO_LIMITS: Final = Limits(128, 2048, 574_608)
ADA_LIMITS: Final = Limits(256, 2048, 41_408)


def _profile(step: StepParameters, spec: BackendSpec = BARE) -> Profile:
    origin = Provenance("tables of this page", "2026", Trust.COMPOSED, "see there", "see there")
    return Profile("kernels", replace(spec, step=step), origin)


def runs_table(kernels: StepParameters) -> str:
    """Errors of the held-out requests of the two runs, by what the profile rests on."""
    pro, ada = read_run(PRO), read_run(ADA)
    composed = _profile(kernels)
    rows = (
        ("RTX PRO 6000", "kernels alone, no fit", check(pro, composed, PRO_LIMITS)),
        ("RTX PRO 6000", "roofline prior, no fit", check(pro, _roofline("rtx-pro-6000"), PRO_LIMITS)),
        ("RTX PRO 6000", "**fitted**, from the kernels", calibrate(pro, composed, PRO_LIMITS)),
        ("RTX PRO 6000", "fitted, no prior, no limits given", calibrate(pro, None, Limits())),
        (
            "RTX PRO 6000",
            "fitted, synchronous imposed",
            calibrate(pro, composed, _sync(PRO_LIMITS)),
        ),
        ("RTX 4090", "roofline prior, no fit", check(ada, _roofline("rtx-4090"), ADA_LIMITS)),
        (
            "RTX 4090",
            "**fitted**, from that prior",
            calibrate(ada, _roofline("rtx-4090"), ADA_LIMITS),
        ),
        ("RTX 4090", "fitted, no prior, no limits given", calibrate(ada, None, Limits())),
    )
    return markdown(
        ("run", "profile", "latency", "TPOT", "TTFT", "bias (same order)", "preemptions"),
        (
            [run, how, *_errors(found.held_out), _bias(found.held_out), f"{found.played.preemptions}"]
            for run, how, found in rows
        ),
        words=2,
    )


def _roofline(device: str) -> Profile:
    worked_out = prior(load_device(device), load_shape("llama-3.1-8b"), count=1, dtype=Dtype.BF16)
    return parse_profile(profile_text(worked_out, "2026-01-01"), device)


def _sync(limits: Limits) -> Limits:
    return replace(limits, scheduling=Scheduling.SYNC)


def _errors(errors: Errors) -> Sequence[str]:
    return [f"{100 * error:.2f} %" for error in (errors.latency_mape, errors.tpot_mape, errors.ttft_mape)]


def _bias(errors: Errors) -> str:
    return ", ".join(
        f"{100 * bias:+.1f} %" for bias in (errors.latency_bias, errors.tpot_bias, errors.ttft_bias)
    )


def priors_table(kernels: StepParameters) -> str:
    """Errors of the held-out requests before and after, from starts that are ever further off."""
    run = read_run(PRO)
    starts = (
        ("kernels of the same device", kernels),
        ("the same, everything twice as slow", _scaled(kernels, 2.0)),
        ("the same, everything four times as fast", _scaled(kernels, 0.25)),
        ("a fixed-step device: 1 ms a step, nothing else", _flat()),
    )
    rows: list[Sequence[str]] = []
    for label, step in starts:
        found = calibrate(run, _profile(step), PRO_LIMITS)
        assert found.before is not None, "there is a prior"
        rows.append([label, *_errors(found.before), *_errors(found.held_out), f"{found.replays}"])
    head = ("prior", "latency before", "TPOT", "TTFT", "latency after", "TPOT", "TTFT", "replays")
    return markdown(head, rows)


def _scaled(step: StepParameters, factor: float) -> StepParameters:
    times = {
        each.name: getattr(step, each.name) * factor for each in fields(step) if each.name.endswith("_s")
    }
    return replace(step, **times)


def _flat() -> StepParameters:
    return StepParameters(base_s=1e-3, per_prefill_token_s=2e-6)


def synthetic_table() -> str:
    """Engines whose parameters are known, with 2 % noise a step; calibrated without prior or limits."""
    return markdown(
        (
            "engine",
            "latency",
            "TPOT",
            "TTFT",
            "base + saturating at 64 (ms)",
            "found",
            "prompt (ms per 1k)",
            "found",
        ),
        (_synthetic_row(label, spec, per_s) for label, spec, per_s in _engines()),
    )


def _engines() -> Iterable[tuple[str, BackendSpec, float]]:
    noisy = replace(GENERIC, noise_sigma=0.02)
    dense = replace(noisy, base_s=11e-3, per_sequence_s=23e-6, per_context_token_s=86e-9)
    wide = replace(
        noisy, base_s=30e-3, per_sequence_s=1e-4, per_context_token_s=60e-9, per_prefill_token_s=110e-6
    )
    experts = replace(
        noisy, base_s=3.5e-3, per_sequence_s=30e-6, per_context_token_s=30e-9, saturating_s=9e-3,
        saturation_tokens=20.0, per_prefill_token_s=15e-6,
    )  # fmt: skip
    engine = replace(BARE, max_num_seqs=128, max_num_batched_tokens=2048, async_scheduling=True)
    yield "dense", replace(engine, step=dense), 10.0
    yield (
        "dense, synchronous, 8,192 tokens a step",
        _roomy(replace(engine, step=replace(dense, base_s=6e-3))),
        20.0,
    )
    yield "large, split over two devices", replace(engine, step=wide), 10.0
    yield "mixture of experts", replace(engine, step=experts), 10.0
    yield "dense, 1 stall in 300 steps", replace(engine, step=replace(dense, stall_probability=0.0033)), 10.0


def _roomy(spec: BackendSpec) -> BackendSpec:
    return replace(spec, max_num_seqs=256, max_num_batched_tokens=8192, async_scheduling=False)


def _synthetic_row(label: str, spec: BackendSpec, per_s: float) -> Sequence[str]:
    run = synthetic_run(spec, Random(5), per_s=per_s)
    found = calibrate(run, None, Limits())
    truth, step = spec.step, found.spec.step
    bases = [f"{1e3 * _base(one):.2f}" for one in (truth, step)]
    prompts = [f"{1e6 * one.per_prefill_token_s:.1f}" for one in (truth, step)]
    return [label, *_errors(found.held_out), *bases, *prompts]


def _base(step: StepParameters, batch: float = 64.0) -> float:
    """What a step of 64 sequences takes besides what each adds."""
    return step.base_s + step.saturating_s * float(-np.expm1(-batch / step.saturation_tokens))
